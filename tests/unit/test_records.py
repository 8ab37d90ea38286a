"""Several members read at once, in the order asked for."""

from __future__ import annotations

import pytest

from dvisor.errors import GuestMemoryError, NotFoundError, UnsupportedError
from dvisor.guest.records import Place, Record
from tests.unit.fake_kernel import FakeKernel

A, B = 0x1000, 0x5FFC
LAYOUT = {
    "task.pid": (8, "i"),
    "task.comm": (16, "16s"),
    "task.next": (0, "Q"),
    "task.table": (40, "5I"),
    "task.new_name": (32, "H"),
}


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel(LAYOUT)
    raw = (0x1122_3344).to_bytes(8, "little") + (-7).to_bytes(8, "little", signed=True)
    raw += b"init\0garbage....\x2a\x01" + bytes(8)
    kernel.memory.write(A, raw)
    kernel.memory.write(B, raw)
    return kernel


@pytest.mark.parametrize("address", [A, B])
def test_members_come_in_the_order_asked_for(kernel: FakeKernel, address: int) -> None:
    record = kernel.record("task", "pid", "comm[]", "next", "pid")
    assert record.read(address) == (-7, b"init\0garbage....", 0x1122_3344, -7)


def test_a_renamed_member_goes_by_either_name(kernel: FakeKernel) -> None:
    assert kernel.record("task", "old_name|new_name").read(A) == (0x12A,)


def test_an_optional_member_that_lacks_is_none(kernel: FakeKernel) -> None:
    record = kernel.record("task", "gone?", "pid", "also|gone[]?")
    assert record.read(A) == (None, -7, None)
    assert kernel.record("task", "gone?").read(0) == (None,)


def test_a_member_that_lacks_is_named(kernel: FakeKernel) -> None:
    with pytest.raises(NotFoundError, match="no member gone or lost"):
        kernel.record("task", "gone|lost")


@pytest.mark.parametrize("field", ["comm", "pid[]", "table", "table[]", "next[]?", "comm?"])
def test_a_member_of_another_kind_than_asked_for_is_refused(kernel: FakeKernel, field: str) -> None:
    """The guest tells its types itself: a pid that it calls an array must not reach a view."""
    with pytest.raises(UnsupportedError, match="in this kernel"):
        kernel.record("task", field)


@pytest.mark.parametrize(("shift", "bits"), [(0, 1), (3, 4), (8, 1), (0, 16)])
def test_a_bit_field_is_cut_out(kernel: FakeKernel, shift: int, bits: int) -> None:
    record = Record(kernel.memory, "task", [Place(32, "H", 2, shift, bits)])
    assert record.read(A) == (0x12A >> shift & (1 << bits) - 1,)


def test_members_that_overlap_are_refused(kernel: FakeKernel) -> None:
    with pytest.raises(UnsupportedError, match="overlap"):
        Record(kernel.memory, "task", [Place(32, "H", 2), Place(33, "B", 1)])


def test_unmapped_memory_is_an_error(kernel: FakeKernel) -> None:
    with pytest.raises(GuestMemoryError):
        kernel.record("task", "pid").read(0xFFFF_0000)
