"""A foreign QEMU's guest RAM: where it is in the process, and the fastest way to its bytes."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dvisor.addresses import GuestPhysical
from dvisor.errors import EngineError
from dvisor.machine.engine import RamBlock
from dvisor.machine.foreign_process import QemuProcess, UnreachableError
from dvisor.machine.layout import RamMap, RamSection
from dvisor.machine.procmem import Mapping, joined
from dvisor.machine.sparse import Run, data_runs, united


@dataclass(frozen=True, slots=True)
class Placed:
    """A section and the address in QEMU (hva) of its first byte."""

    section: RamSection
    hva: int


def find_ram(process: QemuProcess, size: int) -> int:
    """The hva of the one mapping that can be ``size`` bytes of RAM; UnreachableError otherwise."""
    writable = [m for m in process.mappings if m.permissions.startswith("rw-")]
    found = {m.start for m in writable if m.size == size}
    if not found:
        found = {run.end - size for run in joined(writable) if _ends_as_ram(process, run, size)}
    if len(found) == 1:
        return found.pop()
    what = "no mapping" if not found else f"{len(found)} mappings"
    raise UnreachableError(
        f"{what} of {size >> 20} MiB, the RAM size its command line tells",
        "attach by a QMP socket (-qmp unix:PATH,server=on,wait=off), which tells where RAM is",
    )


def _ends_as_ram(process: QemuProcess, run: Mapping, size: int) -> bool:
    """Anonymous RAM may touch other memory below it, but QEMU puts a guard page behind it.

    Source: qemu_ram_mmap in util/mmap-alloc.c.
    """
    guarded = any(m.start == run.end and m.permissions[:3] == "---" for m in process.mappings)
    return run.inode == 0 and run.size >= size and guarded


class ForeignRam:
    """The sections as readable blocks: mapped here where they are shared, else read by /proc."""

    def __init__(self, process: QemuProcess, placed: Sequence[Placed]) -> None:
        """EngineError when QEMU has no mapping where a section should be."""
        self._process = process
        self._placed = sorted(placed, key=lambda each: each.section.gpa)
        self._files: dict[int, tuple[int, mmap.mmap | None]] = {}
        self._homes = [self._home(each) for each in self._placed]
        try:
            blocks = [self._block(*each) for each in zip(self._placed, self._homes, strict=True)]
        except BaseException:
            self.close()
            raise
        self.map = RamMap(blocks, self._fetch)

    @property
    def kind(self) -> str:
        """For people: what the RAM is made of, and so how it is read."""
        if all(block.buffer is not None for block in self.map.blocks):
            return f"mapped from {self._homes[0].path or 'shared memory'}"
        return "read from the process's memory"

    def populated(self) -> Iterator[tuple[GuestPhysical, int]]:
        for placed, home in zip(self._placed, self._homes, strict=True):
            section = placed.section
            for start, size in self._runs(placed, home):
                yield GuestPhysical(section.gpa + start - placed.hva), size

    def _runs(self, placed: Placed, home: Mapping) -> Iterator[Run]:
        """Runs that hold data, as addresses in QEMU."""
        size = placed.section.size
        if home.inode == 0:
            return self._process.memory.present(placed.hva, size)
        fd, _ = self._files[home.start]
        in_file = home.offset - home.start
        runs = (
            (start - in_file, length) for start, length in data_runs(fd, placed.hva + in_file, size)
        )
        if home.shared:
            return runs
        # -mem-path without share=on: what the guest has written is in the process alone.
        return united(runs, self._process.memory.present(placed.hva, size))

    def _home(self, placed: Placed) -> Mapping:
        """The mapping that holds the section, its pieces put together."""
        end = placed.hva + placed.section.size
        for mapping in joined(self._process.mappings):
            if mapping.start <= placed.hva and end <= mapping.end:
                return mapping
        raise EngineError(
            f"QEMU has no single mapping for the RAM at {placed.section.gpa:#x}: "
            "it changes its memory now; attach again"
        )

    def _block(self, placed: Placed, home: Mapping) -> RamBlock:
        section = placed.section
        buffer = None
        if home.inode != 0:
            if home.start not in self._files:
                self._files[home.start] = self._open(home)
            buffer = self._files[home.start][1]
        offset = placed.hva - home.start if buffer is not None else 0
        return RamBlock(GuestPhysical(section.gpa), section.size, buffer, offset)

    def _open(self, home: Mapping) -> tuple[int, mmap.mmap | None]:
        try:
            fd = self._process.memory.open_file(home)
        except OSError as error:
            raise UnreachableError(
                f"its RAM's file {home.path} cannot be opened: {error.strerror or error}",
                "run dvisor as root",
            ) from error
        try:
            if not home.shared:
                return fd, None
            return fd, mmap.mmap(
                fd, home.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=home.offset
            )
        except (OSError, ValueError) as error:
            os.close(fd)
            raise EngineError(f"cannot map QEMU's RAM {home.path}: {error}") from error

    def _fetch(self, index: int, at: int, size: int) -> bytes:
        return self._process.memory.read(self._placed[index].hva + at, size)

    def close(self) -> None:
        """Safe to call twice."""
        for fd, buffer in self._files.values():
            if buffer is not None:
                with suppress(BufferError):  # somebody still looks into it: freed after that
                    buffer.close()
            os.close(fd)
        self._files = {}
