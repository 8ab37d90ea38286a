"""The kernel's own symbol table, found and decoded in its memory.

Source of the format: scripts/kallsyms.c and kernel/kallsyms.c. What changed between releases is
told from the bytes, not from the version:

- order: ``offsets, relative_base, num_syms, names, markers, ...tokens`` up to 6.3, and from 6.4
  (404bad70fcf7) ``num_syms, names, markers, tokens, offsets[, relative_base]``;
- address of a symbol: ``base + u32``; or, with absolute per-CPU symbols, a negative number counts
  down from the base; or, without a base, relative to the place of the number itself.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap

from dvisor.addresses import MASK64
from dvisor.errors import GuestDataError

# Digits are always used in symbols and therefore always stand for themselves.
SIGNATURE = b"".join(b"%d\0" % digit for digit in range(10))
MAX_SYMBOLS = 4_000_000
MAX_NAME_BYTES = 0x3FFF  # two-byte ULEB128, scripts/kallsyms.c
TEXT_START = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map: no symbol of the image is below (arch/x86/include/asm/page_64_types.h)."""


@dataclass(frozen=True, slots=True)
class Image:
    """The kernel image in a buffer: bytes [start, end), of which the first has ``virtual``."""

    buffer: bytes | mmap
    start: int
    end: int
    virtual: int

    def address(self, position: int) -> int:
        return self.virtual + position - self.start

    def position(self, address: int) -> int:
        return address - self.virtual + self.start


@dataclass(frozen=True, slots=True)
class Tables:
    """Where kallsyms' parts stand in the image's buffer, checked against each other."""

    count: int
    names: int
    markers: int
    tokens: int
    index: int
    offsets: int
    base: int
    """Position of the base address; 0 where the offsets are place-relative."""


def find_tables(image: Image, near: int | None = None) -> Tables:
    """Search the image, from position ``near`` on; GuestDataError says which part is missing."""
    buffer, at, seen = image.buffer, image.start if near is None else near, 0
    reason = "no token table"
    while (hit := buffer.find(SIGNATURE, at, image.end)) >= 0 and seen < 16:
        at, seen = hit + 1, seen + 1
        try:
            return _tables_around(image, hit)
        except (GuestDataError, IndexError, struct.error) as error:
            reason = str(error)
    raise GuestDataError(f"no symbol table in the kernel image: {reason}")


def _tables_around(image: Image, digits: int) -> Tables:
    buffer = image.buffer
    tokens = digits
    for _ in range(ord("0")):
        tokens = buffer.rfind(b"\0", max(image.start, tokens - 512), tokens - 1) + 1
        if tokens <= image.start:
            raise GuestDataError("the token table has no beginning")
    text = bytes(buffer[tokens : tokens + 256 * 64])
    starts, at = [], 0
    for _ in range(256):
        starts.append(at)
        at = text.find(b"\0", at) + 1
        if not at:
            raise GuestDataError("the token table has no end")
    expected = struct.pack("<256H", *starts)
    index = buffer.find(expected, tokens + at, tokens + at + 16 + len(expected))
    if index < 0:
        raise GuestDataError("the token index does not match the token table")
    markers, marks = _markers_before(image, tokens)
    count, names = _names_before(image, markers, marks)
    offsets, base = _offsets_near(image, names, count, index + 512)
    return Tables(count, names, markers, tokens, index, offsets, base)


def _markers_before(image: Image, tokens: int) -> tuple[int, array[int]]:
    """(position, values) of the markers: u32 ascending from 0, right before the tokens; or before
    seqs_of_names, 3 bytes a symbol, where that stands in between (6.2, and 6.1 stable)."""
    start = max(image.start, tokens - 4 * MAX_SYMBOLS) & ~3
    words = memoryview(bytes(image.buffer[start : tokens & ~3])).cast("I")
    end = len(words)
    while end and end > len(words) - 4 and not words[end - 1]:  # padding up to the tokens
        end -= 1
    first = end - 1
    while first > 0 and words[first - 1] < words[first]:
        first -= 1
    if end - first > 1 and words[first] == 0:
        return start + 4 * first, array("I", words[first:end].tobytes())
    for end in range(len(words), 0, -1):
        between = 4 * (len(words) - end)
        most = (between // 3 + 255) // 256
        for size in (most, most - 1):  # padding may feign a few symbols more
            first = end - size
            if size > 1 and first > 0 and not words[first] and _ascending(words[first:end]):
                return start + 4 * first, array("I", words[first:end].tobytes())
    raise GuestDataError("no markers before the token table")


def _ascending(marks: memoryview[int]) -> bool:
    """Markers grow by 256 names: at least 512 bytes, at most 256 times the longest."""
    return all(512 <= after - before <= 256 * 256 for before, after in itertools.pairwise(marks))


def _names_before(image: Image, markers: int, marks: array[int]) -> tuple[int, int]:
    """(count, position of names). Names end where the markers begin, give or take padding."""
    low, high = 256 * (len(marks) - 1), 256 * len(marks)
    if high > MAX_SYMBOLS + 256:
        raise GuestDataError(f"an absurd number of symbols: {high}")
    buffer = image.buffer
    last = marks[-1]
    # names = markers - last - tail, tail at most 256 names; num_syms stands 8 or 4 before it.
    for names in range((markers - last) & ~3, markers - last - 256 * 256, -4):
        if names - 8 < image.start:
            break
        for gap in (8, 4):
            (count,) = struct.unpack_from("<I", buffer, names - gap)
            if low < count <= high and _tail_fits(buffer, names + last, count - low, markers):
                return count, names
    raise GuestDataError("no symbol names before the markers")


def _tail_fits(buffer: bytes | mmap, at: int, left: int, end: int) -> bool:
    for _ in range(left):
        if at >= end:
            return False
        size = buffer[at]
        if size & 0x80:
            size = (size & 0x7F) | buffer[at + 1] << 7
            at += 1
        if not size:
            return False
        at += size + 1
    return 0 <= end - at < 8


def _offsets_near(image: Image, names: int, count: int, after: int) -> tuple[int, int]:
    """(position of the offsets, position of their base or 0 when they are place-relative)."""
    buffer = image.buffer
    for at in (names - 16, names - 24):  # old order: offsets, base, num_syms (padded), names
        (base,) = struct.unpack_from("<Q", buffer, at)
        if TEXT_START <= base < MASK64:
            return (at - 4 * count) & ~7, at
    offsets = after
    end = (offsets + 4 * count + 7) & ~7
    if end + 8 > image.end:
        raise GuestDataError("the symbol offsets leave the kernel image")
    (base,) = struct.unpack_from("<Q", buffer, end)
    return offsets, end if TEXT_START <= base < MASK64 else 0


class Kallsyms:
    """Names and addresses of all of the kernel image's symbols (not of its modules').

    Everything is decoded at first use: addresses in about 10 ms, names in about 100.
    """

    def __init__(self, image: Image, tables: Tables) -> None:
        self._image = image
        self._tables = tables
        raw = bytes(image.buffer[tables.offsets : tables.offsets + 4 * tables.count])
        self._raw = array("i", raw)

    def __len__(self) -> int:
        return self._tables.count

    @cached_property
    def addresses(self) -> list[int]:
        """Address of symbol i, as linked into the running kernel; per-CPU ones are offsets
        where the kernel was built with absolute per-CPU symbols."""
        if not self._tables.base:
            place = self._image.address(self._tables.offsets)
            return [(place + 4 * i + offset) & MASK64 for i, offset in enumerate(self._raw)]
        (base,) = struct.unpack_from("<Q", self._image.buffer, self._tables.base)
        # With absolute per-CPU symbols every text symbol is negative; without, the image is far
        # smaller than 2 GiB, so that no offset is.
        if min(self._raw) < 0:
            return [raw if raw >= 0 else base - 1 - raw for raw in self._raw]
        return [base + raw for raw in self._raw]

    @cached_property
    def names(self) -> list[str]:
        """Name of symbol i, with its type letter (as ``nm`` prints) in front."""
        tables = self._tables
        blob = bytes(self._image.buffer[tables.names : tables.markers])
        found: list[str] = []
        at, join, token = 0, "".join, self._tokens.__getitem__
        try:
            for _ in range(tables.count):
                size = blob[at]
                at += 1
                if size & 0x80:
                    size = (size & 0x7F) | blob[at] << 7
                    at += 1
                found.append(join(map(token, blob[at : at + size])))
                at += size
        except IndexError:
            raise GuestDataError("the symbol names are damaged") from None
        return found

    @cached_property
    def _tokens(self) -> list[str]:
        tables = self._tables
        raw = bytes(self._image.buffer[tables.tokens : tables.index])
        return [part.decode("latin-1") for part in raw.split(b"\0")[:256]]

    @cached_property
    def _by_name(self) -> dict[str, int]:
        """Index by name; of several with one name (static functions) the first counts."""
        names = [name[1:] for name in self.names]
        return dict(zip(reversed(names), range(len(names) - 1, -1, -1), strict=True))

    @cached_property
    def _order(self) -> tuple[list[int], list[int]]:
        """(addresses ascending, their symbol indices)."""
        addresses = self.addresses
        order = sorted(range(len(addresses)), key=addresses.__getitem__)
        return [addresses[i] for i in order], order

    def lookup(self, name: str) -> int | None:
        i = self._by_name.get(name)
        return None if i is None else self.addresses[i]

    def all_named(self, name: str) -> list[int]:
        """Every address with this name: static functions may share one."""
        return [
            address
            for full, address in zip(self.names, self.addresses, strict=True)
            if full[1:] == name
        ]

    def near(self, address: int) -> tuple[str, int] | None:
        """(name, distance) of the last symbol at or before ``address``."""
        ascending, order = self._order
        i = bisect_right(ascending, address) - 1
        if i < 0:
            return None
        first = bisect_right(ascending, ascending[i] - 1)
        return self.names[order[first]][1:], address - ascending[i]

    def after(self, address: int) -> int:
        """The lowest address of a symbol above ``address``; ``address`` itself if there is none."""
        ascending, _ = self._order
        i = bisect_right(ascending, address)
        return ascending[i] if i < len(ascending) else address
