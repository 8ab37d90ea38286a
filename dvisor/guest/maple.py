"""Maple trees: ranges of numbers to pointers (lib/maple_tree.c, include/linux/maple_tree.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from dvisor.addresses import MASK64
from dvisor.errors import GuestMemoryError, UnsupportedError
from dvisor.guest.kernel import Kernel
from dvisor.guest.records import Place, missing

if TYPE_CHECKING:
    from dvisor.guest.lists import Problem

LIMIT = 1 << 17
"""Nodes of one tree: with 15 entries in each, more mappings than any process may have."""
MAX_HEIGHT = 31  # MAPLE_HEIGHT_MAX

_NODE_SIZE = 256
_NODE = struct.Struct("<32Q")
_NODE_MASK = ~(_NODE_SIZE - 1) & MASK64
_TYPE_SHIFT, _TYPE_MASK = 3, 0xF
_INTERNAL = 2  # xa_is_node(): the root is a node if its low bits are 10 and it is above 4096


class _Shape(NamedTuple):
    """Where a kind of node has its pivots and slots, counted in words from the node's start."""

    is_leaf: bool
    pivot: int
    pivots: int
    slot: int
    slots: int


def maple_entries(
    kernel: Kernel, root: int, problem: Problem, what: str
) -> Iterator[tuple[int, int, int]]:
    """(first, last, pointer) of all entries, ascending; ``root``: value of maple_tree.ma_root.

    Every node must lie inside its parent's range, so that none is visited twice and nothing is
    out of order whatever memory holds.
    """
    if not _is_node(root):
        if root:
            yield 0, 0, root
        return
    shapes = _shapes(kernel)
    left = LIMIT
    stack = [(root, 0, MASK64, MAX_HEIGHT)]
    while stack:
        node, low, high, height = stack.pop()
        left -= 1
        shape = shapes.get(node >> _TYPE_SHIFT & _TYPE_MASK)
        if shape is None or not height or left < 0:
            problem(f"the tree of {what} is not a maple tree")
            return
        address = node & _NODE_MASK
        try:
            words = kernel.memory.unpack(_NODE, address)
        except GuestMemoryError as error:
            problem(f"the tree of {what} is broken: {error}")
            continue
        if words[0] == address:  # a removed node is its own parent (ma_dead_node)
            problem(f"the tree of {what} changed while it was read")
            continue
        entries = list(_slots(words, shape, low, high))
        if shape.is_leaf:
            yield from ((first, last, entry) for first, last, entry in entries if entry)
        else:
            stack.extend(
                (entry, first, last, height - 1) for first, last, entry in reversed(entries)
            )


def _slots(
    words: tuple[int | bytes, ...], shape: _Shape, low: int, high: int
) -> Iterator[tuple[int, int, int]]:
    """(first, last, content) of a node's slots; a pivot is the last number of its slot.

    The last slot in use has no pivot, or one of 0, or one that is the node's own end
    (mas_logical_pivot); what is behind it is not initialised.
    """
    for i in range(shape.slots):
        last = high
        if i < shape.pivots:
            pivot = words[shape.pivot + i]
            assert isinstance(pivot, int)
            last = pivot if pivot or not i else high
        if not low <= last <= high:
            return
        entry = words[shape.slot + i]
        assert isinstance(entry, int)
        yield low, last, entry
        if last == high:
            return
        low = last + 1


def _is_node(entry: int) -> bool:
    return entry & 3 == _INTERNAL and entry > 4096


def _shapes(kernel: Kernel) -> dict[int, _Shape]:
    """Kinds of node by number. Dense nodes are defined in the kernel, but never made."""
    ranges = _shape(kernel, "maple_range_64")
    allocation = _shape(kernel, "maple_arange_64")
    return {
        _kind(kernel, "maple_leaf_64", 1): ranges._replace(is_leaf=True),
        _kind(kernel, "maple_range_64", 2): ranges,
        _kind(kernel, "maple_arange_64", 3): allocation,
    }


def _kind(kernel: Kernel, name: str, usual: int) -> int:
    number = kernel.constant(name)
    return usual if number is None else number


def _shape(kernel: Kernel, structure: str) -> _Shape:
    pivot, slot = (_array(kernel, structure, member) for member in ("pivot", "slot"))
    return _Shape(False, pivot.offset // 8, pivot.size // 8, slot.offset // 8, slot.size // 8)


def _array(kernel: Kernel, structure: str, member: str) -> Place:
    found = kernel.place(structure, member)
    if found is None:
        raise missing(structure, member)
    if found.offset + found.size > _NODE_SIZE:
        raise UnsupportedError(f"{structure}.{member} is larger than a node of this kernel")
    return found
