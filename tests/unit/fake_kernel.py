"""A kernel without a guest: layouts from a table, memory from a dictionary of pages."""

from __future__ import annotations

import struct

from dvisor.errors import GuestMemoryError
from dvisor.guest.kernel import Kernel
from dvisor.guest.memory import Memory
from dvisor.guest.records import Place

PAGE = 4096


class FakeMemory(Memory):
    """Pages that were written exist; all others are unmapped."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.windows = ()
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        parts = []
        while size > 0:
            page = self.pages.get(address // PAGE)
            if page is None:
                raise GuestMemoryError(f"no page is mapped at {address:#x}", address)
            part = bytes(page[address % PAGE :][:size])
            parts.append(part)
            address, size = address + len(part), size - len(part)
        return b"".join(parts)

    def u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def unpack(self, fmt: struct.Struct, address: int) -> tuple[int | bytes, ...]:
        return fmt.unpack(self.read(address, fmt.size))

    def write(self, address: int, data: bytes) -> None:
        for at, byte in enumerate(data, address):
            self.pages.setdefault(at // PAGE, bytearray(PAGE))[at % PAGE] = byte


class FakeKernel(Kernel):
    """``layouts``: ``"struct.member"`` to (offset, struct code); ``symbols``: addresses."""

    def __init__(
        self, layouts: dict[str, tuple[int, str]], symbols: dict[str, int] | None = None
    ) -> None:
        self.memory: FakeMemory = FakeMemory()
        self.layouts = layouts
        self.named = symbols or {}
        self._records = {}

    def place(self, structure: str, path: str) -> Place | None:
        for name in path.split("|"):
            found = self.layouts.get(f"{structure}.{name}")
            if found:
                offset, code = found
                scalar = "" if code[0].isdigit() and code[-1] != "s" else code
                return Place(offset, scalar, struct.calcsize("<" + code))
        return None

    def find_symbol(self, *names: str) -> int | None:
        return next((self.named[name] for name in names if name in self.named), None)

    def constant(self, name: str) -> int | None:
        return None

    def put(self, structure: str, address: int, **members: int) -> None:
        """Write members; a dot in a member's name is written as two underscores."""
        for name, value in members.items():
            place = self.place(structure, name.replace("__", "."))
            assert place, f"{structure}.{name}"
            self.memory.write(address + place.offset, struct.pack("<" + place.code, value))
