"""BTF blobs, built type by type (include/uapi/linux/btf.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from dvisor.guest import btf as bt
from dvisor.guest.btf import Btf

FieldOf = tuple[str, int, int] | tuple[str, int, int, int]
"""Name ("" is anonymous), type id, offset in bits and, of a bit-field, its size in bits."""


class BtfBuilder:
    """Each method adds a type and returns its id. With ``base``, a module's split BTF."""

    def __init__(self, base: Btf | None = None) -> None:
        self.base = base
        self._first_id = base.end_id if base else 1
        self._first_string = base.end_string if base else 0
        self._types: list[bytes] = []
        # A split BTF's strings begin right where the base's end, without an empty one.
        self._strings = bytearray(b"" if base else b"\0")
        self._offsets: dict[str, int] = {"": 0}

    def text(self, name: str) -> int:
        if name not in self._offsets:
            self._offsets[name] = self._first_string + len(self._strings)
            self._strings += name.encode() + b"\0"
        return self._offsets[name]

    def raw(
        self, name: str, kind: int, vlen: int, third: int, *words: int, flag: bool = False
    ) -> int:
        info = kind << 24 | vlen | flag << 31
        values = [self.text(name), info, third, *words]
        self._types.append(b"".join(struct.pack("<I", value & 0xFFFF_FFFF) for value in values))
        return self._first_id + len(self._types) - 1

    def int(self, name: str, size: int, signed: bool = False) -> int:
        return self.raw(name, bt.INT, 0, size, signed << 24 | size * 8)

    def pointer(self, target: int = 0) -> int:
        return self.raw("", bt.PTR, 0, target)

    def array(self, element: int, count: int) -> int:
        return self.raw("", bt.ARRAY, 0, 0, element, element, count)

    def typedef(self, name: str, target: int) -> int:
        return self.raw(name, bt.TYPEDEF, 0, target)

    def const(self, target: int) -> int:
        return self.raw("", bt.CONST, 0, target)

    def struct(
        self,
        name: str,
        size: int,
        fields: Iterable[FieldOf],
        flag: bool = True,
        union: bool = False,
    ) -> int:
        """``flag`` (kind_flag): bit-fields carry their size; otherwise their type does."""
        words: list[int] = []
        fields = list(fields)
        for label, type_id, bits, *width in fields:
            place = bits | width[0] << 24 if flag and width else bits
            words += [self.text(label), type_id, place]
        kind = bt.UNION if union else bt.STRUCT
        return self.raw(name, kind, len(fields), size, *words, flag=flag)

    def enum(self, name: str, size: int, values: dict[str, int], signed: bool = False) -> int:
        words = [word for label, value in values.items() for word in (self.text(label), value)]
        return self.raw(name, bt.ENUM, len(values), size, *words, flag=signed)

    def enum64(self, name: str, values: dict[str, int], signed: bool = False) -> int:
        words = [
            word
            for label, value in values.items()
            for word in (self.text(label), value, value >> 32)
        ]
        return self.raw(name, bt.ENUM64, len(values), 8, *words, flag=signed)

    def blob(self) -> bytes:
        types, strings = b"".join(self._types), bytes(self._strings)
        header = struct.pack(
            "<HBBIIIII", bt.MAGIC, 1, 0, 24, 0, len(types), len(types), len(strings)
        )
        return header + types + strings

    def btf(self) -> Btf:
        return Btf(self.blob(), self.base)


def sample() -> BtfBuilder:
    """A little of everything, in structures that contain one another."""
    b = BtfBuilder()
    u8, u32, s32, u64 = b.int("u8", 1), b.int("u32", 4), b.int("int", 4, True), b.int("u64", 8)
    pointer = b.pointer(u64)
    pid = b.const(b.typedef("pid_t", b.typedef("__kernel_pid_t", s32)))
    inner = b.struct("", 16, [("left", u64, 0), ("right", u32, 64)])
    either = b.struct("", 16, [("", inner, 0), ("whole", u64, 0)], union=True)
    node = b.struct("node", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    fields: list[FieldOf] = [
        ("pid", pid, 0),
        ("", either, 64),
        ("tasks", node, 192),
        ("comm", b.array(u8, 16), 320),
        ("table", b.array(b.array(u32, 3), 5), 448),
        ("flag_a", u32, 928, 1),
        ("flag_b", u32, 929, 5),
        ("wide", u64, 966, 40),
    ]
    task = b.struct("task", 152, fields)
    b.typedef("task_t", task)
    b.struct("plain", 8, [("early", u32, 0), ("late", u32, 32)], flag=False)
    b.enum("state", 4, {"RUNNING": 0, "DEAD": -1}, signed=True)
    b.enum64("huge", {"BIG": 1 << 40, "ALL": (1 << 64) - 1})
    return b
