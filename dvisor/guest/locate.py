"""Where is the kernel? Three ways that do not depend on one another, checked against each other.

1. *registers*: CR3 gives the page tables in force, these give the kernel image at its fixed GiB of
   virtual space. The only way that cannot fall for a stale kernel: after a reset the old kernel's
   data stays valid in RAM for seconds.
2. *kallsyms*: the symbol table's token table has a signature; the image is physically contiguous.
3. *vmcoreinfo*: a page that begins with ``OSRELEASE=`` and says where the image is
   (kernel/vmcore_info.c). It exists only after subsys_initcall.

With registers the image is found by 1 and the other two, looked up inside it, must agree. Without
(a QEMU without monitor, a raw file) 3 and then 2 search the RAM that holds data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from dvisor.addresses import MASK64, PAGE_SIZE, GuestPhysical
from dvisor.errors import (
    DvisorError,
    GuestDataError,
    GuestMemoryError,
    StateError,
    UnsupportedError,
)
from dvisor.guest import paging
from dvisor.guest.kallsyms import SIGNATURE, TEXT_START, Image, Kallsyms, Tables, tables_around
from dvisor.machine.engine import Engine

IMAGE_SPACE = 1 << 30  # KERNEL_IMAGE_SIZE with KASLR, arch/x86/include/asm/page_64_types.h
LINKED_AT = 0xFFFF_FFFF_8100_0000  # _text without KASLR: __START_KERNEL_map + 16 MiB
MAX_IMAGE = 256 << 20
MAX_CANDIDATES = 64
_CHUNK = 8 << 20
_OSRELEASE = b"OSRELEASE="
_BANNER = b"Linux version "


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one way of finding the kernel said."""

    way: str
    agrees: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Located:
    """A kernel's image and page tables. ``root`` is the physical address of its top table."""

    image: Image
    physical: int
    root: int
    levels: int
    evidence: list[Evidence] = field(default_factory=list)


def locate(engine: Engine) -> list[Located]:
    """Candidates for the running kernel, best first, at least one.

    StateError when no kernel runs yet; GuestDataError when one runs but cannot be made out.
    """
    try:
        registers = engine.registers()
    except UnsupportedError as error:
        return _locate_in_ram(engine, Evidence("registers", False, str(error)))
    seen = []
    for cpu in registers:
        if not cpu.paging:
            seen.append(f"vCPU {cpu.index} has paging off")
            continue
        try:
            found = _by_cr3(engine, cpu.cr3 & paging.ADDRESS_MASK, cpu.levels)
        except GuestDataError as error:
            seen.append(f"vCPU {cpu.index}: {error}")
            continue
        found.evidence.append(_gate(engine, found, cpu.idt_base, cpu.idt_limit))
        return [found]
    raise StateError(
        "no Linux kernel runs in the guest yet (" + "; ".join(seen) + "): wait until it has booted"
    )


def _by_cr3(engine: Engine, cr3: int, levels: int) -> Located:
    """The image as CR3 maps it, or its kernel half does: the user half of page-table isolation
    maps only the entry code, so of the two tables the one that maps more is the kernel's."""
    found: list[Located] = []
    problem = None
    for root in {cr3, cr3 & ~paging.PTI_USER_BIT}:
        try:
            found.append(_by_tables(engine, root, levels))
        except GuestDataError as error:
            problem = error
    if not found:
        assert problem is not None
        raise problem
    return max(found, key=lambda candidate: candidate.image.end - candidate.image.start)


def _by_tables(engine: Engine, root: int, levels: int) -> Located:
    """The kernel image as the page tables at ``root`` map it."""
    slots = list(paging.large_pages(engine.read, root, levels, TEXT_START))
    if not slots:
        raise GuestDataError("its page tables map no kernel image")
    virtual, physical = slots[0]
    shift = virtual - physical
    # Beyond the image the same GiB may hold other mappings (EFI, a kexec kernel): stop there.
    last = virtual
    for at, target in slots:
        if at - target == shift and at - last <= 32 << 20 and at - virtual < MAX_IMAGE:
            last = at
    image = window(engine, physical, last + (2 << 20) - virtual, virtual)
    return Located(image, physical, root, levels)


def _gate(engine: Engine, found: Located, idt_base: int, idt_limit: int) -> Evidence:
    """Does the page-fault gate of the IDT lead into the image found?"""
    if idt_limit < 15 * 16 - 1:
        return Evidence("registers", False, "the IDT is too short to be Linux's")
    try:
        at = idt_base + 14 * 16
        page = paging.translate(engine.read, found.root, found.levels, at)
        raw = engine.read(GuestPhysical(page.physical + at - page.virtual), 16)
    except GuestMemoryError as error:
        return Evidence("registers", False, f"the IDT cannot be read: {error}")
    low, middle, high = struct.unpack("<H4xHI4x", raw)
    handler = low | middle << 16 | high << 32
    size = found.image.end - found.image.start
    inside = 0 <= handler - found.image.virtual < size
    detail = f"image at {found.image.virtual:#x}, page-fault gate {handler:#x}"
    return Evidence("registers", inside, detail if inside else detail + " outside of it")


def _locate_in_ram(engine: Engine, why: Evidence) -> list[Located]:
    found: list[Located] = []
    for note in find_vmcoreinfo(engine):
        try:
            found.append(_from_note(engine, note))
        except (DvisorError, KeyError, ValueError):  # anyone can write a page that looks like one
            continue
    if not found:
        found = list(_by_signature(engine))
    if not found:
        raise GuestDataError(
            "no Linux kernel in the guest's RAM: neither VMCOREINFO nor a kernel symbol table. "
            "Is it a Linux guest that has booted, and is this all of its RAM?"
        )
    for candidate in found:
        candidate.evidence.append(why)
    return found


def parse_vmcoreinfo(raw: bytes) -> dict[str, str]:
    """``KEY=value`` lines, up to the first NUL."""
    text = raw.partition(b"\0")[0].decode("ascii", "replace")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def find_vmcoreinfo(engine: Engine) -> list[dict[str, str]]:
    """All VMCOREINFO pages in RAM, of the running and of former kernels.

    Reads 8 bytes of each populated page, so that a search of a large RAM is bound by its pages.
    """
    wanted = int.from_bytes(_OSRELEASE[:8], "little")
    notes: list[dict[str, str]] = []
    for gpa, words in _first_words(engine):
        at = -1
        while wanted in words[at + 1 :] and len(notes) < MAX_CANDIDATES:
            at = words.index(wanted, at + 1)
            note = parse_vmcoreinfo(engine.read(GuestPhysical(gpa + at * PAGE_SIZE), PAGE_SIZE))
            if "NUMBER(phys_base)" in note:
                notes.append(note)
    return notes


def _first_words(engine: Engine) -> Iterator[tuple[int, list[int]]]:
    """(gpa, first 8 bytes of each page from there) over all RAM that holds data."""
    blocks = engine.ram()
    for start, size in engine.populated():
        first, end = -(-start // PAGE_SIZE) * PAGE_SIZE, (start + size) & -PAGE_SIZE
        block = next((b for b in blocks if b.gpa <= first and end <= b.end), None)
        for gpa in range(first, end, _CHUNK):
            stop = min(gpa + _CHUNK, end)
            raw: memoryview | bytes
            if block is not None and block.buffer is not None:
                at = block.offset + gpa - block.gpa
                raw = memoryview(block.buffer)[at : at + stop - gpa]
            else:
                raw = engine.read(GuestPhysical(gpa), stop - gpa)
            yield gpa, memoryview(raw).cast("B").cast("Q")[:: PAGE_SIZE // 8].tolist()


def _from_note(engine: Engine, note: dict[str, str]) -> Located:
    offset = int(note["KERNELOFFSET"], 16)
    base = int(note["NUMBER(phys_base)"])  # may be negative
    if not 0 <= offset < IMAGE_SPACE:
        raise GuestDataError("VMCOREINFO names an impossible KERNELOFFSET")
    root = int(note["SYMBOL(swapper_pg_dir)"], 16) - TEXT_START + base
    levels = 5 if note.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
    found = _by_tables(engine, root & paging.ADDRESS_MASK, levels)
    expected = LINKED_AT + offset
    if found.image.virtual != expected or found.physical != expected - TEXT_START + base:
        raise GuestDataError("VMCOREINFO and the page tables that it names disagree")
    found.evidence.append(Evidence("vmcoreinfo", True, f"KERNELOFFSET {offset:#x}"))
    return found


def _by_signature(engine: Engine) -> Iterator[Located]:
    """Kernels by their symbol table alone (VMCOREINFO missing: early boot, or wiped)."""
    for count, hit in enumerate(search(engine, SIGNATURE)):
        if count > MAX_CANDIDATES:
            return
        block = next(b for b in engine.ram() if b.gpa <= hit < b.end)
        start = max(block.gpa, (hit - (64 << 20)) & -(2 << 20))
        image = window(engine, start, min(block.end, hit + (64 << 20)) - start, 0)
        try:
            tables = tables_around(image, image.start + hit - start)
            yield _anchored(engine, image, tables, start)
        except DvisorError:
            continue


def _anchored(engine: Engine, image: Image, tables: Tables, physical: int) -> Located:
    """The image's virtual address, by page tables that are found through it and must map it."""
    symbols = Kallsyms(image, tables)
    text, top = symbols.lookup("_text"), symbols.lookup("init_top_pgt")
    banner, level = symbols.lookup("linux_banner"), symbols.lookup("__pgtable_l5_enabled")
    if text is None or top is None or banner is None:
        raise GuestDataError("the symbol table lacks _text, init_top_pgt or linux_banner")
    at = image.start
    for _ in range(MAX_CANDIDATES):
        at = image.buffer.find(_BANNER, at, image.end)
        if at < 0:
            break
        shift = (physical + at - image.start - banner) & MASK64  # physical = symbol + shift
        at += 1
        try:
            five = level is not None and engine.read(_moved(level, shift), 4)[0] == 1
            found = _by_tables(engine, _moved(top, shift), 5 if five else 4)
        except GuestDataError:
            continue
        if found.physical == _moved(text, shift):
            detail = f"symbol table at physical {physical + tables.tokens - image.start:#x}"
            found.evidence.append(Evidence("kallsyms", True, detail))
            return found
    raise GuestDataError("no page tables map the image that the symbol table belongs to")


def _moved(address: int, shift: int) -> GuestPhysical:
    return GuestPhysical((address + shift) & MASK64)


def search(engine: Engine, wanted: bytes) -> Iterator[GuestPhysical]:
    """Where ``wanted`` stands in the RAM that holds data."""
    blocks = engine.ram()
    for start, size in engine.populated():
        block = next((b for b in blocks if b.gpa <= start and start + size <= b.end), None)
        if block is not None and block.buffer is not None:
            yield from _search_buffer(block.buffer, block.offset - block.gpa, start, size, wanted)
            continue
        for gpa in range(start, start + size, _CHUNK):
            length = min(_CHUNK + len(wanted) - 1, start + size - gpa)
            raw = engine.read(GuestPhysical(gpa), length)
            yield from _search_buffer(raw, -gpa, gpa, length, wanted)


def _search_buffer(
    buffer: object, delta: int, start: int, size: int, wanted: bytes
) -> Iterator[GuestPhysical]:
    end = start + size + delta
    at = start + delta
    find = buffer.find  # type: ignore[attr-defined]  # bytes and mmap have it alike
    while (at := find(wanted, at, end)) >= 0:
        yield GuestPhysical(at - delta)
        at += 1


def window(engine: Engine, physical: int, size: int, virtual: int) -> Image:
    """Physical memory [physical, physical + size) as an image, in place where it is mapped."""
    for block in engine.ram():
        if block.gpa <= physical < block.end:
            size = min(size, block.end - physical)
            if block.buffer is None or isinstance(block.buffer, memoryview):
                raw = engine.read(GuestPhysical(physical), size)
                return Image(raw, 0, size, virtual)
            start = block.offset + physical - block.gpa
            return Image(block.buffer, start, start + size, virtual)
    raise GuestMemoryError(f"the kernel image at physical {physical:#x} is not in RAM", physical)
