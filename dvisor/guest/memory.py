"""Guest memory by virtual address.

Three kinds of kernel address, cheapest first: the direct map and the kernel image are linear, so
a read there is one subtraction; everything else (vmalloc, modules, per-CPU, fixmap) is walked
through the page tables each time, because the guest may change them at any moment.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dvisor.addresses import MASK64, PAGE_SIZE, GuestPhysical, GuestVirtual
from dvisor.errors import GuestMemoryError
from dvisor.guest import paging
from dvisor.machine.engine import Engine

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
READ_LIMIT = 64 << 20
"""No honest single object of the kernel is larger: a wild length must not eat the host's memory."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A run of virtual addresses that maps to consecutive physical ones."""

    virtual: int
    physical: int
    size: int


class Memory:
    """Reads of one kernel address space (``root``: its page table) over an engine."""

    def __init__(self, engine: Engine, root: int, levels: int, linear: tuple[Linear, ...]) -> None:
        self.engine = engine
        self.root = root
        self.levels = levels
        self.read_physical = engine.read
        self.linear = linear
        # (first va, last va + 1, buffer, what to add to a va to index the buffer), hottest first.
        self.windows = tuple(
            (start, end, block.buffer, block.offset - block.gpa + run.physical - run.virtual)
            for run in linear
            for block in engine.ram()
            if block.buffer is not None
            for start, end in [_overlap(run, block.gpa, block.end)]
            if start < end
        )

    def unpack(self, fmt: struct.Struct, address: int) -> tuple[int | bytes, ...]:
        """``fmt`` decoded at ``address``."""
        size = fmt.size
        for start, end, buffer, delta in self.windows:
            if start <= address and address + size <= end:
                return fmt.unpack_from(buffer, address + delta)
        return fmt.unpack(self.read(address, size))

    def u64(self, address: int) -> int:
        for start, end, buffer, delta in self.windows:
            if start <= address and address + 8 <= end:
                value: int = U64.unpack_from(buffer, address + delta)[0]
                return value
        return int.from_bytes(self.read(address, 8), "little")

    def u32(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4), "little")

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes; GuestMemoryError when any page of them is absent."""
        if not 0 <= size <= READ_LIMIT:
            raise GuestMemoryError(f"refused to read {size} bytes at {address:#x}", address)
        for start, end, buffer, delta in self.windows:
            if start <= address and address + size <= end:
                return bytes(buffer[address + delta : address + delta + size])
        parts = []
        while size:
            part = min(size, PAGE_SIZE - address % PAGE_SIZE)
            parts.append(self.read_physical(self.physical(address), part))
            address, size = (address + part) & MASK64, size - part
        return b"".join(parts)

    def string(self, address: int, limit: int = 4096) -> bytes:
        """The bytes before the first NUL, at most ``limit`` of them."""
        parts = []
        while limit > 0:
            part = self.read(address, min(limit, PAGE_SIZE - address % PAGE_SIZE, 256))
            end = part.find(0)
            if end >= 0:
                parts.append(part[:end])
                break
            parts.append(part)
            address, limit = address + len(part), limit - len(part)
        return b"".join(parts)

    def physical(self, address: int) -> GuestPhysical:
        """Where ``address`` stands in guest physical memory; GuestMemoryError if nowhere."""
        for run in self.linear:
            if 0 <= address - run.virtual < run.size:
                return GuestPhysical(address - run.virtual + run.physical)
        page = self.walk(address)
        return GuestPhysical(page.physical + address - page.virtual)

    def walk(self, address: int) -> paging.Mapping:
        """The page tables' own answer, whatever the linear maps say."""
        if not _canonical(address, self.levels):
            raise GuestMemoryError(f"{address:#x} is not a canonical address", address)
        return paging.translate(self.read_physical, self.root, self.levels, address)

    def user(self, root: int) -> Memory:
        """The address space of a process, whose page table is at physical ``root``."""
        return Memory(self.engine, root & paging.ADDRESS_MASK, self.levels, ())


def _overlap(run: Linear, gpa: int, end: int) -> tuple[GuestVirtual, int]:
    """The part of ``run`` that RAM [gpa, end) backs, as virtual addresses."""
    start = max(run.physical, gpa)
    stop = min(run.physical + run.size, end)
    shift = run.virtual - run.physical
    return GuestVirtual(start + shift), stop + shift


def _canonical(address: int, levels: int) -> bool:
    top = address >> (47 if levels == 4 else 56)
    return top in {0, (1 << (17 if levels == 4 else 8)) - 1}
