"""The kernel's hash tables of sockets and the like: arrays of chains.

A table is mostly empty, so its whole array is read at once and only chains that hold something are
followed. A chain is followed like a list: bounded, never in a circle, and each entry's back pointer
(``pprev``) must name the pointer that led to it. Entries move between chains while the guest runs,
so a chain that does not fit together is read again before it is called damaged.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from dvisor.errors import GuestMemoryError
from dvisor.guest.lists import Problem
from dvisor.guest.memory import U64, Memory

MAX_BUCKETS = 1 << 20
"""The largest table of sockets, ehash, has 512 Ki unless asked for more (net/ipv4/tcp.c)."""
MAX_CHAIN = 1 << 16
MAX_ENTRIES = 1 << 20
MAX_MISFITS = 8
"""Entries of one chain whose back pointer is wrong: after as many, it is no chain."""
MAX_FAULTS = 64
"""Damaged chains of one table: after as many, it is no table."""
TRIES = 4

_NODE = struct.Struct("<QQ")  # next, pprev: of hlist_node and hlist_nulls_node alike
_USED = re.compile(rb"[^\0]")


def used_buckets(memory: Memory, array: int, count: int, stride: int) -> list[int]:
    """Addresses of the chain heads that hold an entry; GuestMemoryError.

    An empty one is NULL or, in a ``hlist_nulls`` table, a small odd number; kernel addresses are
    told from both by their highest byte.
    """
    if not 0 < count <= MAX_BUCKETS:
        raise GuestMemoryError(f"a hash table of {count} buckets at {array:#x}", array)
    raw = memory.read(array, (count - 1) * stride + 8)
    return [array + match.start() * stride for match in _USED.finditer(raw[7::stride])]


def table_entries(
    memory: Memory,
    array: int,
    count: int,
    stride: int,
    link: int,
    problem: Problem,
    what: str,
) -> Iterator[int]:
    """Addresses of all structures in a table of ``count`` chains whose heads are ``stride`` bytes
    apart, ``array`` being the first head; ``link``: offset of their hlist node."""
    try:
        heads = used_buckets(memory, array, count, stride)
    except GuestMemoryError as error:
        problem(f"the table of {what} cannot be read: {error}")
        return
    seen: set[int] = set()
    faults = 0
    for head in heads:
        found, fault = _settled(memory, head, link)
        if fault is not None:
            problem(f"a chain of {what} {fault}")
            faults += 1
        for address in found:
            if address not in seen:
                seen.add(address)
                yield address
        if faults > MAX_FAULTS or len(seen) > MAX_ENTRIES:
            problem(f"the table of {what} is damaged: the rest of it was not read")
            return


def chain(memory: Memory, head: int, link: int, problem: Problem, what: str) -> list[int]:
    """Addresses of the structures in the chain at ``head``."""
    found, fault = _settled(memory, head, link)
    if fault is not None:
        problem(f"the chain of {what} {fault}")
    return found


def _settled(memory: Memory, head: int, link: int) -> tuple[list[int], str | None]:
    """(structures, what is wrong) of a chain, once it holds still."""
    found, fault = _follow(memory, head, link)
    for _ in range(TRIES - 1):
        if fault is None:
            break
        found, fault = _follow(memory, head, link)
    return found, fault


def _follow(memory: Memory, head: int, link: int) -> tuple[list[int], str | None]:
    found: list[int] = []
    seen: set[int] = set()
    misfits = 0
    pointer = head
    try:
        at = memory.u64(head)
        while at and not at & 1:
            if at in seen:
                return found, "runs in a circle"
            if len(seen) >= MAX_CHAIN or misfits >= MAX_MISFITS:
                return found, "has no end"
            seen.add(at)
            following, back = memory.unpack(_NODE, at)
            misfits += back != pointer
            found.append(at - link)
            assert isinstance(following, int)
            pointer, at = at, following
    except GuestMemoryError as error:
        return found, f"is broken: {error}"
    return found, "changed while it was read" if misfits else None


def rhash_entries(
    memory: Memory, array: int, count: int, link: int, problem: Problem, what: str
) -> Iterator[int]:
    """Addresses of the structures in a ``struct bucket_table`` (include/linux/rhashtable.h).

    Bit 0 of a bucket is its lock; a chain has no back pointers and ends with an odd mark.
    """
    try:
        heads = used_buckets(memory, array, count, 8)
    except GuestMemoryError as error:
        problem(f"the table of {what} cannot be read: {error}")
        return
    seen: set[int] = set()
    for head in heads:
        try:
            at = memory.u64(head) & ~1
            while at and not at & 1:
                if at in seen or len(seen) > MAX_ENTRIES:
                    problem(f"a chain of {what} runs into another, or in a circle")
                    break
                seen.add(at)
                (following,) = memory.unpack(U64, at)
                yield at - link
                assert isinstance(following, int)
                at = following
        except GuestMemoryError as error:
            problem(f"a chain of {what} is broken: {error}")
