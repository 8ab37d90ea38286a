"""Lists that change while they are read, as the kernel changes its own, or that are damaged."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from dvisor.guest import lists
from dvisor.guest.lists import read_list
from tests.unit.chains import BASE, ChainMemory

SLOTS, SLOT_BYTES = 12, 24
POISON = 0xDEAD_0000_0000_0122  # LIST_POISON2, include/linux/poison.h
GRACE_READS = 4
"""Reads between the unlinking of an entry and the reuse of its memory."""

Change = Callable[["LivingList", int], None]


class LivingList(ChainMemory):
    """A ``struct list_head`` at BASE whose entries come and go between any two reads of memory.

    An entry is next, prev and a number that no other entry ever has.
    """

    def __init__(self, length: int, changes: list[tuple[Change, int] | None]) -> None:
        super().__init__((SLOTS + 1) * SLOT_BYTES)
        self.changes: list[tuple[Change, int] | None] = []
        self.freed: dict[int, int] = {}
        self.linked: list[int] = []
        self.number: dict[int, int] = {}
        self.ever: set[int] = set()
        self.put(BASE, BASE)
        self.put(BASE + 8, BASE)
        for _ in range(length):
            self.add(0)
        self.always = set(self.number.values())
        self.changes = changes[::-1]

    def read(self, address: int, size: int) -> bytes:
        change = self.changes.pop() if self.changes else None
        if change:
            change[0](self, change[1])
        return super().read(address, size)

    def word(self, address: int) -> int:
        return int.from_bytes(super().read(address, 8), "little")

    def link(self, before: int, after: int) -> None:
        self.put(before, after)
        self.put(after + 8, before)

    def add(self, _which: int) -> None:
        """list_add_tail: a fork."""
        free = [
            at
            for at in range(BASE + SLOT_BYTES, BASE + (SLOTS + 1) * SLOT_BYTES, SLOT_BYTES)
            if at not in self.linked
            and self.freed.get(at, -GRACE_READS) + GRACE_READS <= self.reads
        ]
        if free:
            last = self.word(BASE + 8)
            self.number_slot(free[0])
            self.link(free[0], BASE)
            self.link(last, free[0])
            self.linked.append(free[0])

    def remove(self, which: int) -> None:
        """list_del_rcu: an exit. The next pointer stays."""
        if self.linked:
            at = self.linked.pop(which % len(self.linked))
            self.link(self.word(at + 8), self.word(at))
            self.put(at + 8, POISON)
            self.freed[at] = self.reads
            self.always.discard(self.number.pop(at))

    def number_slot(self, at: int) -> None:
        self.number[at] = len(self.ever) + 1
        self.put(at + 16, self.number[at])
        self.ever.add(self.number[at])


def walk(memory: LivingList) -> tuple[list[int], list[str]]:
    problems: list[str] = []

    def entry(at: int) -> tuple[int, int, int]:
        raw = memory.read(at, 24)
        words = [int.from_bytes(raw[i : i + 8], "little") for i in (0, 8, 16)]
        return words[0], words[1], words[2]

    return read_list(memory, BASE, entry, problems.append, "list"), problems


change = st.tuples(st.sampled_from([LivingList.add, LivingList.remove]), st.integers(0, SLOTS))


@given(st.integers(0, SLOTS), st.lists(st.one_of(st.none(), st.none(), change), max_size=60))
def test_what_stays_on_a_changing_list_is_found_and_nothing_is_invented(
    length: int, changes: list[tuple[Change, int] | None]
) -> None:
    memory = LivingList(length, changes)
    found, problems = walk(memory)
    assert len(found) == len(set(found))
    assert set(found) <= memory.ever
    assert memory.always <= set(found)
    assert not problems


@given(st.integers(0, SLOTS))
def test_a_list_at_rest_is_found_in_order(length: int) -> None:
    found, problems = walk(LivingList(length, []))
    assert found == list(range(1, length + 1))
    assert not problems


damage = st.tuples(st.integers(0, SLOTS), st.integers(0, 1), st.integers(0, SLOTS + 1))


@given(st.integers(0, SLOTS), st.lists(damage, min_size=1, max_size=6))
def test_a_damaged_list_ends_and_says_so_unless_it_is_found_whole(
    length: int, harm: list[tuple[int, int, int]]
) -> None:
    memory = LivingList(length, [])
    for slot, word, target in harm:  # the target beyond the last slot is unmapped
        memory.put(BASE + slot * SLOT_BYTES + 8 * word, BASE + target * SLOT_BYTES)
    found, problems = walk(memory)
    assert len(found) <= SLOTS
    assert problems or found == list(range(1, length + 1))
    assert memory.reads < 2000


def test_an_endless_list_ends_at_the_limit() -> None:
    class Endless(ChainMemory):
        def read(self, address: int, size: int) -> bytes:
            self.reads += 1
            return (address + 16).to_bytes(8, "little") + (address - 16).to_bytes(8, "little")

        def u64(self, address: int) -> int:
            return int.from_bytes(self.read(address, 8)[:8], "little")

    memory = Endless(0)
    problems: list[str] = []
    memory.unpack = lambda fmt, at: fmt.unpack(memory.read(at, fmt.size))  # type: ignore[method-assign]
    found = read_list(
        memory, BASE, lambda at: (at + 16, at - 16, at), problems.append, "list", limit=100
    )
    assert len(found) == 100
    assert problems == ["the list has no end"]
    entries = lists.list_entries(memory, BASE, 0, problems.append, "entries", limit=100)
    assert len(list(entries)) <= 101
    assert problems[-1] == "the list of entries has no end"
