"""BTF: the kernel's types, as it carries them in its own memory.

Source of the format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h. A module's BTF is
*split*: its type ids and string offsets go on where vmlinux's end. All of it is guest data: each
index is checked, each chain of types is bounded.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from dvisor.errors import GuestDataError, NotFoundError

MAGIC = 0xEB9F
MAX_BYTES = 256 << 20
MAX_NAME = 4096
"""Bytes of a name; the kernel's own limit is 512 (KSYM_NAME_LEN)."""
MAX_CHAIN = 64
"""Longest chain of typedefs and qualifiers followed."""
MAX_ANONYMOUS = 200
"""Anonymous structures that a member is looked for in; the most in a kernel are 24."""
MAX_SAME_STRINGS = 16

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT = range(9, 17)
DECL_TAG, TYPE_TAG, ENUM64 = 17, 18, 19
TRANSPARENT = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})

# 32-bit words that follow the common three: fixed, and per member (vlen).
_FIXED_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_MEMBER_WORDS = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}


class Member(NamedTuple):
    """A member of a structure, however deep: offsets from the start of the outermost one."""

    bit_offset: int
    bit_size: int
    """0 unless it is a bit-field."""
    type_id: int

    @property
    def offset(self) -> int:
        """In bytes."""
        return self.bit_offset // 8


class Btf:
    """One BTF blob; ``base`` is vmlinux's when this one is a module's."""

    def __init__(self, raw: bytes, base: Btf | None = None) -> None:
        if len(raw) < 24 or len(raw) > MAX_BYTES:
            raise GuestDataError(f"BTF of {len(raw)} bytes")
        magic, version, _, header, type_at, type_size, string_at, string_size = struct.unpack_from(
            "<HBBIIIII", raw
        )
        if magic != MAGIC or version != 1 or header < 24:
            raise GuestDataError(f"no BTF here (magic {magic:#x}, version {version})")
        types, strings = header + type_at, header + string_at
        if types + type_size > len(raw) or strings + string_size > len(raw) or type_at % 4:
            raise GuestDataError("the BTF header points outside of the BTF")
        self.base = base
        self._strings = raw[strings : strings + string_size]
        self._types = raw[types : types + (type_size & ~3)]
        self._words = memoryview(self._types).cast("I")
        self._first_id = base.end_id if base else 1
        self._first_string = base.end_string if base else 0
        self._structures: dict[str, int] = {}

    @property
    def end_id(self) -> int:
        """One more than the last type id."""
        return self._first_id + len(self._starts)

    @property
    def end_string(self) -> int:
        return self._first_string + len(self._strings)

    @cached_property
    def _starts(self) -> list[int]:
        """Index into the words of each type, by id."""
        infos, end = array("I", self._types[4:] + bytes(4)), len(self._words)
        sizes: dict[int, int] = {}  # by info word, of which there are a few hundred
        starts: list[int] = []
        at = 0
        while at < end:  # the one loop over all types: each nanosecond in it counts
            try:
                size = sizes[infos[at]]
            except KeyError:
                size = sizes[infos[at]] = _size_in_words(infos[at])
            starts.append(at)
            at += size
        if at != end:
            raise GuestDataError("the last BTF type is cut off")
        return starts

    @cached_property
    def _names(self) -> bytes:
        """The offset of the name of each type, by id, as 4 bytes each: ``bytes.find`` is a quicker
        index of some names than a dictionary of all."""
        return array("I", map(self._words.__getitem__, self._starts)).tobytes()

    def _named(self, string: int) -> Iterator[int]:
        """Ids of this blob's own types with this name, ascending."""
        return (self._first_id + i for i in _positions(self._names, string))

    def _string_offsets(self, name: str) -> list[int]:
        """Offsets of a string, those in the base, which a module uses too, last. Strings are
        unique, so that there is one at most; a hostile BTF may hold several."""
        wanted, found = b"\0" + name.encode() + b"\0", list[int]()
        blob: Btf | None = self
        while blob is not None:
            at = -1
            for _ in range(MAX_SAME_STRINGS):
                at = blob._strings.find(wanted, at + 1)
                if at < 0:
                    break
                found.append(blob._first_string + at + 1)
            blob = blob.base
        return found

    def _at(self, type_id: int) -> tuple[Btf, int]:
        """(the blob that holds the type, index of its first word)."""
        blob: Btf = self
        while type_id < blob._first_id and blob.base is not None:
            blob = blob.base
        index = type_id - blob._first_id
        if not 0 <= index < len(blob._starts):
            raise GuestDataError(f"BTF has no type {type_id}")
        return blob, blob._starts[index]

    def kind(self, type_id: int) -> int:
        """Kind of a type; 0 is void."""
        if type_id == 0:
            return 0
        blob, at = self._at(type_id)
        return blob._words[at + 1] >> 24 & 0x1F

    def string(self, offset: int) -> str:
        blob: Btf = self
        while offset < blob._first_string and blob.base is not None:
            blob = blob.base
        start = offset - blob._first_string
        end = blob._strings.find(b"\0", start, start + MAX_NAME)
        if start < 0 or end < 0:
            raise GuestDataError(f"BTF has no string at {offset}")
        return blob._strings[start:end].decode("utf-8", "replace")

    def name(self, type_id: int) -> str:
        if type_id == 0:
            return "void"
        blob, at = self._at(type_id)
        return self.string(blob._words[at])

    def find(self, name: str, *kinds: int) -> int | None:
        """Id of the first type called ``name`` of one of ``kinds``; a module's own first."""
        strings = self._string_offsets(name)
        blob: Btf | None = self
        while blob is not None:
            for string in strings:
                for type_id in blob._named(string):
                    if blob.kind(type_id) in kinds:
                        return type_id
            blob = blob.base
        return None

    def structure(self, name: str) -> int:
        """Id of the struct or union (or a typedef of one) called ``name``; NotFoundError."""
        if name in self._structures:
            return self._structures[name]
        found = self.find(name, STRUCT, UNION)
        if found is None:
            typedef = self.find(name, TYPEDEF)
            found = None if typedef is None else self.resolve(typedef)
        if found is None or self.kind(found) not in {STRUCT, UNION}:
            raise NotFoundError(f"this kernel has no struct {name}")
        self._structures[name] = found
        return found

    def resolve(self, type_id: int) -> int:
        """The type behind typedefs, const, volatile and tags."""
        for _ in range(MAX_CHAIN):
            if type_id == 0:
                return 0
            blob, at = self._at(type_id)
            if blob._words[at + 1] >> 24 & 0x1F not in TRANSPARENT:
                return type_id
            type_id = blob._words[at + 2]
        raise GuestDataError("BTF types form a loop")

    def target(self, type_id: int) -> int:
        """What a pointer, typedef, function or variable refers to."""
        blob, at = self._at(type_id)
        return blob._words[at + 2]

    def array(self, type_id: int) -> tuple[int, int]:
        """(element type id, number of elements) of an array."""
        blob, at = self._at(type_id)
        return blob._words[at + 3], blob._words[at + 5]

    def signed(self, type_id: int) -> bool:
        """Whether an integer or an enumeration is signed (BTF_INT_SIGNED, kind_flag)."""
        blob, at = self._at(type_id)
        info = blob._words[at + 1]
        if info >> 24 & 0x1F == INT:
            return bool(blob._words[at + 3] >> 24 & 1)
        return bool(info >> 31)

    def is_union_forward(self, type_id: int) -> bool:
        """Whether a forward declaration is of a union (kind_flag)."""
        blob, at = self._at(type_id)
        return bool(blob._words[at + 1] >> 31)

    def parameters(self, type_id: int) -> Iterator[tuple[str, int]]:
        """(name, type id) of a FUNC_PROTO's parameters; a last one of ("", 0) stands for ``...``"""
        blob, at = self._at(type_id)
        words = blob._words
        for i in range(at + 3, at + 3 + 2 * (words[at + 1] & 0xFFFF), 2):
            yield self.string(words[i]), words[i + 1]

    def size(self, type_id: int) -> int:
        """Size in bytes; 8 for a pointer; 0 for void and functions."""
        total = 1
        for _ in range(MAX_CHAIN):
            type_id = self.resolve(type_id)
            kind = self.kind(type_id)
            if kind == ARRAY:
                type_id, count = self.array(type_id)
                total *= count
                continue
            if kind == PTR:
                return total * 8
            if kind in {INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, DATASEC}:
                return total * self.target(type_id)
            return 0
        raise GuestDataError("BTF types form a loop")

    def members(self, type_id: int) -> Iterator[tuple[str, Member]]:
        """Direct members of a struct or union; an anonymous one has an empty name."""
        blob, at = self._at(type_id)
        words = blob._words
        info = words[at + 1]
        flag = info >> 31  # kind_flag: the offset's top byte is a bit-field's size
        for i in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            bits = words[i + 2]
            offset, size = (bits & 0xFFFFFF, bits >> 24) if flag else (bits, 0)
            yield self.string(words[i]), Member(offset, size, words[i + 1])

    def member(self, structure: int, path: str) -> Member | None:
        """Member by dotted path (``signal.nr_threads`` only through embedded structures, since
        a pointer has no fixed place); looks inside anonymous members; None if there is none."""
        bits, found = 0, Member(0, 0, structure)
        for part in path.split("."):
            inner = self._search(self.resolve(found.type_id), part, set())
            if inner is None:
                return None
            bits += inner.bit_offset
            found = inner
        return Member(bits, found.bit_size, found.type_id)

    def _search(self, structure: int, name: str, seen: set[int]) -> Member | None:
        """``seen``: structures in which it is not, so that those in a loop are searched once."""
        if structure in seen or len(seen) > MAX_ANONYMOUS:
            return None
        seen.add(structure)
        if self.kind(structure) not in {STRUCT, UNION}:
            return None
        for label, member in self.members(structure):
            if label == name:
                return member
            if label:
                continue
            inner = self._search(self.resolve(member.type_id), name, seen)
            if inner is not None:
                return inner._replace(bit_offset=inner.bit_offset + member.bit_offset)
        return None

    def enumerators(self, type_id: int) -> Iterator[tuple[str, int]]:
        """(name, value) of an enumeration's constants."""
        blob, at = self._at(type_id)
        info = blob._words[at + 1]
        step = 3 if info >> 24 & 0x1F == ENUM64 else 2
        for i in range(at + 3, at + 3 + step * (info & 0xFFFF), step):
            yield self.string(blob._words[i]), blob._value(info, i)

    def _value(self, info: int, at: int) -> int:
        """Of the enumerator at this word, in an enumeration with this info word."""
        value, width = self._words[at + 1], 32
        if info >> 24 & 0x1F == ENUM64:
            value, width = value | self._words[at + 2] << 32, 64
        return value - (1 << width) if info >> 31 and value >> (width - 1) else value

    def constant(self, name: str) -> int | None:
        """Value of the enumeration constant ``name``, in whichever enumeration it is."""
        strings = self._string_offsets(name)
        blob: Btf | None = self
        while blob is not None:
            for string in strings:
                for word in _positions(blob._types, string):
                    value = blob._value_if_enumerator(word)
                    if value is not None:
                        return value
            blob = blob.base
        return None

    def _value_if_enumerator(self, word: int) -> int | None:
        at = self._starts[bisect_right(self._starts, word) - 1]
        info = self._words[at + 1]
        kind, distance = info >> 24 & 0x1F, word - at - 3
        if kind not in {ENUM, ENUM64} or distance < 0 or distance % _MEMBER_WORDS[kind]:
            return None
        return self._value(info, word)


def _size_in_words(info: int) -> int:
    kind = info >> 24 & 0x1F
    return 3 + _FIXED_WORDS.get(kind, 0) + _MEMBER_WORDS.get(kind, 0) * (info & 0xFFFF)


def _positions(words: bytes, wanted: int) -> Iterator[int]:
    """Indices of the 32-bit words that are ``wanted``, ascending."""
    needle, at = struct.pack("<I", wanted), -1
    while (at := words.find(needle, at + 1)) >= 0:
        if at % 4 == 0:
            yield at // 4
