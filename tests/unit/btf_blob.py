"""BTF written by a test (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct

from dvisor.guest import btf as bt


class BtfBlob:
    """Types are added in order; each ``add`` returns its id."""

    def __init__(self) -> None:
        self._types = b""
        self._strings = b"\0"
        self._next = 1

    def raw(self) -> bytes:
        sizes = len(self._types), len(self._types), len(self._strings)
        header = struct.pack("<HBBIIIII", bt.MAGIC, 1, 0, 24, 0, *sizes)
        return header + self._types + self._strings

    def add(
        self,
        kind: int,
        name: str = "",
        size_or_type: int = 0,
        vlen: int = 0,
        flag: bool = False,
        words: tuple[int, ...] = (),
    ) -> int:
        info = flag << 31 | kind << 24 | vlen
        self._types += struct.pack("<III", self._string(name), info, size_or_type)
        self._types += struct.pack(f"<{len(words)}I", *words)
        self._next += 1
        return self._next - 1

    def integer(self, name: str, size: int, signed: bool = False) -> int:
        return self.add(bt.INT, name, size, words=(signed << 24 | size * 8,))

    def pointer(self, target: int) -> int:
        return self.add(bt.PTR, size_or_type=target)

    def array(self, element: int, count: int) -> int:
        return self.add(bt.ARRAY, words=(element, element, count))

    def compound(
        self, name: str, size: int, *members: tuple[str, int, int, int], kind: int = bt.STRUCT
    ) -> int:
        """``members``: (name, type id, offset in bits, width in bits or 0)."""
        words = [
            word
            for label, type_id, bits, width in members
            for word in (self._string(label), type_id, width << 24 | bits)
        ]
        return self.add(kind, name, size, len(members), flag=True, words=tuple(words))

    def enumeration(self, name: str, size: int, **values: int) -> int:
        words = [
            word
            for label, value in values.items()
            for word in (self._string(label), value & 0xFFFF_FFFF)
        ]
        signed = any(value < 0 for value in values.values())
        return self.add(bt.ENUM, name, size, len(values), flag=signed, words=tuple(words))

    def _string(self, text: str) -> int:
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text.encode()) - 1
