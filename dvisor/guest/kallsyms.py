"""The kernel's own symbol table, found and decoded in its memory.

Source of the format: scripts/kallsyms.c and kernel/kallsyms.c. What changed between releases is
told from the bytes, not from the version:

- order: ``offsets, relative_base, num_syms, names, markers[, seqs_of_names], tokens`` up to 6.3,
  and from 6.4 (404bad70fcf7) ``num_syms, names, markers, tokens, offsets[, relative_base],
  seqs_of_names``;
- address of a symbol: ``base + u32``; or, with absolute per-CPU symbols, a negative number counts
  down from the base; or, without a base, relative to the place of the number itself.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from mmap import mmap

from dvisor.addresses import MASK64
from dvisor.errors import GuestDataError
from dvisor.guest.kallsyms_names import SAMPLES, SEQ_BYTES, Names

# Digits are always used in symbols and therefore always stand for themselves.
SIGNATURE = b"".join(b"%d\0" % digit for digit in range(10))
MAX_SYMBOLS = 4_000_000
MAX_MARKERS = MAX_SYMBOLS // 256
MAX_ZEROS = 256
"""Zero words that are tried as the first marker; before it the order by name has a handful."""
TEXT_START = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map: no symbol of the image is below (arch/x86/include/asm/page_64_types.h)."""


@dataclass(frozen=True, slots=True)
class Image:
    """The kernel image in a buffer: bytes [start, end), of which the first has ``virtual``."""

    buffer: bytes | mmap
    start: int
    """Negative in a copy of a later part."""
    end: int
    virtual: int

    def address(self, position: int) -> int:
        return self.virtual + position - self.start

    def position(self, address: int) -> int:
        return address - self.virtual + self.start

    def part(self, start: int, end: int) -> Image:
        """A copy of [start, end), at position 0, that the guest cannot change any more."""
        raw = bytes(self.buffer[start:end])
        return Image(raw, self.start - start, len(raw), self.virtual)


@dataclass(frozen=True, slots=True)
class Tables:
    """Where kallsyms' parts stand in the image's buffer, checked against each other."""

    count: int
    names: int
    markers: int
    tokens: int
    index: int
    offsets: int
    base: int | None
    """Position of the base address; None where the offsets are place-relative."""
    seqs: int | None
    """Position of the order by name; None where the kernel has none."""

    def moved(self, by: int) -> Tables:
        """The same tables, ``by`` bytes further on."""
        return Tables(
            self.count,
            self.names + by,
            self.markers + by,
            self.tokens + by,
            self.index + by,
            self.offsets + by,
            None if self.base is None else self.base + by,
            None if self.seqs is None else self.seqs + by,
        )

    def parts(self) -> list[tuple[int, int]]:
        """(start, end) of what symbols are worked out from, but for the base address: names to
        token index, offsets, and the order by name if there is one."""
        found = [
            (self.names, self.index + 512),
            (self.offsets, self.offsets + 4 * self.count),
        ]
        if self.seqs is not None:
            found.append((self.seqs, self.seqs + SEQ_BYTES * self.count))
        return found

    def base_address(self, image: Image) -> int | None:
        """What offsets count from; None where that is their own place."""
        if self.base is None:
            return None
        address: int = struct.unpack_from("<Q", image.buffer, self.base)[0]
        return address


def find_tables(image: Image) -> Tables:
    """Search the image; GuestDataError says which part is missing."""
    buffer, at, seen = image.buffer, image.start, 0
    reason = "no token table"
    while (hit := buffer.find(SIGNATURE, at, image.end)) >= 0 and seen < 16:
        at, seen = hit + 1, seen + 1
        try:
            return tables_around(image, hit)
        except GuestDataError as error:
            reason = str(error)
    raise GuestDataError(f"no symbol table in the kernel image: {reason}")


def tables_around(image: Image, digits: int) -> Tables:
    """The tables to which a SIGNATURE at this position belongs; GuestDataError if to none."""
    try:
        tokens, index = _tokens_around(image, digits)
        count, names, markers = _names_before(image, tokens)
        offsets, base = _offsets_near(image, names, count, index + 512)
    except (IndexError, struct.error):
        raise GuestDataError("the symbol table leaves the kernel image") from None
    found = Tables(count, names, markers, tokens, index, offsets, base, None)
    return replace(found, seqs=_seqs_in(image, found))


def _tokens_around(image: Image, digits: int) -> tuple[int, int]:
    """(position of the tokens, of their index). They begin where the index says that the digits
    are: looking back for it would take in what stands before them, if it does not end in zero."""
    buffer = image.buffer
    text = bytes(buffer[digits : digits + 256 * 64])
    end = 0
    for _ in range(ord("0"), 256):
        end = text.find(b"\0", end) + 1
        if not end:
            raise GuestDataError("the token table has no end")
    after = digits + end
    for index in range(after, after + 16):
        (before,) = struct.unpack_from("<H", buffer, index + 2 * ord("0"))
        tokens = digits - before
        found = bytes(buffer[tokens:after]).split(b"\0") if tokens >= image.start else []
        starts = [0, *itertools.accumulate(len(token) + 1 for token in found[:-2])]
        if len(starts) == 256 and buffer[index : index + 512] == struct.pack("<256H", *starts):
            return tokens, index
    raise GuestDataError("the token index does not match the token table")


def _names_before(image: Image, tokens: int) -> tuple[int, int, int]:
    """(count, position of the names, of their markers)."""
    for markers, marks in (*_markers_before(image, tokens), *_markers_before_seqs(image, tokens)):
        found = _names_marked(image, markers, marks)
        if found:
            return *found, markers
    raise GuestDataError("no symbol names and markers before the token table")


def _markers_before(image: Image, tokens: int) -> Iterator[tuple[int, array[int]]]:
    """(position, values) of the markers: u32 ascending from 0, right before the tokens."""
    start = max(image.start, tokens - 4 * MAX_MARKERS) & ~3
    words = array("I", bytes(image.buffer[start : tokens & ~3]))
    while len(words) > 1 and tokens - start - 4 * len(words) < 12 and not words[-1]:
        words.pop()  # padding up to the tokens
    first = len(words) - 1
    while first > 0 and words[first - 1] < words[first]:
        first -= 1
    if len(words) - first > 1 and words[first] == 0:
        yield start + 4 * first, words[first:]


def _markers_before_seqs(image: Image, end: int) -> Iterator[tuple[int, array[int]]]:
    """The same where seqs_of_names stands between the markers and the tokens."""
    start = max(image.start, end - (4 + 256 * SEQ_BYTES) * MAX_MARKERS)
    zero = end
    for _ in range(MAX_ZEROS):
        zero = image.buffer.rfind(bytes(4), start, zero + 3)
        if zero < 0:
            break
        # One marker and 256 of the order's numbers, but for the last time, and paddings.
        most = (end - zero + 255 * SEQ_BYTES) // (4 + 256 * SEQ_BYTES)
        for size in (most, most - 1):
            if size > 1 and not zero % 4:
                marks = array("I", bytes(image.buffer[zero : zero + 4 * size]))
                if _ascending(marks):
                    yield zero, marks


def _ascending(marks: array[int]) -> bool:
    """Markers grow by 256 names: at least 512 bytes, at most 256 times the longest."""
    return all(512 <= after - before <= 256 * 256 for before, after in itertools.pairwise(marks))


def _names_marked(image: Image, markers: int, marks: array[int]) -> tuple[int, int] | None:
    """(count, position of the names). Names end where the markers begin, give or take padding."""
    low, high = 256 * (len(marks) - 1), 256 * len(marks)
    if high > MAX_SYMBOLS + 256:
        return None
    buffer = image.buffer
    last = marks[-1]
    # names = markers - last - tail, tail at most 256 names; num_syms stands 8 or 4 before it.
    for names in range((markers - last) & ~3, markers - last - 256 * 256, -4):
        if names - 8 < image.start:
            break
        for gap in (8, 4):
            (count,) = struct.unpack_from("<I", buffer, names - gap)
            if not low < count <= high:
                continue
            first = _after_names(buffer, names, markers, 256)
            end = _after_names(buffer, names + last, markers, count - low)
            if first == names + marks[1] and 0 <= markers - end < 8:
                return count, names
    return None


def _after_names(buffer: bytes | mmap, at: int, limit: int, count: int) -> int:
    """Where so many names end; 0 if these are no names."""
    for _ in range(count):
        if at >= limit:
            return 0
        size = buffer[at]
        if size & 0x80:
            size = (size & 0x7F) | buffer[at + 1] << 7
            at += 1
        if not size:
            return 0
        at += size + 1
    return at


def _offsets_near(image: Image, names: int, count: int, after: int) -> tuple[int, int | None]:
    """(position of the offsets, position of their base or None when they are place-relative)."""
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
    return offsets, end if TEXT_START <= base < MASK64 else None


def _seqs_in(image: Image, tables: Tables) -> int | None:
    """Position of seqs_of_names if there is one: after the markers; in the new order, the end."""
    size, end = SEQ_BYTES * tables.count, image.end
    if tables.offsets < tables.names:
        after, end = tables.markers + 4 * -(-tables.count // 256), tables.tokens
    elif tables.base is not None:
        after = tables.base + 8
    else:
        after = tables.offsets + 4 * tables.count
    for at in (after, (after + 7) & ~7):  # aligned to 8, later to 4
        sample = range(at, at + size, SEQ_BYTES * max(1, tables.count // SAMPLES))
        numbers = (image.buffer[i : i + SEQ_BYTES] for i in sample)
        if at + size <= end and all(int.from_bytes(n, "big") < tables.count for n in numbers):
            return at
    return None


class Kallsyms:
    """Names and addresses of all of the kernel image's symbols (not of its modules').

    A look-up decodes some twenty names. Of the image's bytes it keeps copies of its own.
    """

    def __init__(self, image: Image, tables: Tables) -> None:
        buffer = image.buffer
        self._count = tables.count
        names, offsets, *seqs = (bytes(buffer[start:end]) for start, end in tables.parts())
        self._offsets = array("i", offsets)
        if len(self._offsets) != tables.count:
            raise GuestDataError("the symbol offsets leave the kernel image")
        self._base = tables.base_address(image)
        self._place = image.address(tables.offsets)
        markers, tokens, index = (
            at - tables.names for at in (tables.markers, tables.tokens, tables.index)
        )
        self._names = Names(
            tables.count,
            names[:markers],
            names[markers : markers + 4 * -(-tables.count // 256)],
            names[tokens:index],
            b"".join(seqs),
        )

    def __len__(self) -> int:
        return self._count

    def address(self, i: int) -> int:
        """Address of symbol i, as linked into the running kernel; per-CPU ones are offsets
        where the kernel was built with absolute per-CPU symbols."""
        offset = self._offsets[i]
        if self._base is None:
            return (self._place + 4 * i + offset) & MASK64
        # With absolute per-CPU symbols all of the image's are negative, and they are the last;
        # without, the image is far smaller than 2 GiB, so that no offset is.
        if self._offsets[-1] >= 0:
            return self._base + offset
        return offset if offset >= 0 else self._base - 1 - offset

    @property
    def addresses(self) -> list[int]:
        """Address of each symbol; ascending, unless the guest lies."""
        return list(map(self.address, range(self._count)))

    @property
    def names(self) -> list[str]:
        """Name of each symbol, with its type letter (as ``nm`` prints) in front; decoded at first
        use, in about 100 ms."""
        return self._names.all

    def lookup(self, name: str) -> int | None:
        """Address of the first symbol called ``name``; None if there is none."""
        found = self._names.find(name)
        return self.address(found[0]) if found else None

    def all_named(self, name: str) -> list[tuple[str, int]]:
        """(type letter, address) of all called ``name``: static functions may share one."""
        return [(self._names[i][0], self.address(i)) for i in self._names.find(name)]

    def near(self, address: int) -> tuple[str, int] | None:
        """(name, distance) of the last symbol at or before ``address``; the first of several."""
        # The table is in the order of addresses: get_symbol_pos (kernel/kallsyms.c) relies on it.
        after = bisect_right(range(self._count), address, key=self.address)
        if not after:
            return None
        start = self.address(after - 1)
        first = bisect_left(range(after), start, key=self.address)
        return self._names[first][1:], address - start

    def after(self, address: int) -> int:
        """The lowest address of a symbol above ``address``; ``address`` itself if there is none."""
        i = bisect_right(range(self._count), address, key=self.address)
        return self.address(i) if i < self._count else address
