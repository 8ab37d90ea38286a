"""Members of a kernel structure, read together in one go.

A record is compiled once from the guest's own BTF into one ``struct`` format with padding, so that
reading ten members of a task costs one call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from dvisor.errors import NotFoundError, UnsupportedError
from dvisor.guest import btf as bt
from dvisor.guest.memory import Memory

MAX_TEXT = 1 << 16
"""Bytes of an array that is read whole with a record."""


class Place(NamedTuple):
    """Where a member stands and how it is decoded."""

    offset: int
    code: str
    """A ``struct`` code (``i``, ``Q``, ``16s``), or "" for what has no scalar form."""
    size: int
    shift: int = 0
    bits: int = 0
    """For a bit-field: shift and width inside the number that ``code`` reads; else 0."""

    @property
    def is_bytes(self) -> bool:
        return self.code.endswith("s")


def place(types: bt.Btf, structure: str, path: str) -> Place | None:
    """Look ``path`` up in ``structure``; None where this kernel has no such member."""
    member = types.member(types.structure(structure), path)
    if member is None:
        return None
    size = types.size(member.type_id)
    if member.bit_size:
        shift = member.bit_offset % 8
        width = next((n for n in (1, 2, 4, 8) if shift + member.bit_size <= 8 * n), 8)
        return Place(member.offset, _number(width, False), width, shift, member.bit_size)
    return Place(member.offset, _code(types, member.type_id, size), size)


def _code(types: bt.Btf, type_id: int, size: int) -> str:
    type_id = types.resolve(type_id)
    kind = types.kind(type_id)
    if kind == bt.PTR:
        return "Q"
    if kind in {bt.INT, bt.ENUM, bt.ENUM64} and size in {1, 2, 4, 8}:
        return _number(size, types.signed(type_id))
    if kind == bt.ARRAY and size <= MAX_TEXT and types.size(types.array(type_id)[0]) == 1:
        return f"{size}s"
    return ""


def _number(size: int, signed: bool) -> str:
    code = {1: "b", 2: "h", 4: "i", 8: "q"}[size]
    return code if signed else code.upper()


class Record:
    """``read(address)`` gives the members as a tuple, in the order in which they were asked for.

    Numbers are ints, pointers are ints, character arrays are bytes; an optional member that this
    kernel lacks is None.
    """

    def __init__(self, memory: Memory, structure: str, places: list[Place | None]) -> None:
        self.structure = structure
        self._memory = memory
        present = sorted({where for where in places if where is not None})
        self._first = present[0].offset if present else 0
        text, at = "<", self._first
        for where in present:
            if where.offset < at:
                raise UnsupportedError(f"members of {structure} overlap: read them apart")
            text += f"{where.offset - at}x{where.code}"
            at = where.offset + struct.calcsize("<" + where.code)
        self._format = struct.Struct(text)
        self._shape = _shape(places, present)
        # memory.windows by the address of the structure: this is the hottest path of all.
        skip, size = self._first, self._format.size
        self._windows = tuple(
            (start - skip, end - skip - size, buffer, delta + skip)
            for start, end, buffer, delta in memory.windows
        )

    def read(self, address: int) -> tuple[Any, ...]:
        for first, last, buffer, delta in self._windows:
            if first <= address <= last:
                values = self._format.unpack_from(buffer, address + delta)
                break
        else:
            raw = self._memory.read(address + self._first, self._format.size)
            values = self._format.unpack(raw)
        return values if self._shape is None else self._shape(values)


def _shape(
    places: list[Place | None], present: list[Place]
) -> Callable[[tuple[Any, ...]], tuple[Any, ...]] | None:
    """What turns values in memory order into the asked order; None when they are the same."""
    order = [None if where is None else present.index(where) for where in places]
    fields = [where for where in places if where is not None and where.bits]
    if order == list(range(len(places))) and not fields:
        return None
    if None not in order and not fields and len(order) > 1:
        return itemgetter(*(i for i in order if i is not None))

    def arrange(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            None
            if i is None or where is None
            else (values[i] >> where.shift & ((1 << where.bits) - 1) if where.bits else values[i])
            for i, where in zip(order, places, strict=True)
        )

    return arrange


def missing(structure: str, field: str) -> NotFoundError:
    return NotFoundError(
        f"this kernel's struct {structure} has no member {' or '.join(field.split('|'))}: "
        "dvisor does not know this kernel yet; please report its release"
    )
