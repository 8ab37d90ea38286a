"""Dumps of each format, made by hand: what they hold, and what is wrong with the wrong ones."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from dvisor.addresses import GuestPhysical
from dvisor.errors import (
    DvisorError,
    GuestMemoryError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from dvisor.machine.corefile import is_core, open_core
from dvisor.machine.corefile_formats import ELF_HEADER, PROGRAM_HEADER

MIB = 1 << 20
LIME = struct.Struct("<IIQQ8x")


def elf(
    loads: list[tuple[int, bytes, int]],
    *,
    notes: bytes = b"",
    kind: int = 4,
    machine: int = 62,
    entry_size: int = 56,
    count: int | None = None,
) -> bytes:
    """An ELF core of (gpa, bytes, bytes of zeros behind them)."""
    number = len(loads) + 1
    at = ELF_HEADER.size + number * PROGRAM_HEADER.size
    headers = [PROGRAM_HEADER.pack(4, 0, at, 0, 0, len(notes), len(notes), 4)]
    body = notes
    for gpa, data, zeros in loads:
        size = len(data)
        headers.append(PROGRAM_HEADER.pack(1, 7, at + len(body), 0, gpa, size, size + zeros, 0))
        body += data
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = ELF_HEADER.pack(
        ident, kind, machine, 1, 0, 64, 0, 0, 64, entry_size, count or number, 0, 0, 0
    )
    return head + b"".join(headers) + body


def page(letter: str, pages: int = 1) -> bytes:
    return letter.encode() * (4096 * pages)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dump"


def test_elf_memory_is_found_by_physical_address(path: Path) -> None:
    path.write_bytes(elf([(0x1000, page("a"), 0), (0x9000, page("b"), 0)]))
    engine = open_core(path)
    assert engine.read(GuestPhysical(0x1FFF), 1) == b"a"
    assert engine.read(GuestPhysical(0x9000), 2) == b"bb"
    with pytest.raises(GuestMemoryError):
        engine.read(GuestPhysical(0x8FFF), 2)
    engine.close()
    engine.close()


def test_pages_a_dump_leaves_out_are_zeros_and_not_searched(path: Path) -> None:
    path.write_bytes(elf([(0x1000, page("a"), 0x3000), (0x3000, page("b"), 0)]))
    engine = open_core(path)
    assert engine.read(GuestPhysical(0x1FFE), 4) == b"aa\0\0"
    assert engine.read(GuestPhysical(0x3000), 1) == b"b"
    assert engine.read(GuestPhysical(0x4FFF), 1) == b"\0"
    assert [(block.gpa, block.size) for block in engine.ram()] == [
        (0x1000, 0x1000),
        (0x2000, 0x1000),
        (0x3000, 0x1000),
        (0x4000, 0x1000),
    ]
    assert list(engine.populated()) == [(0x1000, 0x1000), (0x3000, 0x1000)]


def test_memory_listed_twice_is_held_once(path: Path) -> None:
    """As /proc/vmcore does with the kernel's text."""
    path.write_bytes(elf([(0x2000, page("b"), 0), (0x1000, page("a") + page("b", 3), 0)]))
    engine = open_core(path)
    assert [(block.gpa, block.size) for block in engine.ram()] == [(0x1000, 0x4000)]


def test_memory_listed_twice_that_differs_is_damage(path: Path) -> None:
    path.write_bytes(elf([(0x2000, page("x"), 0), (0x1000, page("a", 4), 0)]))
    with pytest.raises(UsageError, match="different memory at 0x2000"):
        open_core(path)


def test_core_without_qemu_notes_has_no_registers(path: Path) -> None:
    path.write_bytes(elf([(0x1000, page("a"), 0)]))
    engine = open_core(path)
    with pytest.raises(UnsupportedError, match="no vCPU state"):
        engine.registers()
    assert engine.vmcoreinfo is None
    assert engine.epoch() == 0
    assert engine.knows_resets
    with engine.stopped():
        assert not engine.live


def test_lime_dump_is_read(path: Path) -> None:
    path.write_bytes(
        LIME.pack(0x4C694D45, 1, 0x1000, 0x1FFF)
        + page("a")
        + LIME.pack(0x4C694D45, 1, 0x100000000, 0x100001FFF)
        + page("b", 2)
    )
    engine = open_core(path)
    assert engine.read(GuestPhysical(0x1000), 1) == b"a"
    assert engine.read(GuestPhysical(0x100001FFF), 1) == b"b"
    assert list(engine.populated()) == [(0x1000, 0x1000), (0x100000000, 0x2000)]


def test_raw_image_is_flat(path: Path) -> None:
    path.write_bytes(bytes(MIB) + page("z", 256))
    engine = open_core(path)
    assert engine.read(GuestPhysical(MIB), 1) == b"z"


def test_raw_says_that_a_header_is_memory_too(path: Path) -> None:
    path.write_bytes(elf([(0, b"", 0)]).ljust(MIB, b"\0"))
    assert open_core(path, raw=True).read(GuestPhysical(0), 4) == b"\x7fELF"


@pytest.mark.parametrize(("layout", "low_mib"), [("q35", 2048), ("pc", 3072), ("microvm", 3072)])
def test_raw_image_is_split_as_its_board_was(path: Path, layout: str, low_mib: int) -> None:
    path.touch()
    os.truncate(path, 4096 * MIB)
    with path.open("r+b") as file:
        file.seek(low_mib * MIB)
        file.write(b"high")
    engine = open_core(path, layout=layout)  # type: ignore[arg-type]
    assert engine.read(GuestPhysical(4096 * MIB), 4) == b"high"
    with pytest.raises(GuestMemoryError):
        engine.read(GuestPhysical(low_mib * MIB), 1)


def test_large_raw_image_needs_its_layout(path: Path) -> None:
    path.touch()
    os.truncate(path, 4096 * MIB)
    with pytest.raises(UsageError, match="give its layout"):
        open_core(path)


USER_CORE = elf([(0, page("a"), 0), (0, page("b"), 0)])


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", UsageError, "no memory dump"),
        (b"hello", UsageError, "no memory dump"),
        (b"\x7fELF", UsageError, "within its header"),
        (elf([], kind=2), UsageError, "not a core file"),
        (elf([], machine=183), UnsupportedError, "not of a 64-bit x86 machine"),
        (elf([], entry_size=32), UsageError, "program headers of 32 bytes"),
        (elf([], count=60000), UsageError, "truncated or damaged"),
        (elf([(0x1000, page("a"), 0)])[:-1], UsageError, "truncated"),
        (elf([(0x1000, page("a"), 1 << 60)]), UsageError, "ends at 0x1"),
        (elf([], notes=struct.pack("<III", 5, 1 << 30, 1) + b"CORE"), UsageError, "notes"),
        (USER_CORE, UnsupportedError, "of a program"),
        (LIME.pack(0x4C694D45, 1, 0x1000, 0x2FFF) + page("a"), UsageError, "truncated"),
        (LIME.pack(0x4C694D45, 1, 0x1000, 0) + page("a"), UsageError, "damaged"),
        (LIME.pack(0x4C694D45, 9, 0, 0xFFF) + page("a"), UsageError, "damaged"),
        (b"KDUMP   ".ljust(4096), UnsupportedError, "kdump-compressed.*makedumpfile -E"),
        (b"makedumpfile\0\0\0\0".ljust(4096), UnsupportedError, "flattened"),
    ],
)
def test_bad_dump_says_what_is_wrong(
    path: Path, content: bytes, error: type[DvisorError], message: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        open_core(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_not_found(path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_core(path)


@pytest.mark.timeout(20)
def test_fifo_and_directory_are_no_dumps(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path)
    for other in (path, tmp_path):
        assert not is_core(other)
        with pytest.raises(UsageError):
            open_core(other)


def test_dumps_are_recognised(path: Path) -> None:
    assert not is_core(path)
    for content, core in ((elf([]), True), (bytes(MIB), True), (bytes(MIB - 1), False)):
        path.write_bytes(content)
        assert is_core(path) is core
