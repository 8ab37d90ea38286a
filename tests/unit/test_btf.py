"""Types, made up, come out of BTF as they went in; what is damaged is a clear error."""

from __future__ import annotations

import struct

import pytest

from dvisor.errors import GuestDataError, NotFoundError
from dvisor.guest.btf import MAX_CHAIN, STRUCT, Btf, Member
from dvisor.guest.records import Place, place
from tests.unit.synthetic_btf import BtfBuilder, sample

TASK = {
    "pid": Place(0, "i", 4),
    "left": Place(8, "Q", 8),
    "right": Place(16, "I", 4),
    "whole": Place(8, "Q", 8),
    "tasks": Place(24, "", 16),
    "tasks.next": Place(24, "Q", 8),
    "tasks.prev": Place(32, "Q", 8),
    "comm": Place(40, "16s", 16),
    "table": Place(56, "", 60),
    "flag_a": Place(116, "B", 1, 0, 1),
    "flag_b": Place(116, "B", 1, 1, 5),
    "wide": Place(120, "Q", 8, 6, 40),
}


@pytest.fixture(scope="module")
def types() -> Btf:
    return sample().btf()


@pytest.mark.parametrize("path", TASK)
def test_a_member_is_placed_and_decoded(types: Btf, path: str) -> None:
    assert place(types, "task", path) == TASK[path]
    assert place(types, "task_t", path) == TASK[path]


@pytest.mark.parametrize("path", ["no", "pid.no", "tasks.no", "tasks.next.prev", ".pid", "pid."])
def test_what_is_no_member_has_no_place(types: Btf, path: str) -> None:
    assert place(types, "task", path) is None


def test_a_structure_without_bit_fields_has_plain_offsets(types: Btf) -> None:
    assert place(types, "plain", "late") == Place(4, "I", 4)


@pytest.mark.parametrize("name", ["no", "pid_t", "int", "state", ""])
def test_what_is_no_structure_is_not_found(types: Btf, name: str) -> None:
    with pytest.raises(NotFoundError, match="no struct"):
        types.structure(name)


def test_constants_are_found_in_any_enumeration(types: Btf) -> None:
    wanted = {"RUNNING": 0, "DEAD": -1, "BIG": 1 << 40, "ALL": (1 << 64) - 1, "pid": None}
    assert {name: types.constant(name) for name in wanted} == wanted


def test_a_module_adds_to_the_types_of_the_kernel(types: Btf) -> None:
    builder = BtfBuilder(types)
    task = types.structure("task")
    own = builder.struct("own", 160, [("base", task, 0), ("count", 2, 1216)])
    builder.struct("plain", 4, [("early", 2, 0)])
    builder.enum("mine", 4, {"MODULE": 7})
    module = builder.btf()
    assert own == types.end_id
    assert place(module, "own", "base.tasks.prev") == Place(32, "Q", 8)
    assert place(module, "own", "count") == Place(152, "I", 4)
    assert place(module, "task", "comm") == TASK["comm"]
    assert place(module, "plain", "late") is None, "a module's own type comes first"
    assert module.constant("MODULE") == 7
    assert module.constant("DEAD") == -1
    assert types.constant("MODULE") is None
    assert types.find("own", STRUCT) is None


def test_a_chain_of_typedefs_ends(types: Btf) -> None:
    b = BtfBuilder()
    last = b.int("int", 4, signed=True)
    for _ in range(MAX_CHAIN - 1):
        last = b.typedef("t", last)
    b.struct("deep", 4, [("x", last, 0)])
    assert place(b.btf(), "deep", "x") == Place(0, "i", 4)


def test_types_in_a_loop_are_an_error() -> None:
    b = BtfBuilder()
    b.typedef("one", 2)
    b.typedef("other", 1)
    b.struct("s", 4, [("x", 1, 0)])
    b.array(4, 2)
    b.struct("a", 4, [("x", 4, 0)])
    types = b.btf()
    for name in ("s", "a"):
        with pytest.raises(GuestDataError, match="loop"):
            place(types, name, "x")


def test_structures_that_contain_themselves_end() -> None:
    b = BtfBuilder()
    b.struct("s", 8, [("", 1, 0), ("", 1, 0), ("x", 2, 0)])
    b.int("int", 4)
    found = b.btf().member(1, "y")
    assert found is None


@pytest.mark.parametrize("type_id", [3, 1 << 20, (1 << 32) - 1])
def test_a_type_that_is_not_there_is_an_error(type_id: int) -> None:
    b = BtfBuilder()
    b.struct("s", 4, [("x", type_id, 0)])
    with pytest.raises(GuestDataError, match="BTF has no type"):
        place(b.btf(), "s", "x")


def test_a_name_outside_of_the_strings_is_an_error() -> None:
    b = BtfBuilder()
    b.struct("s", 4, [("x", 0, 0)])
    raw = bytearray(b.blob())
    struct.pack_into("<I", raw, 24 + 12, 1 << 30)
    with pytest.raises(GuestDataError, match="no string"):
        place(Btf(bytes(raw)), "s", "x")


def test_a_name_without_end_is_not_copied_whole() -> None:
    b = BtfBuilder()
    b.struct("s", 4, [("x" * (1 << 20), 0, 0)])
    with pytest.raises(GuestDataError, match="no string"):
        place(b.btf(), "s", "y")


@pytest.mark.parametrize(
    ("at", "fmt", "value"),
    [
        (0, "<H", 0x9FEB),  # magic
        (2, "<B", 2),  # version
        (4, "<I", 8),  # hdr_len
        (4, "<I", 0xFFFF_FFFF),
        (8, "<I", 2),  # type_off
        (8, "<I", 0xFFFF_FFFC),
        (12, "<I", 0xFFFF_FFFC),  # type_len
        (16, "<I", 0xFFFF_FFFF),  # str_off
        (20, "<I", 0xFFFF_FFFF),  # str_len
    ],
)
def test_a_header_that_lies_is_an_error(at: int, fmt: str, value: int) -> None:
    raw = bytearray(sample().blob())
    struct.pack_into(fmt, raw, at, value)
    with pytest.raises(GuestDataError):
        Btf(bytes(raw))


@pytest.mark.parametrize("size", [0, 1, 23, 24, 100])
def test_a_blob_that_is_cut_off_is_an_error(size: int) -> None:
    with pytest.raises(GuestDataError):
        Btf(sample().blob()[:size])


def test_a_last_type_that_is_cut_off_is_an_error() -> None:
    b = BtfBuilder()
    b.raw("", STRUCT, 0xFFFF, 4)
    with pytest.raises(GuestDataError, match="cut off"):
        _ = b.btf().end_id


def test_an_absurdly_large_array_of_bytes_is_no_text() -> None:
    """Reading one must not take the host's memory."""
    b = BtfBuilder()
    u8 = b.int("u8", 1)
    b.struct("s", 4, [("x", b.array(u8, 0xFFFF_FFFF), 0)])
    found = place(b.btf(), "s", "x")
    assert found is not None
    assert found.code == ""


def test_a_members_offset_is_in_bytes() -> None:
    assert Member(77, 3, 1).offset == 9
