"""Any engine's RAM and registers as an ELF vmcore, which drgn, gdb and volatility3 open."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from dvisor.addresses import MASK64, PAGE_SIZE, GuestPhysical, GuestVirtual
from dvisor.errors import HostError, UnsupportedError
from dvisor.machine.corefile_formats import (
    ELF_HEADER,
    ELF_MAGIC,
    EM_X86_64,
    ET_CORE,
    PN_XNUM,
    PROGRAM_HEADER,
    PT_LOAD,
    PT_NOTE,
)
from dvisor.machine.corefile_notes import Note, notes_for, pack_note
from dvisor.machine.engine import Engine, RamBlock

_CHUNK = 1 << 20
_PIECE = 1 << 16
_ZEROS = bytes(_PIECE)


@dataclass(frozen=True, slots=True)
class VirtualMapping:
    """``size`` bytes that the kernel has mapped at ``gva`` (its text, its direct map)."""

    gva: GuestVirtual
    gpa: GuestPhysical
    size: int


def write_core(
    engine: Engine,
    path: str | Path,
    *,
    vmcoreinfo: bytes | None = None,
    mappings: Sequence[VirtualMapping] = (),
    stop: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a core file of ``engine`` to ``path`` (mode 0600), all of it or nothing.

    The guest is stopped meanwhile, unless ``stop`` is False: then the file may contradict itself.
    drgn needs ``vmcoreinfo`` (the kernel's note about itself); gdb needs ``mappings``, because it
    knows no physical addresses: of several that hold a byte the first counts. Memory that the
    engine knows to be empty becomes holes of the file. ``progress(done, total)`` is called with
    bytes of guest memory that hold data. HostError when the disk is full or the directory cannot
    be written.
    """
    path = Path(path)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise HostError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        with os.fdopen(fd, "wb", buffering=0):
            with engine.stopped() if stop else nullcontext():
                _write(engine, fd, vmcoreinfo, mappings, progress)
            os.fsync(fd)
        Path(temporary).rename(path)
    except OSError as error:
        raise HostError(f"cannot write the core file {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


def _write(
    engine: Engine,
    fd: int,
    vmcoreinfo: bytes | None,
    mappings: Sequence[VirtualMapping],
    progress: Callable[[int, int], None] | None,
) -> None:
    notes = b"".join(pack_note(note) for note in _notes(engine, vmcoreinfo))
    pieces = [list(_pieces(block, mappings)) for block in engine.ram()]
    count = 1 + sum(map(len, pieces))
    notes_at = ELF_HEADER.size + count * PROGRAM_HEADER.size
    if count >= PN_XNUM:
        raise UnsupportedError(
            f"a core file of {count} segments: at most {PN_XNUM - 1} are written"
        )
    headers = [PROGRAM_HEADER.pack(PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 4)]
    offset = _page_up(notes_at + len(notes))
    offsets = []
    for block, parts in zip(engine.ram(), pieces, strict=True):
        offsets.append(offset)
        headers += [
            _load(part.gva, part.gpa, part.size, offset + part.gpa - block.gpa) for part in parts
        ]
        offset = _page_up(offset + block.size)
    os.ftruncate(fd, offset)
    os.pwrite(fd, _elf_header(len(headers)) + b"".join(headers), 0)
    os.pwrite(fd, notes, notes_at)
    _write_memory(engine, fd, offsets, progress or (lambda _, __: None))


def _pieces(block: RamBlock, mappings: Sequence[VirtualMapping]) -> Iterator[VirtualMapping]:
    """The block, cut so that each byte is in one segment.

    volatility3 looks an address up by bisection, and loses memory beside overlapping segments.
    """
    edges = {block.gpa, block.end}
    for mapping in mappings:
        edges |= {
            gpa for gpa in (mapping.gpa, mapping.gpa + mapping.size) if block.gpa < gpa < block.end
        }
    for start, end in itertools.pairwise(sorted(edges)):
        found = next((m for m in mappings if m.gpa <= start < m.gpa + m.size), None)
        gva = (found.gva + start - found.gpa) & MASK64 if found else 0
        yield VirtualMapping(GuestVirtual(gva), GuestPhysical(start), end - start)


def _write_memory(
    engine: Engine, fd: int, offsets: list[int], progress: Callable[[int, int], None]
) -> None:
    runs = list(engine.populated())
    total = sum(size for _, size in runs)
    blocks = list(zip(engine.ram(), offsets, strict=True))
    done = 0
    i = 0
    for gpa, size in runs:
        for at in range(gpa, gpa + size, _CHUNK):
            data = engine.read(GuestPhysical(at), min(_CHUNK, gpa + size - at))
            while at >= blocks[i][0].end:
                i += 1
            block, offset = blocks[i]
            _write_pieces(fd, data, offset + at - block.gpa)
            done += len(data)
            progress(done, total)


def _write_pieces(fd: int, data: bytes, offset: int) -> None:
    """Leaves what is zero a hole."""
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        if piece != _ZEROS[: len(piece)]:
            _write_all(fd, piece, offset + at)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):  # a full disk writes a part first, and says ENOSPC then
        written += os.pwrite(fd, data[written:], offset + written)


def _notes(engine: Engine, vmcoreinfo: bytes | None) -> list[Note]:
    try:
        notes = notes_for(engine.registers())
    except UnsupportedError:
        notes = []
    if vmcoreinfo is not None:
        notes.append(Note(b"VMCOREINFO", 0, vmcoreinfo))
    return notes


def _load(gva: int, gpa: int, size: int, offset: int) -> bytes:
    return PROGRAM_HEADER.pack(PT_LOAD, 7, offset, gva, gpa, size, size, 0)


def _elf_header(count: int) -> bytes:
    ident = ELF_MAGIC + b"\x02\x01\x01".ljust(12, b"\0")  # 64-bit, little-endian, version 1
    return ELF_HEADER.pack(
        ident,
        ET_CORE,
        EM_X86_64,
        1,
        0,
        ELF_HEADER.size,
        0,
        0,
        ELF_HEADER.size,
        PROGRAM_HEADER.size,
        count,
        0,
        0,
        0,
    )


def _page_up(number: int) -> int:
    return -(-number // PAGE_SIZE) * PAGE_SIZE
