"""The compressed symbol names of kallsyms: one of them, all of them, or the index of a name.

Source of the format: scripts/kallsyms.c and kernel/kallsyms.c. A name is a length (one byte, or two
as ULEB128) and as many bytes, each of which stands for a token; a marker stands for each 256 names.
``kallsyms_seqs_of_names`` (6.2, and 6.1 stable) lists the indices in the order of the names.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left, bisect_right
from functools import cached_property

from dvisor.errors import GuestDataError

SEQ_BYTES = 3  # big-endian, scripts/kallsyms.c
SAMPLES = 64
MAX_NAME = 1024
"""Twice KSYM_NAME_LEN (include/linux/kallsyms.h): tokens may unfold a few bytes to gigabytes."""


class Names:
    """The names in the order of the table, which is that of the addresses.

    ``names[i]`` has the symbol's type letter (as ``nm`` prints) in front.
    """

    def __init__(
        self, count: int, names: bytes, markers: bytes, tokens: bytes, seqs: bytes
    ) -> None:
        self._count = count
        self._blob = names
        self._markers = array("I", markers[: len(markers) & ~3])
        self._tokens = tokens.decode("latin-1").split("\0")[:256]
        self._kernels_order = seqs
        self._compared: dict[int, str] = {}

    def __getitem__(self, i: int) -> str:
        """GuestDataError where the table is damaged."""
        blob = self._blob
        try:
            at = self._markers[i >> 8]
            for _ in range(i & 0xFF):
                size = blob[at]
                at += size + 1 if size < 0x80 else (size & 0x7F | blob[at + 1] << 7) + 2
            size = blob[at]
            at += 1
            if size & 0x80:
                size = size & 0x7F | blob[at] << 7
                at += 1
            if size <= MAX_NAME:
                name = "".join(map(self._tokens.__getitem__, blob[at : at + size]))
                if len(name) <= MAX_NAME:
                    return name
        except IndexError:
            pass
        raise GuestDataError("the symbol names are damaged")

    @cached_property
    def all(self) -> list[str]:
        """All of them: a hundred times the work of finding one."""
        blob, found = self._blob, list[str]()
        at, join, token, append = 0, "".join, self._tokens.__getitem__, found.append
        try:
            for _ in range(self._count):
                size = blob[at]
                at += 1
                if size & 0x80:
                    size = size & 0x7F | blob[at] << 7
                    at += 1
                if size > MAX_NAME:
                    raise GuestDataError("a symbol's name is too long")
                name = join(map(token, blob[at : at + size]))
                if len(name) > MAX_NAME:
                    raise GuestDataError("a symbol's name is too long")
                append(name)
                at += size
        except IndexError:
            raise GuestDataError("the symbol names are damaged") from None
        return found

    def find(self, name: str) -> list[int]:
        """Indices of the symbols called ``name``, ascending: static functions may share one."""
        ranks = range(self._count)
        first = bisect_left(ranks, name, key=self._at_rank)
        if first == self._count or self._at_rank(first) != name:
            return []
        last = bisect_right(ranks, name, lo=first, key=self._at_rank)
        return sorted(self._index(self._order, rank) for rank in range(first, last))

    def _at_rank(self, rank: int) -> str:
        """The name, without its letter, at this place of the alphabetical order."""
        i = self._index(self._order, rank)
        name = self._compared.get(i)
        if name is None:
            name = self._compared[i] = self[i][1:]
        return name

    def _index(self, order: bytes, rank: int) -> int:
        i = int.from_bytes(order[SEQ_BYTES * rank : SEQ_BYTES * (rank + 1)], "big")
        if i >= self._count:
            raise GuestDataError("the order of the symbol names is damaged")
        return i

    @cached_property
    def _order(self) -> bytes:
        """The kernel's own order by name; worked out from all names if it has none, or none that
        can be used."""
        if self._is_order(self._kernels_order):
            return self._kernels_order
        names = [name[1:] for name in self.all]
        order = sorted(range(len(names)), key=names.__getitem__)
        return b"".join(i.to_bytes(SEQ_BYTES, "big") for i in order)

    def _is_order(self, seqs: bytes) -> bool:
        # Up to 6.10 a kernel of clang's LTO is sorted by the names without their ".llvm.<hash>".
        if len(seqs) != SEQ_BYTES * self._count or any("llvm" in token for token in self._tokens):
            return False
        ranks = range(0, self._count, max(1, self._count // SAMPLES))
        try:
            names = [self[self._index(seqs, rank)][1:] for rank in ranks]
        except GuestDataError:
            return False
        return all(one <= other for one, other in itertools.pairwise(names))
