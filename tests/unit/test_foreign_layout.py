"""Where RAM lies: the boards' rules, QEMU's own map, and reading across blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dvisor.addresses import GuestPhysical
from dvisor.errors import EngineError, GuestMemoryError, UnsupportedError
from dvisor.machine.engine import RamBlock
from dvisor.machine.foreign_mtree import parse_flatview, parse_memdevs
from dvisor.machine.layout import RamMap, RamSection, board_sections, low_ram_limit
from dvisor.machine.sparse import data_runs, united

MIB, GIB = 1 << 20, 1 << 30

FLATVIEW = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
{shadow}\
  0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000
  00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fe000000-00000000fe0fffff (prio 1, ram): shm0
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000017fffffff (prio 0, ram): pc.ram @0000000080000000 KVM
  0000000180000000-00000001bfffffff (prio 0, ram): /objects/dimm0
  00000001c0000000-00000001ffffffff (prio 0, ram): pmem0

FlatView #2
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
"""
SHADOWED = """\
  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000
  00000000000cb000-00000000000cdfff (prio 0, ram): pc.ram @00000000000cb000
  00000000000ce000-00000000000fffff (prio 0, rom): pc.ram @00000000000ce000
"""
FIRMWARE = """\
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  00000000000e0000-00000000000fffff (prio 1, rom): isa-bios
"""
MEMDEV = "memory backend: {}\n  size:  1073741824\n  merge: true\n"
MEMDEVS = "".join(MEMDEV.format(name) for name in ("pc.ram", "dimm0", "pmem0", "shm0"))
DEVICES = """\
Memory device [dimm]: "d0"
  addr: 0x180000000
  memdev: /objects/dimm0
Memory device [nvdimm]: "n0"
  memdev: /objects/pmem0
"""


@pytest.mark.parametrize("shadow", [SHADOWED, FIRMWARE, ""], ids=["linux", "reset", "nothing"])
def test_real_ram_of_the_flat_view_is_found_and_nothing_else(shadow: str) -> None:
    """The same before and after the firmware has made its area RAM."""
    names = parse_memdevs(MEMDEVS, DEVICES)
    assert parse_flatview(FLATVIEW.format(shadow=shadow), names) == (
        RamSection(0, 0xA0000, "pc.ram", 0),
        RamSection(0xC0000, 2 * GIB - 0xC0000, "pc.ram", 0xC0000),
        RamSection(4 * GIB, 2 * GIB, "pc.ram", 2 * GIB),
        RamSection(6 * GIB, 1 * GIB, "dimm0", 0),
    )


def test_flat_view_without_ram_is_an_error() -> None:
    with pytest.raises(EngineError, match="shows no RAM"):
        parse_flatview("FlatView #0\n", {"pc.ram"})


@pytest.mark.parametrize(
    ("board", "size", "limit", "low"),
    [
        ("q35", 512 * MIB, None, 512 * MIB),
        ("q35", 2815 * MIB, None, 2815 * MIB),
        ("q35", 2816 * MIB, None, 2048 * MIB),
        ("q35", 4 * GIB, 1 * GIB, 1 * GIB),
        ("pc", 3583 * MIB, None, 3583 * MIB),
        ("pc", 3584 * MIB, None, 3072 * MIB),
        ("pc", 4 * GIB, 2 * GIB, 2 * GIB),
        ("pc", 3968 * MIB, 4 * GIB, 3968 * MIB),
        ("microvm", 4 * GIB, None, 3 * GIB),
    ],
)
def test_low_ram_follows_the_rule_of_the_board(
    board: str, size: int, limit: int | None, low: int
) -> None:
    assert low_ram_limit(board, size, limit) == low


def test_board_sections_hold_all_ram_but_the_vga_window() -> None:
    assert board_sections("q35", 4 * GIB) == (
        RamSection(0, 0xA0000),
        RamSection(0xC0000, 2 * GIB - 0xC0000, offset=0xC0000),
        RamSection(4 * GIB, 2 * GIB, offset=2 * GIB),
    )


def test_unknown_board_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="isapc"):
        board_sections("isapc", 16 * MIB)


@pytest.fixture
def ram_map() -> RamMap:
    blocks = [
        RamBlock(GuestPhysical(0), 4, memoryview(b"..abcd"), 2),
        RamBlock(GuestPhysical(4), 4),
        RamBlock(GuestPhysical(16), 4, memoryview(b"wxyz")),
    ]
    return RamMap(blocks, lambda index, at, size: b"EFGH"[at : at + size] if index == 1 else b"")


@pytest.mark.parametrize(
    ("gpa", "size", "data"),
    [
        (0, 4, b"abcd"),
        (1, 2, b"bc"),
        (4, 4, b"EFGH"),
        (2, 4, b"cdEF"),
        (16, 4, b"wxyz"),
        (3, 0, b""),
    ],
)
def test_read_crosses_touching_blocks(ram_map: RamMap, gpa: int, size: int, data: bytes) -> None:
    assert ram_map.read(GuestPhysical(gpa), size) == data


@pytest.mark.parametrize(
    ("gpa", "size", "missing"),
    [(6, 4, 8), (8, 1, 8), (18, 4, 20), (1 << 60, 1, 1 << 60), (-1, 1, -1)],
)
def test_read_outside_ram_names_the_first_missing_byte(
    ram_map: RamMap, gpa: int, size: int, missing: int
) -> None:
    with pytest.raises(GuestMemoryError) as caught:
        ram_map.read(GuestPhysical(gpa), size)
    assert caught.value.address == missing


def test_negative_size_is_an_error(ram_map: RamMap) -> None:
    with pytest.raises(GuestMemoryError):
        ram_map.read(GuestPhysical(0), -1)


def test_data_runs_leave_out_the_holes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 10 * MIB)
    with path.open("r+b") as file:
        for at in (1 * MIB, 5 * MIB):
            file.seek(at)
            file.write(b"x" * 4096)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert list(data_runs(fd, 0, 10 * MIB)) == [(1 * MIB, 4096), (5 * MIB, 4096)]
        assert list(data_runs(fd, 2 * MIB, 3 * MIB)) == []
        assert list(data_runs(fd, 1 * MIB + 10, 20)) == [(1 * MIB + 10, 20)]
    finally:
        os.close(fd)


def test_united_runs_are_joined_where_they_touch() -> None:
    assert list(united([(10, 5), (0, 2)], [(15, 1), (1, 3), (30, 0)])) == [(0, 4), (10, 6)]
