"""Hash tables in memory that may be damaged anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.errors import GuestMemoryError
from dvisor.guest.hashtables import MAX_BUCKETS, Chains, used_buckets
from tests.unit.chains import BASE, LINK, ChainMemory, entry, table

BUCKETS = 16


@st.composite
def chained(draw: st.DrawFn) -> list[list[int]]:
    """Up to 100 numbered entries, spread over the buckets."""
    homes = draw(st.lists(st.integers(0, BUCKETS - 1), max_size=100))
    return [[n for n, home in enumerate(homes) if home == b] for b in range(BUCKETS)]


def chains(memory: ChainMemory, problems: list[str]) -> Chains[int]:
    return Chains(memory, LINK, lambda address: address, problems.append, "entries")


def entries(memory: ChainMemory) -> tuple[list[int], list[str]]:
    problems: list[str] = []
    return list(chains(memory, problems).table(BASE, BUCKETS, 8)), problems


@given(chained(), st.booleans())
def test_each_entry_of_a_sound_table_is_found_once(homes: list[list[int]], nulls: bool) -> None:
    found, problems = entries(table(homes, nulls))
    assert found == [entry(n) for numbers in homes for n in numbers]
    assert not problems


@given(chained(), st.lists(st.tuples(st.integers(0, 0x1FFFF), st.integers(0, 255)), max_size=20))
def test_a_damaged_table_ends_and_invents_no_entry_twice(
    homes: list[list[int]], damage: list[tuple[int, int]]
) -> None:
    memory = table(homes)
    for at, byte in damage:
        memory.data[at] = byte
    found, _ = entries(memory)
    assert len(found) == len(set(found))
    assert memory.reads < 50_000


@given(chained(), st.data())
def test_a_chain_that_leads_back_is_a_problem_and_loses_nothing(
    homes: list[list[int]], data: st.DataObject
) -> None:
    memory = table(homes)
    numbers = data.draw(st.sampled_from(homes))
    if not numbers:
        return
    back_to = entry(data.draw(st.sampled_from(numbers))) + LINK
    memory.put(entry(numbers[-1]) + LINK, back_to)
    found, problems = entries(memory)
    assert set(found) == {entry(n) for each in homes for n in each}
    assert problems == ["a chain of entries runs in a circle"]


def test_an_entry_that_moved_to_another_chain_is_noticed() -> None:
    memory = table([[0, 1], [2, 3]])
    memory.put(entry(0) + LINK, entry(3) + LINK)  # as if 0 was reused in the second chain
    problems: list[str] = []
    list(chains(memory, problems).chain(BASE))
    assert problems == ["the chain of entries changed while it was read"]


def test_a_wild_pointer_keeps_the_entries_before_it() -> None:
    memory = table([[0, 1, 2]])
    memory.put(entry(1) + LINK, 0xFFFF_DEAD_BEEF_0000)
    problems: list[str] = []
    assert list(chains(memory, problems).chain(BASE)) == [entry(0), entry(1)]
    assert problems[0].startswith("the chain of entries is broken")


def test_a_table_of_garbage_is_given_up_early() -> None:
    memory = ChainMemory(0x20000)
    memory.put(BASE, *(BASE + 8 * n for n in range(1, 0x2000)))  # each word a pointer to the next
    problems: list[str] = []
    found = list(chains(memory, problems).table(BASE, 0x2000, 8))
    assert len(found) < 2000
    assert problems[-1] == "the table of entries is damaged: its rest was not read"


@pytest.mark.parametrize("count", [0, -1, MAX_BUCKETS + 1])
def test_an_absurd_number_of_buckets_is_refused(count: int) -> None:
    with pytest.raises(GuestMemoryError, match="buckets"):
        used_buckets(table([[]]), BASE, count, 8)


def test_a_locked_bucket_of_an_rhashtable_is_followed() -> None:
    memory = table([[0, 1], [], [2]], nulls=True)
    memory.put(BASE, memory.u64(BASE) | 1)  # rht_lock(): bit 0 of the bucket
    problems: list[str] = []
    found = list(chains(memory, problems).rhashtable(BASE, 3))
    assert found == [entry(0), entry(1), entry(2)]
    assert not problems


def test_an_entry_that_is_freed_while_it_is_read_does_not_count() -> None:
    memory = table([[0, 1, 2]])
    problems: list[str] = []

    def read(address: int) -> int:
        if address == entry(1):  # hlist_nulls_del(), and the memory is used for something else
            memory.put(entry(0) + LINK, entry(2) + LINK)
            memory.put(entry(2) + LINK + 8, entry(0) + LINK)
            memory.put(entry(1) + LINK, 0x6B6B_6B6B_6B6B_6B6B, 0x6B6B_6B6B_6B6B_6B6B)
        return address

    found = list(Chains(memory, LINK, read, problems.append, "entries").table(BASE, 1, 8))
    assert found == [entry(0), entry(2)]
    assert not problems


def test_an_entry_whose_back_pointer_lies_is_still_shown() -> None:
    memory = table([[0, 1, 2]])
    memory.put(entry(1) + LINK + 8, 0x1234)
    found, problems = entries(memory)
    assert found == [entry(0), entry(1), entry(2)]
    assert problems == ["a chain of entries changed while it was read"]
