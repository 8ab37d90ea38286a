"""volatility3's symbol file, made of an invented kernel's tables."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.errors import GuestDataError, UsageError
from dvisor.guest import btf as bt
from dvisor.guest import isf
from dvisor.guest.btf import Btf
from dvisor.guest.kernel import Kernel
from dvisor.guest.locate import LINKED_AT
from tests.unit.btf_blob import BtfBlob

SHIFT = 0x0B40_0000
BANNER = b"Linux version 6.12 (invented)\n"


def made(blob: BtfBlob, **symbols: int) -> dict[str, Any]:
    """The symbol file of a kernel with these types and (running) symbol addresses."""
    kernel = SimpleNamespace(
        types=Btf(blob.raw()),
        image=SimpleNamespace(virtual=LINKED_AT + SHIFT),
        banner=BANNER,
        symbols=SimpleNamespace(
            names=["D" + name for name in symbols], addresses=list(symbols.values())
        ),
    )
    return isf.document(cast(Kernel, kernel))


def test_anonymous_member_is_named_by_its_offset_and_marked() -> None:
    blob = BtfBlob()
    number = blob.integer("int", 4, signed=True)
    inner = blob.compound("", 8, ("a", number, 0, 0), ("b", number, 0, 0), kind=bt.UNION)
    blob.compound("outer", 16, ("x", number, 0, 0), ("", inner, 64, 0))
    types = made(blob)["user_types"]
    field = types["outer"]["fields"]["unnamed_field_8"]
    assert field["anonymous"]
    assert field["offset"] == 8
    assert types[field["type"]["name"]]["kind"] == "union"


def test_anonymous_structure_takes_the_name_of_its_typedef() -> None:
    blob = BtfBlob()
    number = blob.integer("int", 4, signed=True)
    structure = blob.compound("", 4, ("counter", number, 0, 0))
    typedef = blob.add(bt.TYPEDEF, "atomic_t", structure)
    blob.compound("page", 4, ("_refcount", typedef, 0, 0))
    types = made(blob)["user_types"]
    assert types["page"]["fields"]["_refcount"]["type"] == {"kind": "struct", "name": "atomic_t"}
    assert "counter" in types["atomic_t"]["fields"]


def test_two_structures_of_one_name_are_both_kept() -> None:
    blob = BtfBlob()
    first, second = blob.compound("info", 8), blob.compound("info", 16)
    blob.compound("user", 16, ("a", blob.pointer(first), 0, 0), ("b", blob.pointer(second), 64, 0))
    types = made(blob)["user_types"]
    fields = types["user"]["fields"]
    sizes = [types[fields[name]["type"]["subtype"]["name"]]["size"] for name in ("a", "b")]
    assert sizes == [8, 16]
    assert types["info"]["size"] == 8


@given(unit=st.sampled_from([1, 2, 4, 8]), start=st.integers(0, 200), width=st.integers(1, 64))
def test_bit_field_is_read_from_where_btf_says(unit: int, start: int, width: int) -> None:
    width = min(width, 8 * unit)
    blob = BtfBlob()
    number = blob.integer("number", unit)
    blob.compound("bits", 64, ("field", number, start, width))
    field = made(blob)["user_types"]["bits"]["fields"]["field"]
    kind = field["type"]
    assert kind["kind"] == "bitfield"
    assert 8 * field["offset"] + kind["bit_position"] == start
    assert kind["bit_length"] == width
    aligned = start // (8 * unit) == (start + width - 1) // (8 * unit)
    assert not aligned or kind["bit_position"] + width <= 8 * unit


def test_addresses_are_as_linked_and_per_cpu_offsets_stay() -> None:
    symbols = made(BtfBlob(), _text=LINKED_AT + SHIFT, cpu_number=0x1234)["symbols"]
    assert symbols["_text"]["address"] == LINKED_AT
    assert symbols["cpu_number"]["address"] == 0x1234


def test_known_variables_have_their_types() -> None:
    blob = BtfBlob()
    task = blob.compound("task_struct", 64)
    blob.integer("char", 1)
    blob.integer("long unsigned int", 8)
    at = LINKED_AT + SHIFT
    symbols = made(blob, init_task=at, linux_banner=at + 64, avenrun=at + 96, end=at + 120)[
        "symbols"
    ]
    assert task
    assert symbols["init_task"]["type"] == {"kind": "struct", "name": "task_struct"}
    assert symbols["linux_banner"]["type"]["count"] == 32
    assert symbols["avenrun"]["type"]["count"] == 3
    assert symbols["end"]["type"] == {"kind": "base", "name": "void"}


def test_variable_that_does_not_fit_before_the_next_symbol_has_no_type() -> None:
    blob = BtfBlob()
    blob.compound("task_struct", 64)
    at = LINKED_AT + SHIFT
    symbols = made(blob, init_task=at, next=at + 8)["symbols"]
    assert symbols["init_task"]["type"] == {"kind": "base", "name": "void"}


def test_banner_is_there_for_volatility_to_find_the_kernel_by() -> None:
    symbols = made(BtfBlob(), linux_banner=LINKED_AT + SHIFT)["symbols"]
    assert base64.b64decode(symbols["linux_banner"]["constant_data"]) == BANNER + b"\0"


def test_timekeeper_is_found_where_btf_lacks_its_variables_type() -> None:
    blob = BtfBlob()
    blob.compound("timekeeper", 288)
    document = made(blob, tk_core=LINKED_AT + SHIFT)
    structure = document["user_types"][document["symbols"]["tk_core"]["type"]["name"]]
    assert structure["fields"]["timekeeper"]["offset"] == 8


def test_pointer_that_points_to_its_own_type_is_an_error() -> None:
    blob = BtfBlob()
    blob.compound("hostile", 8, ("self", 2, 0, 0))
    blob.pointer(2)
    with pytest.raises(GuestDataError):
        made(blob)


def test_file_name_that_volatility_would_not_find_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="json"):
        isf.write(cast(Kernel, None), tmp_path / "kernel.isf")
