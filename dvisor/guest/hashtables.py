"""The kernel's hash tables of sockets and the like: arrays of chains.

A table is mostly empty, so its whole array is read at once and only chains that hold something are
followed. A chain is followed like a list: bounded, never in a circle, and each entry's back pointer
(``pprev``) must name the pointer that led to it. Entries move between chains while the guest runs,
so a chain that does not fit together is read again before it is called damaged; and an entry counts
only if it still is in its chain after it was read, or else it could be a freed one's remains.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from dvisor.errors import GuestDataError, GuestMemoryError
from dvisor.guest.lists import Problem
from dvisor.guest.memory import Memory

T = TypeVar("T")

MAX_BUCKETS = 1 << 20
"""The largest table of sockets, ehash, has 512 Ki unless asked for more (net/ipv4/tcp.c)."""
MAX_CHAIN = 1 << 16
MAX_ENTRIES = 1 << 20
MAX_MISFITS = 8
"""Entries of one chain whose back pointer is wrong: after as many, it is no chain."""
MAX_FAULTS = 64
"""Damaged chains of one table: after as many, it is no table."""
MAX_RHASH_CHAIN = 64
"""An rhashtable rehashes at 16 (RHT_ELASTICITY, include/linux/rhashtable.h)."""
MAX_RHASH_ENTRIES = 1 << 16
TRIES = 4

_NODE = struct.Struct("<QQ")  # next, pprev: of hlist_node and hlist_nulls_node alike
_USED = re.compile(rb"[^\0]")

Chain = tuple[list[int], str | None]
"""Addresses of the structures in a chain, and what is wrong with it."""


def used_buckets(memory: Memory, array: int, count: int, stride: int) -> list[int]:
    """Addresses of the chain heads that hold an entry; GuestMemoryError.

    An empty one is NULL or, in a ``hlist_nulls`` table, a small odd number; kernel addresses are
    told from both by their highest byte.
    """
    if not 0 < count <= MAX_BUCKETS:
        raise GuestMemoryError(f"a hash table of {count} buckets at {array:#x}", array)
    raw = memory.read(array, (count - 1) * stride + 8)
    return [array + match.start() * stride for match in _USED.finditer(raw[7::stride])]


class Chains(Generic[T]):
    """Follows chains of one kind of structure, and reads each structure in them.

    ``link``: offset of the chain's node in a structure, whose address ``read`` gets; ``what``: its
    plural, for ``problem``.
    """

    def __init__(
        self, memory: Memory, link: int, read: Callable[[int], T], problem: Problem, what: str
    ) -> None:
        self._memory = memory
        self._link = link
        self._read = read
        self._problem = problem
        self._what = what

    def table(self, array: int, count: int, stride: int) -> Iterator[T]:
        """Of ``count`` chains, heads ``stride`` bytes apart, the first at ``array``."""
        seen: set[int] = set()
        faults = 0
        for head in self._heads(array, count, stride):
            found, fault = self._settled(head)
            if fault is not None:
                self._problem(f"a chain of {self._what} {fault}")
                faults += 1
            fresh = [address for address in found if address not in seen]
            seen.update(fresh)
            yield from self._confirmed(fresh, head, self._linked)
            if faults > MAX_FAULTS or len(seen) > MAX_ENTRIES:
                self._problem(f"the table of {self._what} is damaged: its rest was not read")
                return

    def chain(self, head: int) -> Iterator[T]:
        """Of the one chain at ``head``."""
        found, fault = self._settled(head)
        if fault is not None:
            self._problem(f"the chain of {self._what} {fault}")
        yield from self._confirmed(found, head, self._linked)

    def rhashtable(self, array: int, count: int) -> Iterator[T]:
        """Of the ``count`` buckets of a ``struct bucket_table`` (include/linux/rhashtable.h)."""
        seen: set[int] = set()
        faults = 0
        for head in self._heads(array, count, 8):
            found, fault = self._rhash_chain(head)
            fresh = [address for address in found if address not in seen]
            if fault is None and len(fresh) < len(found):
                fault = "runs into another"
            if fault is not None:
                self._problem(f"a chain of {self._what} {fault}")
                faults += 1
            seen.update(fresh)
            yield from self._confirmed(fresh, head, self._in_rhash_chain)
            if faults > MAX_FAULTS or len(seen) > MAX_RHASH_ENTRIES:
                self._problem(f"the table of {self._what} is damaged: its rest was not read")
                return

    def _heads(self, array: int, count: int, stride: int) -> list[int]:
        try:
            return used_buckets(self._memory, array, count, stride)
        except GuestMemoryError as error:
            self._problem(f"the table of {self._what} cannot be read: {error}")
            return []

    def _confirmed(
        self, addresses: list[int], head: int, still_in: Callable[[int, int], bool]
    ) -> Iterator[T]:
        for address in addresses:
            try:
                found = self._read(address)
            except GuestDataError as error:
                if still_in(head, address):
                    self._problem(f"one of the {self._what} cannot be read: {error}")
                continue
            if still_in(head, address):
                yield found

    def _linked(self, head: int, address: int) -> bool:
        """Whether what the node says points to it does; or else, whether the chain leads there."""
        node = address + self._link
        try:
            back = self._memory.unpack(_NODE, node)[1]
            assert isinstance(back, int)
            if self._memory.u64(back) == node:
                return True
        except GuestMemoryError:
            pass
        return address in self._follow(head)[0]

    def _settled(self, head: int) -> Chain:
        """A chain, once it holds still."""
        found, fault = self._follow(head)
        for _ in range(TRIES - 1):
            if fault is None:
                break
            found, fault = self._follow(head)
        return found, fault

    def _follow(self, head: int) -> Chain:
        memory, link = self._memory, self._link
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

    def _rhash_chain(self, head: int) -> Chain:
        """Bit 0 of the bucket is its lock; there are no back pointers; the end is an odd mark."""
        found: list[int] = []
        try:
            at = self._memory.u64(head) & ~1
            while at and not at & 1:
                if len(found) >= MAX_RHASH_CHAIN:
                    return found, "has no end"
                found.append(at - self._link)
                at = self._memory.u64(at)
        except GuestMemoryError as error:
            return found, f"is broken: {error}"
        return found, None

    def _in_rhash_chain(self, head: int, address: int) -> bool:
        return address in self._rhash_chain(head)[0]
