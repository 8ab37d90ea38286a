"""A kernel that is invented for a test: some symbols, some structures, some memory."""

from __future__ import annotations

import struct
from typing import cast

from dvisor.errors import GuestMemoryError, NotFoundError
from dvisor.guest.kernel import Kernel
from dvisor.guest.memory import Memory
from dvisor.guest.records import Place, Record


class InventedMemory(Memory):
    """Bytes by address; all other addresses are unmapped."""

    def __init__(self) -> None:
        self.windows = ()
        self.areas: dict[int, bytearray] = {}

    def area(self, start: int, size_bytes: int) -> bytearray:
        self.areas[start] = bytearray(size_bytes)
        return self.areas[start]

    def read(self, address: int, size: int) -> bytes:
        for start, area in self.areas.items():
            if start <= address and address + size <= start + len(area):
                return bytes(area[address - start : address - start + size])
        raise GuestMemoryError(f"no page is mapped at {address:#x}", address)

    def put(self, address: int, fmt: str, *values: int | bytes) -> None:
        for start, area in self.areas.items():
            if start <= address < start + len(area):
                struct.pack_into("<" + fmt, area, address - start, *values)
                return
        raise KeyError(f"{address:#x}")


class InventedKernel:
    """``structures``: size, and offset and struct code of each member."""

    def __init__(
        self,
        symbols: dict[str, int],
        structures: dict[str, tuple[int, dict[str, tuple[int, str]]]],
    ) -> None:
        self.memory = InventedMemory()
        self.symbols_by_name = symbols
        self.structures = structures

    def as_kernel(self) -> Kernel:
        return cast(Kernel, self)

    def find_symbol(self, *names: str) -> int | None:
        return next((self.symbols_by_name[n] for n in names if n in self.symbols_by_name), None)

    def symbol(self, *names: str) -> int:
        found = self.find_symbol(*names)
        if found is None:
            raise NotFoundError(names[0])
        return found

    def size_of(self, structure: str) -> int:
        return self.structures[structure][0]

    def place(self, structure: str, path: str) -> Place | None:
        members = self.structures.get(structure, (0, {}))[1]
        for name in path.split("|"):
            if name in members:
                offset, code = members[name]
                if ":" in code:  # a bit-field: "B:shift:width"
                    code, shift, bits = code.split(":")
                    return Place(offset, code, struct.calcsize(code), int(shift), int(bits))
                return Place(offset, code, struct.calcsize(code))
        return None

    def offset(self, structure: str, path: str) -> int:
        found = self.place(structure, path)
        if found is None:
            raise NotFoundError(path)
        return found.offset

    def record(self, structure: str, *fields: str) -> Record:
        places = [
            self.place(structure, field.removesuffix("?").removesuffix("[]")) for field in fields
        ]
        return Record(self.memory, structure, places)
