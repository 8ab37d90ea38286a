"""How symbols, structures and memory are written and printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.cli import read, sym
from dvisor.errors import UsageError
from dvisor.guest.structures import Structure, StructureMember
from dvisor.guest.symbols import number


def test_numbers_are_written_as_in_c() -> None:
    assert number("4096") == number("0x1000") == 4096


@pytest.mark.parametrize("text", ["", "12monkeys", "-1", "0x1ffffffffffffffff", "1e3"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no number"):
        number(text)


def test_a_dump_looks_like_hexdump() -> None:
    assert list(read.lines(0x1000, b"Linux\0version 6.1\n")) == [
        "0000000000001000  4c 69 6e 75 78 00 76 65  72 73 69 6f 6e 20 36 2e  |Linux.version 6.|",
        "0000000000001010  31 0a                                             |1.|",
    ]


@given(st.binary(max_size=200), st.integers(0, (1 << 64) - 1))
def test_a_dump_has_every_byte_and_no_control_character(data: bytes, address: int) -> None:
    printed = list(read.lines(address, data))
    assert b"".join(bytes.fromhex(line[18:66]) for line in printed) == data
    assert all(line.isprintable() for line in printed)


def test_nested_structures_without_a_name_are_opened_and_closed() -> None:
    members = [
        StructureMember("int a", 0, 4, 0, 0, 0),
        StructureMember("union {...}", 8, 16, 0, 0, 0),
        StructureMember("struct {...} pair[2]", 8, 8, 0, 0, 1),
        StructureMember("u8 low", 8, 1, 0, 3, 2),
        StructureMember("u8 high", 8, 1, 3, 5, 2),
        StructureMember("void (*call)(...)", 24, 8, 0, 0, 0),
    ]
    printed = [
        line.split("/*")[0].rstrip() for line in sym.lines(Structure("struct x", 32, members))
    ]
    assert printed == [
        "struct x {",
        "    int a;",
        "    union {",
        "        struct {",
        "            u8 low:3;",
        "            u8 high:5;",
        "        } pair[2];",
        "    };",
        "    void (*call)(...);",
        "};",
    ]
