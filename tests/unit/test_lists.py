"""Trees and arrays of the kernel's, in memory that is whole, and in memory that lies."""

from __future__ import annotations

import itertools

import pytest

from dvisor.guest.lists import list_entries, tree_entries, xarray_entries
from tests.unit.chains import BASE, ChainMemory

WILD = 0xFFFF_FFFF_DEAD_0000
NODE_BYTES, SHIFT_AT, SLOTS_AT = 576, 0, 40  # struct xa_node


@pytest.fixture
def memory() -> ChainMemory:
    return ChainMemory(1 << 16)


def tree(memory: ChainMemory, children: dict[int, tuple[int, int]]) -> list[int]:
    """Link nodes by number (parent, right, left at 64 * number); the root is number 1."""

    def at(number: int) -> int:
        return BASE + 64 * number if number else 0

    memory.put(BASE, at(1))
    for number, (left, right) in children.items():
        memory.put(at(number) + 8, at(right))
        memory.put(at(number) + 16, at(left))
    return [at(number) for number in children]


def entries(memory: ChainMemory, limit: int = 1000) -> tuple[list[int], list[str]]:
    problems: list[str] = []
    found = tree_entries(memory, BASE, 0, problems.append, "nodes", limit)
    return [(address - BASE) // 64 for address in found], problems


def test_a_tree_is_walked_in_order(memory: ChainMemory) -> None:
    tree(memory, {1: (2, 3), 2: (4, 5), 3: (0, 6), 4: (0, 0), 5: (0, 0), 6: (0, 0)})
    assert entries(memory) == ([4, 2, 5, 1, 3, 6], [])


def test_an_empty_tree_has_no_entries(memory: ChainMemory) -> None:
    assert entries(memory) == ([], [])


@pytest.mark.parametrize(("left", "right"), [(1, 0), (0, 1), (2, 2), (1, 1)])
def test_a_tree_that_leads_back_ends(memory: ChainMemory, left: int, right: int) -> None:
    tree(memory, {1: (2, 3), 2: (0, 0), 3: (left, right)})
    found, problems = entries(memory)
    assert set(found) <= {1, 2, 3}
    assert problems == ["the tree of nodes is not a tree"]


def test_a_tree_that_leads_nowhere_keeps_what_came_before(memory: ChainMemory) -> None:
    tree(memory, {1: (2, 3), 2: (0, 0), 3: (0, 0)})
    memory.put(BASE + 64 * 3 + 16, WILD)
    found, problems = entries(memory)
    assert found == [2, 1]
    assert problems[0].startswith("the tree of nodes is broken")


def test_an_endless_tree_ends_at_its_limit(memory: ChainMemory) -> None:
    tree(memory, {number: (0, number + 1) for number in range(1, 900)})
    found, problems = entries(memory, limit=100)
    assert len(found) <= 101
    assert problems == ["the tree of nodes is not a tree"]


def xa_node(memory: ChainMemory, number: int, shift: int, slots: dict[int, int]) -> int:
    """A node's entry, as its parent or head holds it."""
    at = BASE + 1024 + NODE_BYTES * number
    memory.data[at - BASE + SHIFT_AT] = shift
    for slot, value in slots.items():
        memory.put(at + SLOTS_AT + 8 * slot, value)
    return at + 2


def array(
    memory: ChainMemory, head: int, limit: int = 5000
) -> tuple[list[tuple[int, int]], list[str]]:
    problems: list[str] = []
    found = xarray_entries(memory, head, SLOTS_AT, SHIFT_AT, problems.append, "ids", limit)
    return list(found), problems


def test_an_array_gives_indices_and_pointers_ascending(memory: ChainMemory) -> None:
    low = xa_node(memory, 0, 0, {1: 0x1000, 63: 0x2000, 5: 0x77})  # 0x77: a value entry
    high = xa_node(memory, 1, 0, {0: 0x3000})
    head = xa_node(memory, 2, 6, {0: low, 2: high, 3: 6})  # 6: a mark
    assert array(memory, head) == ([(1, 0x1000), (63, 0x2000), (128, 0x3000)], [])
    assert array(memory, 0x5000) == ([(0, 0x5000)], [])
    assert array(memory, 0) == ([], [])


def test_an_array_whose_node_contains_itself_ends(memory: ChainMemory) -> None:
    node = xa_node(memory, 0, 6, {})
    for slot in range(64):
        memory.put(BASE + 1024 + SLOTS_AT + 8 * slot, node)
    found, problems = array(memory, node)
    assert not found
    assert problems == ["the array of ids is not a tree"]


def test_an_array_of_an_absurd_shift_is_no_array(memory: ChainMemory) -> None:
    _, problems = array(memory, xa_node(memory, 0, 200, {0: 0x1000}))
    assert problems == ["the array of ids is not a tree"]


def test_an_array_that_fans_out_without_end_ends_at_its_limit(memory: ChainMemory) -> None:
    """64 levels of 64 slots that all lead to the next level: 64^64 paths."""
    below = 0x1000
    for level in range(60):
        below = xa_node(memory, level, level, dict.fromkeys(range(64), below))
    found, problems = array(memory, below)
    assert len(found) < 5000
    assert problems == ["the array of ids has no end"]
    assert memory.reads < 20_000


def test_an_array_with_a_wild_node_keeps_the_rest(memory: ChainMemory) -> None:
    head = xa_node(memory, 0, 6, {0: WILD | 2, 1: 0x3000})
    found, problems = array(memory, head)
    assert found == [(64, 0x3000)]
    assert problems[0].startswith("the array of ids is broken")


def test_a_list_with_a_wrong_back_pointer_is_walked_on_and_marked(memory: ChainMemory) -> None:
    memory.unpack = lambda fmt, at: fmt.unpack(memory.read(at, fmt.size))  # type: ignore[method-assign]
    order = [0, 1, 2, 3, 0]
    for one, other in itertools.pairwise(order):
        memory.put(BASE + 64 * one, BASE + 64 * other)
        memory.put(BASE + 64 * other + 8, BASE + 64 * one)
    memory.put(BASE + 64 * 2 + 8, BASE)
    problems: list[str] = []
    found = list(list_entries(memory, BASE, 0, problems.append, "things"))
    assert found == [BASE + 64 * number for number in (1, 2, 3)]
    assert problems == ["the list of things changed while it was read"]
