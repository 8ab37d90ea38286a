"""Another process's memory by /proc: its mappings, their bytes, and which pages hold data."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dvisor.addresses import PAGE_SIZE
from dvisor.errors import EngineError
from dvisor.machine.sparse import Run

_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)
_PAGEMAP_ENTRY_BYTES = 8
_PAGEMAP_CHUNK = 1 << 16  # entries, 256 MiB of address space
# The top byte of a pagemap entry: bit 63 present, bit 62 swapped. Bit 55 (soft-dirty), also set on
# empty pages, is below it. Source: Documentation/admin-guide/mm/pagemap.rst.
_HOLDS_DATA = bytes(1 if top & 0xC0 else 0 for top in range(256))


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    offset: int
    device: tuple[int, int]
    inode: int
    path: str

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def shared(self) -> bool:
        return self.permissions[3] == "s"

    def continues(self, before: Mapping) -> bool:
        """Whether it is the next piece of ``before``, split off by madvise or mbind."""
        same_file = (before.device, before.inode) == (self.device, self.inode)
        if before.end != self.start or before.permissions != self.permissions or not same_file:
            return False
        return self.inode == 0 or before.offset + before.size == self.offset


def read_mappings(pid: int) -> list[Mapping]:
    """All mappings of a process, by address. OSError as it comes."""
    mappings = []
    with Path(f"/proc/{pid}/maps").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if match := _MAPS_LINE.match(line.rstrip("\n")):
                start, end, permissions, offset, major, minor, inode, path = match.groups()
                span = int(start, 16), int(end, 16)
                device = int(major, 16), int(minor, 16)
                mappings.append(
                    Mapping(*span, permissions, int(offset, 16), device, int(inode), path)
                )
    return mappings


def joined(mappings: list[Mapping]) -> list[Mapping]:
    """The same with the pieces of one object put together again."""
    whole: list[Mapping] = []
    for mapping in mappings:
        if whole and mapping.continues(whole[-1]):
            whole[-1] = dataclasses.replace(whole[-1], end=mapping.end)
        else:
            whole.append(mapping)
    return whole


class ProcessMemory:
    """The address space that a process has now; it stays this one, even if the pid is reused.

    Opening needs the right to ptrace the process: OSError (EACCES, EPERM, ENOENT) as it comes.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._mem)
            raise

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; EngineError when the process is gone or has unmapped them."""
        data = self._pread(address, size)
        while len(data) < size:  # a page at a time may be all that the kernel gives
            more = self._pread(address + len(data), size - len(data))
            data += more
        return data

    def _pread(self, address: int, size: int) -> bytes:
        try:
            data = os.pread(self._mem, min(size, 1 << 30), address)
        except OSError as error:
            raise EngineError(
                f"cannot read process {self.pid} at {address:#x} ({error.strerror}): "
                "it has unmapped its RAM; attach again"
            ) from error
        if not data and size:
            # mem_rw() in fs/proc/base.c gives 0 bytes once the last thread has left the mm.
            raise EngineError(f"the QEMU process ended (pid {self.pid})")
        return data

    def present(self, start: int, size: int) -> Iterator[Run]:
        """Runs of pages in [start, start + size) that are in RAM or in swap, by address."""
        for at in range(start, start + size, _PAGEMAP_CHUNK * PAGE_SIZE):
            pages = min(_PAGEMAP_CHUNK, (start + size - at) // PAGE_SIZE)
            where = at // PAGE_SIZE * _PAGEMAP_ENTRY_BYTES
            entries = os.pread(self._pagemap, pages * _PAGEMAP_ENTRY_BYTES, where)
            if not entries:
                raise EngineError(f"the QEMU process ended (pid {self.pid})")
            flags = entries[7::8].translate(_HOLDS_DATA)
            first = flags.find(1)
            while first >= 0:
                stop = flags.find(0, first)
                stop = len(flags) if stop < 0 else stop
                yield at + first * PAGE_SIZE, (stop - first) * PAGE_SIZE
                first = flags.find(1, stop)

    def open_file(self, mapping: Mapping) -> int:
        """A read-only descriptor of the file behind ``mapping``: a memfd, a deleted file, any.

        OSError when neither the process's descriptors nor its mappings lead to it.
        """
        for link in Path(f"/proc/{self.pid}/fd").iterdir():  # needs less privilege than map_files
            try:
                status = link.stat()
                if (status.st_ino, _device(status.st_dev)) == (mapping.inode, mapping.device):
                    return os.open(link, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # closed meanwhile, or not ours to open
        for link in Path(f"/proc/{self.pid}/map_files").iterdir():
            if link.name.startswith(f"{mapping.start:x}-"):
                return os.open(link, os.O_RDONLY | os.O_CLOEXEC)
        raise FileNotFoundError(f"nothing in /proc/{self.pid} leads to {mapping.path}")

    def close(self) -> None:
        """Safe to call twice."""
        for fd in (self._mem, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._mem = self._pagemap = -1


def _device(number: int) -> tuple[int, int]:
    return os.major(number), os.minor(number)
