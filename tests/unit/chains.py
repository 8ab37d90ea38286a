"""Guest memory made of chains, for tests of what follows them."""

from __future__ import annotations

import struct

from dvisor.errors import GuestMemoryError
from dvisor.guest.memory import Memory

BASE = 0xFFFF_8880_0000_0000


class ChainMemory(Memory):
    """Flat memory at BASE; everything else is unmapped."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        at = address - BASE
        if at < 0 or at + size > len(self.data):
            raise GuestMemoryError(f"no page is mapped at {address:#x}", address)
        return bytes(self.data[at : at + size])

    def u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def unpack(self, fmt: struct.Struct, address: int) -> tuple[int | bytes, ...]:
        return fmt.unpack(self.read(address, fmt.size))

    def put(self, address: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.data, address - BASE, *words)


NODES = BASE + 0x1000
LINK = 16
"""Offset of the hlist node in each entry."""


def table(chains: list[list[int]], nulls: bool = False) -> ChainMemory:
    """A table at BASE, one head each 8 bytes; entry n's structure is at ``entry(n)``."""
    memory = ChainMemory(0x20000)
    for bucket, numbers in enumerate(chains):
        pointer = BASE + 8 * bucket
        for number in numbers:
            node = entry(number) + LINK
            memory.put(pointer, node)
            memory.put(node + 8, pointer)
            pointer = node
        memory.put(pointer, bucket << 1 | 1 if nulls else 0)
    return memory


def entry(number: int) -> int:
    """Address of structure ``number`` of ``table``."""
    return NODES + number * 0x100
