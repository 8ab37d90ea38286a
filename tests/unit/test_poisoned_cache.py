"""A guest that tells lies leaves none of them behind for an honest one (dvisor/guest/cache.py)."""

from __future__ import annotations

import dataclasses
import mmap
import struct

import pytest

from dvisor.errors import GuestDataError
from dvisor.guest.cache import Source
from dvisor.guest.kallsyms import Image, Tables
from dvisor.guest.kernel import Kernel

TEXT = 0xFFFF_FFFF_8100_0000
TABLES = Tables(
    count=4,
    names=0x100,
    markers=0x180,
    tokens=0x200,
    index=0x400,
    offsets=0x600,
    base=0x610,
    seqs=0x618,
)
BTF = (0x800, 0xA00)


def source(virtual: int = TEXT, start: int = 0, base: int = 0) -> Source:
    """A kernel's bytes at ``virtual``, from position ``start`` of the buffer on; ``base`` is added
    to the base address of its symbols."""
    buffer = mmap.mmap(-1, 0x4000)
    for at in range(0x1000):
        buffer[start + at] = at * 7 & 0xFF
    struct.pack_into("<Q", buffer, start + 0x610, virtual + base)
    image = Image(buffer, start, start + 0x1000, virtual)
    return Source(image, TABLES.moved(start), (BTF[0] + start, BTF[1] + start))


def test_the_digest_of_a_kernel_is_the_same_wherever_kaslr_put_it() -> None:
    elsewhere = source(TEXT + 0x1E00_0000, start=0x2000)
    assert source().digest() == elsewhere.digest() == elsewhere.copy().digest()


def test_a_base_that_moves_all_symbols_has_another_digest() -> None:
    for base in (0x1000, -0x1000, -TEXT):
        assert source(base=base).digest() != source().digest()


@pytest.mark.parametrize("part", [(0x100, 0x600), (0x600, 0x610), (0x618, 0x624), BTF])
def test_one_changed_byte_has_another_digest(part: tuple[int, int]) -> None:
    honest = source().digest()
    for at in {part[0], sum(part) // 2, part[1] - 1}:
        changed = source()
        changed.image.buffer[at] ^= 1  # type: ignore[index]  # an mmap, not bytes
        assert changed.digest() != honest, hex(at)


def test_the_same_tables_elsewhere_in_the_image_have_another_digest() -> None:
    """Some offsets count from where they stand."""
    honest = source()
    image = dataclasses.replace(honest.image, start=0x800, end=0x1800, virtual=TEXT)
    honest.image.buffer[0x800:0x1800] = honest.image.buffer[0:0x1000]  # type: ignore[index]
    struct.pack_into("<Q", honest.image.buffer, 0xE10, TEXT)  # type: ignore[arg-type]
    same = Source(image, TABLES.moved(0x800), (0x1000, 0x1200))
    moved = Source(dataclasses.replace(image, virtual=TEXT, start=0x400), *same[1:])
    assert same.digest() == source().digest() != moved.digest()


def test_tables_outside_of_the_image_are_refused() -> None:
    honest = source()
    with pytest.raises(GuestDataError, match="leaves"):
        Source(honest.image, honest.tables, (0x800, 0x1001)).digest()
    for base in (-1, 0xFFC, 1 << 40):
        tables = dataclasses.replace(honest.tables, base=base)
        with pytest.raises(GuestDataError, match="leaves"):
            Source(honest.image, tables, honest.btf).digest()
    with pytest.raises(GuestDataError, match="leaves"):
        Source(honest.image, honest.tables.moved(-0x101), honest.btf).digest()


@pytest.mark.parametrize("at", [0x100, 0x600, 0x618, 0x800])
def test_tables_that_change_after_their_digest_answer_nothing(at: int) -> None:
    kernel = Kernel.__new__(Kernel)
    kernel._source, kernel._decoded = source(), None
    kernel.digest = kernel._source.digest()
    kernel._source.image.buffer[at] ^= 1  # type: ignore[index]
    with pytest.raises(GuestDataError, match="changed"):
        _ = kernel.types
    with pytest.raises(GuestDataError, match="changed"):
        _ = kernel.symbols
