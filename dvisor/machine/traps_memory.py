"""The peer's side of the shared memory: typed access to its words, and futexes on them.

The library in QEMU uses C11 atomics. Here a word is one aligned store or load, in program order,
which x86-64 hosts keep (SDM vol. 3, 8.2.2); each field has one writer, so nothing is exchanged.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Sequence

from dvisor.errors import EngineError
from dvisor.machine.native import PROTOCOL, REGION

_FUTEX_WAIT, _FUTEX_WAKE = 0, 1  # include/uapi/linux/futex.h
_SYS_FUTEX = 202  # arch/x86/entry/syscalls/syscall_64.tbl
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class SharedMemory:
    """One VM's region, mapped. Names are ``struct.field`` of the description."""

    def __init__(self, fd: int) -> None:
        """Map ``fd``, which stays the caller's; EngineError if it is of another version."""
        if os.fstat(fd).st_size < REGION.size:
            raise EngineError(
                "the memory shared with QEMU is too small: was this VM started by "
                "another version of dvisor? Start it again"
            )
        self._mapping = mmap.mmap(fd, REGION.size)
        self._narrow = memoryview(self._mapping).cast("I")
        self._wide = memoryview(self._mapping).cast("Q")
        self._anchor = ctypes.c_char.from_buffer(self._mapping)
        self._base = ctypes.addressof(self._anchor)
        if (self["header.magic"], self["header.version"]) != (PROTOCOL.magic, PROTOCOL.version):
            self.close()
            raise EngineError(
                "the memory shared with QEMU is of another version of dvisor: start the VM again"
            )

    def close(self) -> None:
        """Unmap. Safe to call twice."""
        self._narrow.release()
        self._wide.release()
        if hasattr(self, "_anchor"):
            del self._anchor
        with contextlib.suppress(BufferError):  # unmapped with the last view that somebody holds
            self._mapping.close()

    def __getitem__(self, place: str) -> int:
        view, index = self._word(place)
        return view[index]

    def __setitem__(self, place: str, value: int) -> None:
        view, index = self._word(place)
        view[index] = value

    def words(self, name: str) -> memoryview:
        """An array of u64 of the region, to read and write."""
        field = REGION[name]
        return self._wide[field.offset // 8 : (field.offset + field.size) // 8]

    def slot(self, index: int) -> Slot:
        """The slot of vCPU ``index``."""
        return Slot(self, index)

    def wait(self, place: str, while_it_is: int, timeout_s: float) -> None:
        """Sleep until the u32 at ``place`` is woken or changed, or the time is over."""
        seconds = int(timeout_s)
        limit = _Timespec(seconds, int((timeout_s - seconds) * 1e9))
        result = _libc.syscall(
            _SYS_FUTEX,
            ctypes.c_void_p(self._base + self._offset(place)),
            _FUTEX_WAIT,
            ctypes.c_uint32(while_it_is),
            ctypes.byref(limit),
            None,
            0,
        )
        expected = {errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR}
        if result != 0 and (code := ctypes.get_errno()) not in expected:
            raise EngineError(f"cannot wait for the library in QEMU: {os.strerror(code)}")

    def wake(self, place: str) -> None:
        """Wake all that sleep on the u32 at ``place``."""
        self.wake_at(self._offset(place))

    def wake_at(self, offset: int) -> None:
        """Wake all that sleep on the u32 at byte ``offset``."""
        _libc.syscall(
            _SYS_FUTEX, ctypes.c_void_p(self._base + offset), _FUTEX_WAKE, 64, None, None, 0
        )

    def read(self, offset: int, size: int) -> int:
        """The u32 or u64 at byte ``offset``."""
        return self._narrow[offset // 4] if size == 4 else self._wide[offset // 8]

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the u32 or u64 at byte ``offset``."""
        if size == 4:
            self._narrow[offset // 4] = value
        else:
            self._wide[offset // 8] = value

    def _word(self, place: str) -> tuple[memoryview, int]:
        part, _, name = place.partition(".")
        field = PROTOCOL.structs[part][name]
        offset = REGION[part].offset + field.offset
        return (self._narrow, offset // 4) if field.size == 4 else (self._wide, offset // 8)

    def _offset(self, place: str) -> int:
        part, _, name = place.partition(".")
        return REGION[part].offset + PROTOCOL.structs[part][name].offset


class Slot:
    """One vCPU's slot."""

    _fields = PROTOCOL.structs["slot"].fields

    def __init__(self, memory: SharedMemory, index: int) -> None:
        self._memory = memory
        self._at = REGION["slots"].offset + index * REGION["slots"].stride

    def __getitem__(self, name: str) -> int:
        field = self._fields[name]
        return self._memory.read(self._at + field.offset, field.size)

    def __setitem__(self, name: str, value: int) -> None:
        field = self._fields[name]
        self._memory.write(self._at + field.offset, field.size, value)

    def six(self, name: str) -> tuple[int, ...]:
        """An array of six u64."""
        at = self._at + self._fields[name].offset
        return tuple(self._memory.read(at + 8 * i, 8) for i in range(6))

    def put_six(self, name: str, values: Sequence[int]) -> None:
        """Store up to six u64; the rest becomes 0."""
        at = self._at + self._fields[name].offset
        for i in range(6):
            self._memory.write(at + 8 * i, 8, values[i] if i < len(values) else 0)

    def wake(self) -> None:
        """Wake the vCPU that waits for this slot's verdict."""
        self._memory.wake_at(self._at + self._fields["verdict"].offset)
