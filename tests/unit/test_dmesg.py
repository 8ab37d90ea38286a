"""The printk ring buffer, written as the kernel writes it, read as dvisor reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.cli.dmesg import lines
from dvisor.errors import GuestDataError
from dvisor.guest.dmesg import LogRecord, block, read_log
from tests.unit.invented import InventedKernel

RING, DESCS, INFOS, DATA, POINTER = (0xFFFF_FFFF_9000_0000 + (i << 20) for i in range(5))
MASK = (1 << 64) - 1
FINALIZED = 2 << 62

STRUCTURES = {
    "prb_desc": (
        24,
        {
            "state_var.counter": (0, "q"),
            "text_blk_lpos.begin": (8, "Q"),
            "text_blk_lpos.next": (16, "Q"),
        },
    ),
    "printk_info": (
        88,
        {
            "seq": (0, "Q"),
            "ts_nsec": (8, "Q"),
            "text_len": (16, "H"),
            "facility": (18, "B"),
            "level": (19, "B:5:3"),
            "caller_id": (20, "I"),
            "dev_info.subsystem": (24, "16s"),
            "dev_info.device": (40, "48s"),
        },
    ),
    "printk_ringbuffer": (
        88,
        {
            "desc_ring.count_bits": (0, "I"),
            "desc_ring.descs": (8, "Q"),
            "desc_ring.infos": (16, "Q"),
            "desc_ring.head_id.counter": (24, "q"),
            "desc_ring.tail_id.counter": (32, "q"),
            "text_data_ring.size_bits": (48, "I"),
            "text_data_ring.data": (56, "Q"),
        },
    ),
}


class Log:
    """What prb_reserve() and prb_commit() do, in 2^bits bytes for 2^count_bits records."""

    def __init__(self, count_bits: int = 4, bits: int = 10, exact_end_wraps: bool = False) -> None:
        self.count, self.size = 1 << count_bits, 1 << bits
        self.exact_end_wraps = exact_end_wraps
        self.kernel = InventedKernel({"prb": POINTER}, STRUCTURES)
        memory = self.kernel.memory
        for start, size in ((RING, 88), (POINTER, 8), (DESCS, 24 * self.count)):
            memory.area(start, size)
        memory.area(INFOS, 88 * self.count)
        memory.area(DATA, self.size)
        memory.put(POINTER, "Q", RING)
        # As the static ring begins: ids and positions just below an overflow (DESC0_ID, BLK0_LPOS).
        self.id = (-self.count - 1) & (MASK >> 2)
        self.lpos = -self.size & MASK
        self.seq = 0
        memory.put(RING, "IIQQ", count_bits, 0, DESCS, INFOS)
        memory.put(RING + 48, "IIQ", bits, 0, DATA)
        self._heads(self.id)

    def _heads(self, tail: int) -> None:
        self.kernel.memory.put(RING + 24, "QQ", self.id, tail)

    def write(self, text: bytes, state: int = FINALIZED) -> None:
        memory = self.kernel.memory
        self.id = (self.id + 1) & (MASK >> 2)
        begin = end = 3  # an empty line has no block
        if text:
            begin = self.lpos
            size = 8 + (len(text) + 7 & ~7)
            end, at = (begin + size) & MASK, begin % self.size
            last = end if self.exact_end_wraps else end - 1
            if begin // self.size != (last & MASK) // self.size:
                at = 0
                end = ((last & MASK) // self.size * self.size + size) & MASK
            self.lpos = end
            memory.put(DATA + at, f"Q{len(text)}s", self.id, text)
        slot = self.id % self.count
        memory.put(DESCS + 24 * slot, "QQQ", state | self.id, begin, end)
        level = 6 << 5
        memory.put(INFOS + 88 * slot, "QQHBBI", self.seq, self.seq * 1000, len(text), 0, level, 1)
        self.seq += 1
        self._heads((self.id - min(self.seq, self.count) + 1) & (MASK >> 2))

    def read(self, since: int = 0) -> list[LogRecord]:
        listing = read_log(self.kernel.as_kernel(), since)
        assert listing.complete, listing.problems
        return listing


@given(
    st.lists(st.binary(min_size=0, max_size=90).filter(lambda t: b"\\" not in t), max_size=60),
    st.booleans(),
)
def test_the_newest_messages_are_read_whatever_was_written(
    texts: list[bytes], exact_end_wraps: bool
) -> None:
    log = Log(exact_end_wraps=exact_end_wraps, bits=11)  # 16 messages of 96 bytes do fit
    for text in texts:
        log.write(text)
    expected = texts[-16:]
    found = log.read()
    assert [record.text for record in found] == [
        text.decode("utf-8", "backslashreplace") for text in expected
    ]
    assert [record.seq for record in found] == list(range(len(texts) - len(expected), len(texts)))


def test_a_message_whose_text_was_overwritten_is_not_invented() -> None:
    log = Log(count_bits=4, bits=6)
    log.write(b"first")
    for _ in range(4):
        log.write(b"sixteen bytes me")
    found = read_log(log.kernel.as_kernel())
    assert {record.text for record in found} == {"sixteen bytes me"}


def test_a_message_that_is_still_being_written_is_left_out() -> None:
    log = Log()
    log.write(b"done")
    log.write(b"half", state=0)
    log.write(b"may go on", state=1 << 62)
    assert [record.text for record in log.read()] == ["done"]


def test_only_messages_from_a_number_on() -> None:
    log = Log()
    for text in (b"a", b"b", b"c"):
        log.write(text)
    assert [record.text for record in log.read(since=1)] == ["b", "c"]


def test_level_and_caller_are_told_apart() -> None:
    log = Log()
    log.write(b"x")
    slot = INFOS + 88 * (log.id % log.count)
    log.kernel.memory.put(slot + 18, "BBI", 3, 4 << 5 | 0x1F, 0x8000_0002)
    (record,) = log.read()
    assert (record.level, record.facility, record.caller) == (4, 3, "C2")


def test_text_of_another_message_is_a_problem() -> None:
    log = Log()
    log.write(b"mine")
    log.kernel.memory.put(DATA, "Q", 12345)
    listing = read_log(log.kernel.as_kernel())
    assert not listing
    assert not listing.complete


def test_an_absurd_ring_is_refused() -> None:
    log = Log()
    log.kernel.memory.put(RING, "I", 60)
    with pytest.raises(GuestDataError, match=r"2\^60"):
        read_log(log.kernel.as_kernel())


@given(st.integers(0, MASK), st.integers(0, MASK), st.integers(4, 31))
def test_a_block_never_leaves_the_ring(begin: int, end: int, bits: int) -> None:
    try:
        at, size = block(begin, end, bits)
    except GuestDataError:
        return
    assert at >= 0
    assert size > 8
    assert at + size <= 1 << bits


@given(st.integers(0, MASK >> 3), st.integers(2, 60))
def test_a_block_is_whole_at_its_place_or_at_the_start(lpos: int, words: int) -> None:
    ring = 1 << 10
    begin, end = lpos * 8, lpos * 8 + words * 8
    if end > MASK or begin // ring != (end - 1) // ring:
        return
    assert block(begin, end, 10) == (begin % ring, words * 8)


def test_printed_lines_are_as_dmesg_prints_them() -> None:
    text = "one\ntwo\x1b[31m"
    record = LogRecord(7, 12_345_678_901, 4, 1, "T1", text, "", "")
    assert list(lines([record], raw=True)) == [
        "<12>[   12.345678] one",
        "<12>[   12.345678] two\\x1b[31m",
    ]
