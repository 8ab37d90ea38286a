"""The kernel's linked structures, walked in memory that may change or lie.

No walk is longer than its limit or follows a cycle twice. What stops a walk early is told to
``problem`` (a callable that takes a sentence), so that the caller can mark its answer partial.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TypeVar

from dvisor.errors import GuestDataError, GuestMemoryError
from dvisor.guest.memory import Memory

T = TypeVar("T")
Problem = Callable[[str], None]
LIMIT = 1 << 20
"""Entries of one list: more than any guest that still works has (PID_MAX_LIMIT is 4 M)."""

TURNS = 200
"""So often a walk turns back before it takes the list as it finds it."""
GRACE_S = 0.002
"""The kernel frees what left a list after an RCU grace period, of several ms. A longer walk may
have met entries that were freed and are on the list again, elsewhere: its path is looked over."""
_PATIENCE = 3
"""So often the same flaw is looked at: an entry that is being unlinked just then has it too."""

_LINKS = struct.Struct("<QQ")
_XA_NODE = 2  # xa_is_internal(): low bits 10 (include/linux/xarray.h)
_XA_SLOTS = 64
_POINTER_LOW_BITS = 3


def links(memory: Memory, at: int) -> tuple[int, int]:
    """(next, prev) of the ``struct list_head`` at this address."""
    following, back = memory.unpack(_LINKS, at)
    assert isinstance(following, int)
    assert isinstance(back, int)
    return following, back


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
            following, back = links(memory, at)
        except GuestMemoryError as error:
            problem(f"the list of {what} is broken: {error}")
            return
        if back != previous:
            problem(f"the list of {what} changed while it was read")
        yield at - offset
        previous, at = at, following


def read_list(
    memory: Memory,
    head: int,
    read: Callable[[int], tuple[int, int, T]],
    problem: Problem,
    what: str,
    limit: int = LIMIT,
) -> list[T]:
    """The entries of a list that may change all the time, each read while it was on the list.

    ``read(link)`` gives (next, prev, entry) in one go. Where an entry's back pointer does not name
    the entry before it, one of them has left the list: the walk turns back to where its path
    leaves the list as it is now, forgets what came after, and goes on from there. So what stays on
    the list is found, and what is found was on it. A flaw that stays is damage: told, and passed.
    """
    path, entries, seen = [head], list[T](), {head}
    firm = 1  # so much of the path is not gone back on: damage follows
    turns, same, last = TURNS, 0, (0, 0)
    at, began = memory.u64(head), monotonic()
    while len(path) <= limit:
        found, flaw = None, None
        try:
            if at not in seen:
                found = read(at)
                if found[1] != path[-1]:
                    flaw = "changed while it was read"
            elif at != head:
                flaw = "runs in a circle"
            elif memory.u64(head + 8) != path[-1]:
                flaw = "has a wrong end"
            elif monotonic() - began > GRACE_S and _on_list(memory, path, firm) < len(path):
                flaw, began = "changed while it was read", monotonic()
        except GuestDataError as error:
            flaw = f"is broken: {error}"
        if flaw:
            same = same + 1 if last == (path[-1], at) else 1
            last = path[-1], at
            turns -= 1
            if same < _PATIENCE and turns > 0:
                kept = _on_list(memory, path, firm)
                seen.difference_update(path[kept:])
                del path[kept:], entries[kept - 1 :]
                at = memory.u64(path[-1])
                continue
            problem(f"the {what} {flaw}")
            firm = len(path) + 1
        if found is None:
            return entries
        path.append(at)
        seen.add(at)
        entries.append(found[2])
        at = found[0]
    problem(f"the {what} has no end")
    return entries


def _on_list(memory: Memory, path: list[int], firm: int) -> int:
    """How many of a path's first entries are still linked to each other, in both directions."""
    for i in range(firm, len(path)):
        try:
            if memory.u64(path[i - 1]) != path[i] or memory.u64(path[i] + 8) != path[i - 1]:
                return i
        except GuestMemoryError:
            return i
    return max(firm, len(path))


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
        budget -= 1
        if budget < 0:
            problem(f"the array of {what} has no end")
            return
        if not entry & _POINTER_LOW_BITS:
            if entry:
                yield index, entry
            continue
        if entry & _POINTER_LOW_BITS != _XA_NODE or entry < 4096:
            continue
        node = entry - _XA_NODE
        try:
            shift = memory.read(node + shift_offset, 1)[0]
            if shift >= bits:
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
