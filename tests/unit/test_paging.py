"""Page tables, made up, translate as the Intel SDM says; those that lie end in an error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.addresses import PAGE_SIZE, GuestPhysical
from dvisor.errors import GuestMemoryError
from dvisor.guest.memory import Linear, Memory
from dvisor.guest.paging import (
    LARGE,
    NO_EXECUTE,
    PRESENT,
    USER,
    WRITABLE,
    Mapping,
    large_pages,
    shifts,
    translate,
)
from dvisor.machine.engine import RamBlock

RAM_BYTES = 1 << 20
ROOT = 0x1000
ALL = PRESENT | WRITABLE | USER
KERNEL = 0xFFFF_FFFF_8000_0000


class TableMemory:
    """RAM from 0 on, in which tables are made as they are needed; the ``Engine`` of a Memory."""

    def __init__(self) -> None:
        self.ram_bytes = bytearray(RAM_BYTES)
        self.next_table = ROOT + PAGE_SIZE
        self.reads = 0

    def ram(self) -> tuple[RamBlock, ...]:
        return (RamBlock(GuestPhysical(0), RAM_BYTES),)

    def read(self, gpa: GuestPhysical, size: int) -> bytes:
        self.reads += 1
        if gpa < 0 or gpa + size > RAM_BYTES:
            raise GuestMemoryError(f"{gpa:#x} is not in RAM", gpa)
        return bytes(self.ram_bytes[gpa : gpa + size])

    def put(self, gpa: int, value: int) -> None:
        struct.pack_into("<Q", self.ram_bytes, gpa, value)

    def map(self, levels: int, virtual: int, entry: int, size: int = PAGE_SIZE) -> int:
        """Let ``virtual`` be translated by ``entry``; returns where that entry stands."""
        table = ROOT
        for shift in shifts(levels):
            at = table + 8 * (virtual >> shift & 0x1FF)
            if 1 << shift == size:
                self.put(at, entry)
                return at
            (there,) = struct.unpack_from("<Q", self.ram_bytes, at)
            if not there:
                there = self.next_table | ALL
                self.put(at, there)
                self.next_table += PAGE_SIZE
            table = there & ~0xFFF
        raise AssertionError


SIZES = {PAGE_SIZE: 0, 2 << 20: LARGE, 1 << 30: LARGE}


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("size", SIZES)
def test_a_page_of_any_size_is_translated(levels: int, size: int) -> None:
    tables = TableMemory()
    tables.map(levels, KERNEL, 0x4000_0000 | PRESENT | WRITABLE | SIZES[size] | NO_EXECUTE, size)
    expected = Mapping(KERNEL, 0x4000_0000, size, True, False, False)  # type: ignore[arg-type]
    for inside in (0, 1, size - 1):
        assert translate(tables.read, ROOT, levels, KERNEL + inside) == expected
    with pytest.raises(GuestMemoryError):
        translate(tables.read, ROOT, levels, KERNEL + size)


@pytest.mark.parametrize("levels", [4, 5])
def test_rights_are_those_of_all_levels(levels: int) -> None:
    tables = TableMemory()
    tables.map(levels, 0x40_0000, 0x8000 | ALL)
    page = translate(tables.read, ROOT, levels, 0x40_0000)
    assert (page.writable, page.user, page.executable) == (True, True, True)
    top = ROOT + 8 * (0x40_0000 >> shifts(levels)[0] & 0x1FF)
    (entry,) = struct.unpack_from("<Q", tables.ram_bytes, top)
    tables.put(top, entry & ~(WRITABLE | USER) | NO_EXECUTE)
    page = translate(tables.read, ROOT, levels, 0x40_0000)
    assert (page.writable, page.user, page.executable) == (False, False, False)


def test_bits_that_are_no_address_are_left_out() -> None:
    """Protection keys, ignored bits, PAT: SDM vol. 3A, table 4-20."""
    tables = TableMemory()
    tables.map(4, KERNEL, 0x7FF0_0000_0020_1000 | PRESENT | LARGE, 2 << 20)  # PAT is bit 12
    page = translate(tables.read, ROOT | 0xFFF, 4, KERNEL)
    assert page.physical == 0x20_0000


@pytest.mark.parametrize("levels", [4, 5])
def test_a_table_that_is_its_own_child_is_walked_once_a_level(levels: int) -> None:
    tables = TableMemory()
    for index in range(512):
        tables.put(ROOT + 8 * index, ROOT | ALL)
    page = translate(tables.read, ROOT, levels, 0x1234_5678)
    assert page.physical == ROOT
    assert tables.reads == levels


@pytest.mark.parametrize("entry", [RAM_BYTES | ALL, 0x000F_FFFF_FFFF_F000 | ALL])
def test_a_table_outside_of_ram_is_an_error(entry: int) -> None:
    tables = TableMemory()
    tables.map(4, KERNEL, entry, 2 << 20)
    with pytest.raises(GuestMemoryError):
        translate(tables.read, ROOT, 4, KERNEL)


def test_the_slots_of_an_image_are_found_whatever_their_pages_are() -> None:
    tables = TableMemory()
    tables.map(4, KERNEL + (16 << 20), 0x200_0000 | PRESENT | LARGE, 2 << 20)
    tables.map(4, KERNEL + (18 << 20) + 0x3000, 0x220_3000 | PRESENT)  # split, first page absent
    tables.map(4, KERNEL + (20 << 20), RAM_BYTES * 9 | PRESENT, 2 << 20)  # split, table not in RAM
    found = list(large_pages(tables.read, ROOT, 4, KERNEL))
    assert found == [(KERNEL + (16 << 20), 0x200_0000), (KERNEL + (18 << 20), 0x220_0000)]


entries = st.tuples(
    st.integers(0, 16 * 512 - 1), st.integers(0, 2**64 - 1) | st.integers(0, RAM_BYTES)
)


@given(st.lists(entries, max_size=40), st.integers(-(2**65), 2**65), st.sampled_from([4, 5]))
def test_any_tables_translate_or_refuse_in_bounds(
    made_up: list[tuple[int, int]], address: int, levels: int
) -> None:
    tables = TableMemory()
    for index, entry in made_up:
        tables.put(ROOT + 8 * index, entry)
        tables.put(ROOT + 8 * (address >> shifts(levels)[0] & 0x1FF), entry)
    memory = Memory(tables, ROOT, levels, ())  # type: ignore[arg-type]
    for ask in (lambda: memory.read(address, 16), lambda: memory.string(address, 9000)):
        try:
            ask()
        except GuestMemoryError:
            continue
    list(zip(range(513), large_pages_or_none(tables, levels, address), strict=False))
    assert tables.reads < 1000


def large_pages_or_none(tables: TableMemory, levels: int, address: int) -> list[tuple[int, int]]:
    try:
        return list(large_pages(tables.read, ROOT, levels, address & 0xFFFF_FFFF_C000_0000))
    except GuestMemoryError:
        return []


@pytest.mark.parametrize("address", [1 << 47, 1 << 63, 0xFFFF_7FFF_FFFF_FFFF, 1 << 64, -8])
def test_an_address_that_is_not_canonical_is_an_error(address: int) -> None:
    memory = Memory(TableMemory(), ROOT, 4, ())  # type: ignore[arg-type]
    with pytest.raises(GuestMemoryError, match="canonical"):
        memory.u64(address)


def test_a_read_crosses_from_page_to_page() -> None:
    tables = TableMemory()
    tables.map(4, 0x40_0000, 0x8_0000 | ALL)
    tables.map(4, 0x40_1000, 0x9_0000 | ALL)
    tables.ram_bytes[0x8_0FFE:0x8_1000], tables.ram_bytes[0x9_0000:0x9_0003] = b"ab", b"cd\0"
    memory = Memory(tables, ROOT, 4, ())  # type: ignore[arg-type]
    assert memory.read(0x40_0FFE, 4) == b"abcd"
    assert memory.string(0x40_0FFE) == b"abcd"
    assert memory.string(0x40_0FFE, 3) == b"abc"
    with pytest.raises(GuestMemoryError) as caught:
        memory.read(0x40_1FFE, 4)
    assert caught.value.address == 0x40_2000


@pytest.mark.parametrize("size", [-1, 1 << 40, (64 << 20) + 1])
def test_an_absurd_size_is_refused(size: int) -> None:
    tables = TableMemory()
    memory = Memory(tables, ROOT, 4, (Linear(KERNEL, 0, RAM_BYTES),))  # type: ignore[arg-type]
    with pytest.raises(GuestMemoryError, match="refused"):
        memory.read(KERNEL, size)
    assert not tables.reads


def test_a_linear_map_ends_where_ram_does() -> None:
    tables = TableMemory()
    memory = Memory(tables, ROOT, 4, (Linear(KERNEL, 0, 4 * RAM_BYTES),))  # type: ignore[arg-type]
    assert memory.read(KERNEL + RAM_BYTES - 4, 4) == bytes(4)
    for address in (KERNEL + RAM_BYTES - 2, KERNEL + RAM_BYTES, KERNEL + 4 * RAM_BYTES):
        with pytest.raises(GuestMemoryError):
            memory.read(address, 4)
