"""The kernel's linked structures, walked in memory that may change or lie.

No walk is longer than its limit or follows a cycle twice. What stops a walk early is told to
``problem`` (a callable that takes a sentence), so that the caller can mark its answer partial.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from dvisor.errors import GuestMemoryError
from dvisor.guest.memory import Memory

Problem = Callable[[str], None]
LIMIT = 1 << 20
"""Entries of one list: more than any guest that still works has (PID_MAX_LIMIT is 4 M)."""

_PAIR = struct.Struct("<QQ")
_XA_NODE = 2  # xa_is_internal(): low bits 10 (include/linux/xarray.h)
_XA_SLOTS = 64
_POINTER_LOW_BITS = 3


def list_entries(
    memory: Memory, head: int, offset: int, problem: Problem, what: str, limit: int = LIMIT
) -> Iterator[int]:
    """Addresses of the structures on a ``struct list_head``; ``offset``: of their link member.

    The back pointer of each entry must name the entry before it. One that does not was unlinked,
    or had another put before it, while we read: the walk goes on only forward, and says so.
    """
    seen = {head}
    previous = head
    at = memory.u64(head)
    while at != head:
        if at in seen or len(seen) > limit:
            problem(f"the list of {what} {'runs in a circle' if at in seen else 'has no end'}")
            return
        seen.add(at)
        try:
            following, back = memory.unpack(_PAIR, at)
        except GuestMemoryError as error:
            problem(f"the list of {what} is broken: {error}")
            return
        assert isinstance(following, int)
        if back != previous:
            problem(f"the list of {what} changed while it was read")
        yield at - offset
        previous, at = at, following


def hlist_entries(
    memory: Memory, head: int, offset: int, problem: Problem, what: str, limit: int = LIMIT
) -> Iterator[int]:
    """The same for ``struct hlist_head`` and, with its odd end marks, ``hlist_nulls_head``."""
    seen: set[int] = set()
    at = memory.u64(head)
    while at and not at & 1:
        if at in seen or len(seen) > limit:
            problem(f"the chain of {what} {'runs in a circle' if at in seen else 'has no end'}")
            return
        seen.add(at)
        yield at - offset
        try:
            at = memory.u64(at)
        except GuestMemoryError as error:
            problem(f"the chain of {what} is broken: {error}")
            return


def tree_entries(
    memory: Memory, root: int, offset: int, problem: Problem, what: str, limit: int = LIMIT
) -> Iterator[int]:
    """Structures in a ``struct rb_root`` (``root``: address of its rb_node pointer), in order.

    struct rb_node is parent and colour, right, left (include/linux/rbtree_types.h).
    """
    seen: set[int] = set()
    stack: list[int] = []
    at = memory.u64(root)
    while at or stack:
        try:
            while at:
                if at in seen or len(seen) > limit:
                    problem(f"the tree of {what} is not a tree")
                    return
                seen.add(at)
                stack.append(at)
                at = memory.u64(at + 16)
            node = stack.pop()
            at = memory.u64(node + 8)
        except GuestMemoryError as error:
            problem(f"the tree of {what} is broken: {error}")
            return
        yield node - offset


def xarray_entries(
    memory: Memory,
    head: int,
    slots_offset: int,
    shift_offset: int,
    problem: Problem,
    what: str,
    limit: int = LIMIT,
) -> Iterator[tuple[int, int]]:
    """(index, pointer) of a ``struct xarray`` or ``idr``, ascending; ``head``: value of xa_head.

    ``slots_offset`` and ``shift_offset`` are those of struct xa_node. Value entries (odd) and
    internal marks are left out.
    """
    budget = limit
    stack: list[tuple[int, int, int]] = [(head, 0, 64)]  # entry, index, bits it may span
    while stack:
        entry, index, bits = stack.pop()
        if not entry & _POINTER_LOW_BITS:
            if entry:
                yield index, entry
            continue
        if entry & _POINTER_LOW_BITS != _XA_NODE or entry < 4096:
            continue
        budget -= 1
        node = entry - _XA_NODE
        try:
            shift = memory.read(node + shift_offset, 1)[0]
            if shift >= bits or budget < 0:
                problem(f"the array of {what} is not a tree")
                return
            slots = struct.unpack("<64Q", memory.read(node + slots_offset, 8 * _XA_SLOTS))
        except GuestMemoryError as error:
            problem(f"the array of {what} is broken: {error}")
            continue
        stack.extend(
            (slots[i], index + (i << shift), shift)
            for i in range(_XA_SLOTS - 1, -1, -1)
            if slots[i]
        )
