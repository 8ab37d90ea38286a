"""drgn's types made of BTF."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dvisor.guest.btf import Btf
from dvisor.guest.kernel import Kernel
from tests.unit.btf_blob import BtfBlob

drgn = pytest.importorskip("drgn")


def program(blob: BtfBlob, memory: bytes = b"") -> Any:
    """A drgn program with these types and ``memory`` at address 0x1000."""
    from dvisor.guest.drgn_types import TypeFinder

    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    kernel = cast(Kernel, SimpleNamespace(types=Btf(blob.raw())))
    prog.register_type_finder("test", TypeFinder(prog, kernel), enable_index=0)
    if memory:
        prog.add_memory_segment(
            0x1000, len(memory), lambda _address, size, offset, _p: memory[offset : offset + size]
        )
    return prog


def test_structure_that_points_to_itself_is_followed() -> None:
    blob = BtfBlob()
    number = blob.integer("int", 4, signed=True)
    node = blob.compound("node", 16, ("next", number + 2, 0, 0), ("value", number, 64, 0))
    assert blob.pointer(node) == number + 2
    memory = (0x1010).to_bytes(8, "little") + bytes(8) + bytes(8) + b"\xff\xff\xff\xff" + bytes(4)
    first = drgn.Object(program(blob, memory), "struct node", address=0x1000)
    assert first.next.value.value_() == -1


def test_bit_field_and_anonymous_member_are_read() -> None:
    blob = BtfBlob()
    number = blob.integer("unsigned int", 4)
    inner = blob.compound("", 4, ("low", number, 0, 4), ("high", number, 4, 12))
    blob.compound("outer", 8, ("", inner, 32, 0))
    memory = bytes(4) + (0xABC5).to_bytes(4, "little")
    found = drgn.Object(program(blob, memory), "struct outer", address=0x1000)
    assert (found.low.value_(), found.high.value_()) == (0x5, 0xABC)


def test_char_array_reads_as_a_string() -> None:
    blob = BtfBlob()
    blob.compound("task", 8, ("comm", blob.array(blob.integer("char", 1), 8), 0, 0))
    found = drgn.Object(program(blob, b"swapper\0"), "struct task", address=0x1000)
    assert found.comm.string_() == b"swapper"


def test_enumeration_has_its_constants() -> None:
    blob = BtfBlob()
    blob.enumeration("state", 4, DEAD=-1, ALIVE=7)
    kind = program(blob).type("enum state")
    assert [(name, value) for name, value in kind.enumerators] == [("DEAD", -1), ("ALIVE", 7)]


def test_type_of_another_kind_or_name_is_not_found() -> None:
    blob = BtfBlob()
    blob.compound("task", 8)
    with pytest.raises(LookupError):
        program(blob).type("union task")
