"""The layouts of memory dumps: ELF64 vmcore, LiME, raw; headers in, checked segments out.

A dump is a hostile file: every offset is checked against its size, every count has a limit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import mmap

from dvisor.errors import UnsupportedError, UsageError
from dvisor.machine.corefile_notes import Note, parse_notes
from dvisor.machine.layout import board_sections, low_ram_limit
from dvisor.machine.sparse import united

MAX_SEGMENTS = 1 << 18
MAX_NOTE_BYTES = 16 << 20
MAX_GPA = 1 << 52  # MAXPHYADDR's limit (Intel SDM vol. 3A, 4.1.4)

ELF_MAGIC = b"\x7fELF"
ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
ET_CORE, EM_X86_64, PT_LOAD, PT_NOTE, PN_XNUM = 4, 62, 1, 4, 0xFFFF
_SH_INFO_AT = 44  # of a section header: the true count when e_phnum is PN_XNUM
_SECTION_HEADER_BYTES = 64
_LIME = struct.Struct("<IIQQ8x")
_LIME_MAGIC = b"EMiL"
_LIME_VERSION = 1
_NOT_READ = {
    b"KDUMP   ": "a kdump-compressed dump",
    b"makedumpfile\0": "a flattened kdump-compressed dump",
    b"PAGEDU64": "a Windows dump",
    b"PAGEDUMP": "a Windows dump",
    b"QEVM": "a QEMU migration stream or snapshot",
    b"QFI\xfb": "a qcow2 disk image",
}
_HOW_TO_DUMP = (
    "make an ELF dump instead: `makedumpfile -E`, `virsh dump --memory-only --format=elf`, QMP "
    "dump-guest-memory without a format, or `dvisor export core`"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """Memory at ``gpa``: ``size`` bytes from ``offset`` of the file; zeros behind, to ``end``."""

    gpa: int
    size: int
    offset: int
    end: int


@dataclass(slots=True)
class Dump:
    """What a dump's headers say."""

    format: str
    segments: list[Segment]
    notes: list[Note] = field(default_factory=list)


def has_dump_magic(head: bytes) -> bool:
    """Whether a file that begins so is a dump of a format that has a magic number."""
    return head.startswith((ELF_MAGIC, _LIME_MAGIC, *_NOT_READ))


def parse_dump(data: mmap, raw: bool, layout: str | None) -> Dump:
    """The dump in ``data``, by its magic number; ``raw``: RAM alone, placed as ``layout`` says.

    UsageError for a damaged file, UnsupportedError for a format that is not read here.
    """
    head = data[:16]
    if raw or not has_dump_magic(head):
        return _parse_raw(len(data), layout)
    for magic, what in _NOT_READ.items():
        if head.startswith(magic):
            raise UnsupportedError(f"this is {what}, which is not read here: {_HOW_TO_DUMP}")
    return _parse_elf(data) if head.startswith(ELF_MAGIC) else _parse_lime(data)


def _parse_elf(data: mmap) -> Dump:
    if len(data) < ELF_HEADER.size:
        raise UsageError("the ELF core file is damaged: it ends within its header")
    ident, kind, machine, _, _, table, sections, _, _, entry_size, count, *_ = (
        ELF_HEADER.unpack_from(data)
    )
    if ident[4:6] != b"\x02\x01" or machine != EM_X86_64:
        raise UnsupportedError(
            "this ELF file is not of a 64-bit x86 machine (QEMU dumps a guest that has not "
            "entered 64-bit mode so): dump it once its kernel runs"
        )
    if kind != ET_CORE:
        raise UsageError("this is an ELF program or library, not a core file")
    if count == PN_XNUM:
        _inside(data, sections, _SECTION_HEADER_BYTES, "section headers")
        count = struct.unpack_from("<I", data, sections + _SH_INFO_AT)[0]
    if entry_size != PROGRAM_HEADER.size or not 0 < count <= MAX_SEGMENTS:
        raise UsageError(
            f"the ELF core file is damaged: {count} program headers of {entry_size} bytes"
        )
    _inside(data, table, count * PROGRAM_HEADER.size, "program headers")
    dump = Dump("ELF vmcore", [])
    raw = data[table : table + count * PROGRAM_HEADER.size]
    for header in PROGRAM_HEADER.iter_unpack(raw):
        _add_program_header(data, dump, header)
    if len(dump.segments) > 1 and not any(segment.gpa for segment in dump.segments):
        raise UnsupportedError(
            "this core file has no physical addresses: it is of a program, not of a machine"
        )
    return dump


def _add_program_header(data: mmap, dump: Dump, header: tuple[int, ...]) -> None:
    kind, _, offset, _, gpa, size, memory_size, _ = header
    if kind == PT_NOTE:
        _inside(data, offset, size, "notes")
        if size > MAX_NOTE_BYTES:
            raise UsageError(f"the core file is damaged: {size} bytes of notes")
        dump.notes += parse_notes(data[offset : offset + size])
    elif kind == PT_LOAD and memory_size:
        _inside(data, offset, size, f"memory at {gpa:#x}")
        end = gpa + max(memory_size, size)
        if end > MAX_GPA:
            raise UsageError(f"the core file is damaged: memory at {gpa:#x} ends at {end:#x}")
        dump.segments.append(Segment(gpa, size, offset, end))


def _parse_lime(data: mmap) -> Dump:
    segments: list[Segment] = []
    at = 0
    while at < len(data):
        _inside(data, at, _LIME.size, "segment header")
        magic, version, first, last = _LIME.unpack_from(data, at)
        size = last + 1 - first
        known = magic == int.from_bytes(_LIME_MAGIC, "little") and version == _LIME_VERSION
        if not known or size <= 0 or last >= MAX_GPA or len(segments) >= MAX_SEGMENTS:
            raise UsageError(f"the LiME dump is damaged at its byte {at}")
        at += _LIME.size
        _inside(data, at, size, f"memory at {first:#x}")
        segments.append(Segment(first, size, at, last + 1))
        at += size
    return Dump("LiME dump", segments)


def _parse_raw(size: int, layout: str | None) -> Dump:
    if layout is None and size > low_ram_limit("q35", size):
        raise UsageError(
            f"a raw image of {size >> 20} MiB does not tell where its RAM was: give its layout, "
            "flat (offset = physical address), q35 or pc (QEMU's boards)"
        )
    if layout is None or layout == "flat":
        return Dump("raw image", [Segment(0, size, 0, size)])
    sections = board_sections(layout, size)
    return Dump(f"raw {layout} RAM", [Segment(s.gpa, s.size, s.offset, s.end) for s in sections])


def _inside(data: mmap, offset: int, size: int, what: str) -> None:
    if offset + size > len(data):
        raise UsageError(
            f"the dump is truncated or damaged: its {what} would end at byte {offset + size}, "
            f"but it has {len(data)}: copy or make it again"
        )


def without_overlap(data: mmap, segments: list[Segment]) -> list[Segment]:
    """The segments' file parts by gpa, each byte of memory once; UsageError on a contradiction.

    Overlaps are lawful: /proc/vmcore holds the kernel's text twice (kexec adds a segment for its
    mapping), and QEMU's dump with paging lists memory once for each mapping of it.
    """
    kept: list[Segment] = []
    covered = 0
    for segment in sorted(segments, key=lambda each: (each.gpa, -each.size)):
        end = segment.gpa + segment.size
        if kept and segment.size and segment.gpa < covered:
            _check_same(data, kept[-1], segment)
        skip = max(0, covered - segment.gpa)
        if skip < segment.size:
            start = segment.gpa + skip
            kept.append(Segment(start, segment.size - skip, segment.offset + skip, segment.end))
            covered = end
    return list(_joined(kept))


def _joined(segments: list[Segment]) -> Iterator[Segment]:
    """Neighbours both in memory and in the file as one: a dump with mappings cuts RAM at them."""
    last: Segment | None = None
    for segment in segments:
        if last and segment.gpa - last.gpa == segment.offset - last.offset == last.size:
            last = Segment(last.gpa, last.size + segment.size, last.offset, segment.end)
            continue
        if last:
            yield last
        last = segment
    if last:
        yield last


def _check_same(data: mmap, one: Segment, other: Segment) -> None:
    """A sample: the first page that both hold."""
    size = min(4096, one.gpa + one.size - other.gpa, other.size)
    at = one.offset + other.gpa - one.gpa
    if data[at : at + size] != data[other.offset : other.offset + size]:
        raise UsageError(
            f"the core file is damaged: two segments hold different memory at {other.gpa:#x}"
        )


def zero_tails(segments: list[Segment], kept: list[Segment]) -> Iterator[tuple[int, int]]:
    """(gpa, size) of memory that a dump tells without holding it, by gpa: zeros, as in any ELF.

    makedumpfile leaves out pages so: zero pages, and those that its dump level filters.
    """
    tails = ((s.gpa + s.size, s.end - s.gpa - s.size) for s in segments)
    held = iter([*((s.gpa, s.gpa + s.size) for s in kept), (MAX_GPA, MAX_GPA)])
    start, stop = next(held)
    for tail, size in united(tails, ()):
        at = tail
        while at < tail + size:
            while stop <= at:
                start, stop = next(held)
            if at < start:
                yield at, min(start, tail + size) - at
            at = max(at, stop)
