"""Maple trees that are sound, damaged, or made to trap the reader."""

from __future__ import annotations

import struct

from dvisor.addresses import MASK64
from dvisor.guest import maple
from dvisor.guest.maple import maple_entries
from tests.unit.fake_kernel import FakeKernel

LAYOUTS = {
    "maple_range_64.pivot": (8, "15Q"),
    "maple_range_64.slot": (128, "16Q"),
    "maple_arange_64.pivot": (8, "9Q"),
    "maple_arange_64.slot": (80, "10Q"),
}
LEAF, RANGE, ALLOCATION = 1, 2, 3
BASE = 0xFFFF_8880_0001_0000
PIVOTS = {LEAF: 15, RANGE: 15, ALLOCATION: 9}


class Tree:
    """Builds nodes in a fake kernel's memory and reads them back."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(LAYOUTS)
        self.problems: list[str] = []
        self.next = BASE

    def node(self, kind: int, pivots: list[int], slots: list[int], parent: int = 1) -> int:
        """An encoded pointer to a new node; a parent of 0 makes it a dead one."""
        address, self.next = self.next, self.next + 256
        words = [parent or address, *pivots, *[0] * (PIVOTS[kind] - len(pivots)), *slots]
        self.kernel.memory.write(address, struct.pack("<32Q", *words, *[0] * (32 - len(words))))
        return address | kind << 3 | 4

    def read(self, root: int) -> list[tuple[int, int, int]]:
        # The root pointer carries the low bits of an internal entry (mte_mk_root).
        marked = root | 2 if root > 4096 else root
        return list(maple_entries(self.kernel, marked, self.problems.append, "tests"))


def test_tree_of_one_leaf_gives_its_ranges_without_gaps() -> None:
    tree = Tree()
    root = tree.node(LEAF, [0xFFF, 0x1FFF, 0x2FFF], [0, 0x1000, 0x2000, 0])
    assert tree.read(root) == [(0x1000, 0x1FFF, 0x1000), (0x2000, 0x2FFF, 0x2000)]
    assert tree.problems == []


def test_two_levels_come_in_order() -> None:
    tree = Tree()
    low = tree.node(LEAF, [9, 19], [0x10, 0x20])
    high = tree.node(LEAF, [29, 39], [0x30, 0x40, 0])
    assert tree.read(tree.node(ALLOCATION, [19], [low, high])) == [
        (0, 9, 0x10),
        (10, 19, 0x20),
        (20, 29, 0x30),
        (30, 39, 0x40),
    ]
    assert tree.problems == []


def test_full_leaf_ends_at_its_own_end() -> None:
    tree = Tree()
    slots = [0x100 * (i + 1) for i in range(16)]
    found = tree.read(tree.node(LEAF, list(range(15)), slots))
    assert found[-1] == (15, MASK64, 0x1000)
    assert len(found) == 16


def test_rubbish_behind_the_last_slot_is_not_read() -> None:
    tree = Tree()
    root = tree.node(LEAF, [9, MASK64, 0x77], [0x10, 0x20, 0x666, 0x667])
    assert [entry for *_, entry in tree.read(root)] == [0x10, 0x20]


def test_empty_tree_and_single_entry() -> None:
    tree = Tree()
    assert tree.read(0) == []
    assert list(maple_entries(tree.kernel, 0xAB00, tree.problems.append, "x")) == [(0, 0, 0xAB00)]


def test_node_that_is_its_own_child_ends_with_a_problem() -> None:
    tree = Tree()
    root = BASE | RANGE << 3 | 4
    assert tree.node(RANGE, [], [root]) == root
    assert tree.read(root) == []
    assert tree.problems == ["the tree of tests is not a maple tree"]
    assert tree.kernel.memory.reads <= maple.MAX_HEIGHT


def test_dead_unmapped_and_unknown_nodes_are_told() -> None:
    tree = Tree()
    leaf = tree.node(LEAF, [9], [0x10])
    dead = tree.node(LEAF, [], [0x20], parent=0)
    unmapped = 0xFFFF_C000_0000_0000 | LEAF << 3
    unknown = BASE | 9 << 3
    root = tree.node(RANGE, [9, 19, 29, 39], [leaf, dead, unmapped, unknown])
    assert tree.read(root) == [(0, 9, 0x10)]
    assert tree.problems[0] == "the tree of tests changed while it was read"
    assert "no page is mapped" in tree.problems[1]
    assert tree.problems[2] == "the tree of tests is not a maple tree"
