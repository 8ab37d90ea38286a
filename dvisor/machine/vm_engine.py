"""The engine for a VM that dvisor started: its RAM mapped read-only, the rest asked for."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from typing import Self

from dvisor.addresses import GuestPhysical
from dvisor.errors import EngineError
from dvisor.machine.control import Control
from dvisor.machine.engine import CpuRegisters, RamBlock
from dvisor.machine.epoch import EpochView
from dvisor.machine.layout import RamMap
from dvisor.machine.registers import parse_registers


class VmEngine:
    """Memory and registers of one VM of ours (the ``Engine`` protocol). A context manager.

    Reads go to the mapping alone: the supervisor is asked only for registers and holds.
    """

    def __init__(self, name: str) -> None:
        """Connect to ``name``; NotFoundError when no such VM lives."""
        self._holds = 0
        self._control = Control(name)
        try:
            self.info, self._ram_fd, epoch_fd = self._control.info_with_descriptors()
        except BaseException:
            self._control.close()
            raise
        self._epoch = EpochView(epoch_fd)
        self._memory = mmap.mmap(self._ram_fd, self.info.memory_bytes, prot=mmap.PROT_READ)
        self._map = RamMap(
            [
                RamBlock(GuestPhysical(gpa), size, self._memory, offset)
                for gpa, size, offset in self.info.ram
            ],
            _no_fetch,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def description(self) -> str:
        size_mib = self.info.memory_bytes >> 20
        return (
            f"VM {self.name}: {size_mib} MiB mapped from QEMU {self.info.qemu_pid}, "
            f"{self.info.vcpus} vCPUs, {self.info.accel}"
        )

    @property
    def live(self) -> bool:
        return True

    @property
    def knows_resets(self) -> bool:
        return True

    def ram(self) -> tuple[RamBlock, ...]:
        """All RAM, sorted by gpa, without overlap."""
        return self._map.blocks

    def read(self, gpa: GuestPhysical, size: int) -> bytes:
        """Exactly ``size`` bytes at ``gpa``; GuestMemoryError when any of them is not RAM."""
        return self._map.read(gpa, size)

    def populated(self) -> Iterator[tuple[GuestPhysical, int]]:
        """Runs (gpa, size) of RAM that hold data, by ascending gpa."""
        for block in self._map.blocks:
            at, end = block.offset, block.offset + block.size
            while at < end and (start := self._next_data(at)) < end:
                at = min(os.lseek(self._ram_fd, start, os.SEEK_HOLE), end)
                yield GuestPhysical(block.gpa + start - block.offset), at - start

    def _next_data(self, at: int) -> int:
        try:
            return os.lseek(self._ram_fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole follows: lseek(2)
                return self.info.memory_bytes
            raise EngineError(f"the RAM of {self.name} cannot be searched: {error}") from error

    def registers(self) -> tuple[CpuRegisters, ...]:
        """One entry a vCPU, by index. KERNEL_GS_BASE is not known (0)."""
        return parse_registers(self._control.registers_text())

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Within it no vCPU runs. Nests; restores the state that was there before."""
        if self._holds == 0:
            self._control.hold()
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._holds == 0:
                self._control.release()

    def epoch(self) -> int:
        """Changes at every guest reset; read from a shared page. EngineError once the VM has ended:
        its memory would stay readable here, and nothing in it true any more."""
        if self._control.ended():
            raise EngineError(f"VM {self.name} has ended; why: dvisor logs {self.name}")
        return self._epoch.value

    def close(self) -> None:
        """Give back all descriptors and mappings. Safe to call twice."""
        if self._ram_fd >= 0:
            os.close(self._ram_fd)
            self._ram_fd = -1
            self._control.close()
            self._epoch.close()
            self._memory.close()


def _no_fetch(_block: int, _at: int, _size: int) -> bytes:
    raise EngineError("the RAM of a VM of ours is always mapped")
