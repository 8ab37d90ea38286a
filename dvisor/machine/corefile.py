"""A file as an engine: ELF vmcore, LiME dump or raw image of a guest's RAM."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Literal

from dvisor.addresses import PAGE_SIZE, GuestPhysical
from dvisor.errors import HostError, NotFoundError, UnsupportedError, UsageError
from dvisor.machine.corefile_formats import (
    has_dump_magic,
    parse_dump,
    without_overlap,
    zero_tails,
)
from dvisor.machine.corefile_notes import registers_of
from dvisor.machine.engine import CpuRegisters, RamBlock
from dvisor.machine.layout import MIB, RamMap
from dvisor.machine.sparse import data_runs

Layout = Literal["flat", "q35", "pc", "microvm"]
_SMALLEST_RAW = 1 << 20


class CoreEngine:
    """Memory and registers as a file keeps them. Made by ``open_core``."""

    live = False
    knows_resets = True  # none can come

    def __init__(self, path: Path, fd: int, raw: bool, layout: Layout | None) -> None:
        self._path = path
        self._fd = fd
        self._data = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        try:
            dump = parse_dump(self._data, raw, layout)
            kept = without_overlap(self._data, dump.segments)
            self._registers = registers_of(dump.notes)
        except BaseException:
            self._data.close()
            raise
        blocks = [RamBlock(GuestPhysical(s.gpa), s.size, self._data, s.offset) for s in kept]
        blocks += [
            RamBlock(GuestPhysical(gpa), size) for gpa, size in zero_tails(dump.segments, kept)
        ]
        self._map = RamMap(
            sorted(blocks, key=lambda block: block.gpa), lambda _, __, size: bytes(size)
        )
        self._format = dump.format
        self.vmcoreinfo = next(
            (note.data.rstrip(b"\0") for note in dump.notes if note.name == b"VMCOREINFO"), None
        )
        """The kernel's own note about itself, where the dump has one."""

    @property
    def description(self) -> str:
        size = sum(block.size for block in self.ram())
        return f"{self._format} {self._path}, {round(size / MIB)} MiB of RAM"

    def ram(self) -> tuple[RamBlock, ...]:
        return self._map.blocks

    def read(self, gpa: GuestPhysical, size: int) -> bytes:
        return self._map.read(gpa, size)

    def populated(self) -> Iterator[tuple[GuestPhysical, int]]:
        for block in self.ram():
            if block.buffer is None:
                continue
            at = block.gpa
            for offset, size in data_runs(self._fd, block.offset, block.size):
                # A dump's memory need not begin at a page of the file, but pages are searched.
                start = block.gpa + offset - block.offset
                end = min(-(-(start + size) // PAGE_SIZE) * PAGE_SIZE, block.end)
                start = max(start // PAGE_SIZE * PAGE_SIZE, at)
                if start < end:
                    yield GuestPhysical(start), end - start
                    at = GuestPhysical(end)

    def registers(self) -> tuple[CpuRegisters, ...]:
        if not self._registers:
            raise UnsupportedError(
                f"{self._path} holds no vCPU state of QEMU's (a {self._format}): only QEMU's "
                "dump-guest-memory and `dvisor export core` write it"
            )
        return self._registers

    def stopped(self) -> AbstractContextManager[None]:
        return nullcontext()

    def epoch(self) -> int:
        return 0

    def close(self) -> None:
        with suppress(BufferError):  # somebody still looks into it: freed after that
            self._data.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_core(path: str | Path, *, raw: bool = False, layout: Layout | None = None) -> CoreEngine:
    """The dump at ``path``; ``raw`` or a ``layout``: RAM alone, whatever it begins with.

    ``layout`` tells where that RAM was: ``flat``, or a board of QEMU's. It is needed from about
    2.8 GiB on, where the boards split their RAM.
    Errors: NotFoundError, HostError (not readable), UsageError (damaged, truncated, not a dump),
    UnsupportedError (a format that is not read here). The file must not shrink while it is open.
    """
    path = Path(path)
    fd = _open(path)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a file: give a memory dump")
        head = os.pread(fd, 16, 0)
        if not has_dump_magic(head) and not _whole_pages(status.st_size):
            raise UsageError(
                f"{path} is no memory dump: no known header, and its {status.st_size} bytes are "
                "no whole pages of at least 1 MiB, as a raw image has"
            )
        return CoreEngine(path, fd, raw or layout is not None, layout)
    except (UsageError, UnsupportedError) as error:
        os.close(fd)
        raise type(error)(f"{path}: {str(error).removeprefix(f'{path} ')}") from error
    except BaseException:
        os.close(fd)
        raise


def is_core(path: str | Path) -> bool:
    """Whether ``path`` is a file that ``open_core`` may read: a dump's header, or whole pages."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            return False
        with Path(path).open("rb") as file:
            head = file.read(16)
    except (OSError, ValueError):
        return False
    return has_dump_magic(head) or _whole_pages(status.st_size)


def _whole_pages(size: int) -> bool:
    """Whether a file of ``size`` bytes may be a raw image of RAM."""
    return size >= _SMALLEST_RAW and size % PAGE_SIZE == 0


def _open(path: Path) -> int:
    try:
        # O_NONBLOCK: a FIFO must not make us wait for its writer.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise HostError(f"cannot open {path}: {error}") from error
