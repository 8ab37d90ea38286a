"""ORC: for each instruction of the kernel, where its caller's frame is.

Source: arch/x86/include/asm/orc_types.h and arch/x86/kernel/unwind_orc.c. Two parallel sorted
tables, for the kernel and for each module: addresses (relative to their own place), and entries of
6 bytes. The numbers in an entry have no names in BTF and were changed, so they are probed.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from dvisor.addresses import MASK64
from dvisor.errors import GuestDataError
from dvisor.guest.kallsyms import TEXT_START
from dvisor.guest.kernel import Kernel
from dvisor.guest.lists import Problem, list_entries

MAX_ENTRIES = 1 << 24
"""Of one table; a large distribution kernel has about 2^20."""

MAX_MODULES = 1 << 14


class Base(enum.Enum):
    """What an entry's offset counts from (ORC_REG_*)."""

    UNDEFINED = "undefined"
    PREV_SP = "previous sp"
    AX = "ax"
    DX = "dx"
    DI = "di"
    R10 = "r10"
    R13 = "r13"
    BP = "bp"
    SP = "sp"
    BP_INDIRECT = "at bp"
    SP_INDIRECT = "at sp"


class Kind(enum.Enum):
    """What stands at the frame's end (ORC_TYPE_*)."""

    UNDEFINED = "undefined"
    END = "end of stack"
    CALL = "return address"
    REGS = "pt_regs"
    REGS_PARTIAL = "interrupt frame"


class Entry(NamedTuple):
    """How to find the caller's frame from some instruction on."""

    sp_offset: int
    bp_offset: int
    sp_base: Base
    bp_base: Base
    kind: Kind
    signal: bool
    """The frame found was interrupted: its address is the next instruction, not a return."""


FRAME_POINTER = Entry(16, -16, Base.BP, Base.PREV_SP, Kind.CALL, False)
"""The guess for code without entries (orc_fp_entry)."""

# Register numbers by that of SP, which every function's first instruction betrays.
_BASES = {
    5: "undefined,previous sp,dx,di,bp,sp,r10,r13,at bp,at sp",
    3: "undefined,ax,dx,sp,bp,di,r10,r13,previous sp,at sp,at bp",
}
_KINDS = [Kind.UNDEFINED, Kind.END, Kind.CALL, Kind.REGS, Kind.REGS_PARTIAL]
_OLD_KINDS = [Kind.CALL, Kind.REGS, Kind.REGS_PARTIAL]  # with a bit ``end`` beside, before 6.4
_IP = struct.Struct("<i")


class _Table(NamedTuple):
    addresses: int
    entries: int
    length: int


class Orc:
    """The ORC data of the kernel and its modules."""

    def __init__(self, kernel: Kernel, problem: Problem) -> None:
        self.kernel = kernel
        self.problem = problem
        self._modules: list[tuple[int, int, _Table]] | None = None
        self._text = [
            (start, end)
            for first, last in (("_stext", "_etext"), ("_sinittext", "_einittext"))
            if (start := kernel.find_symbol(first)) and (end := kernel.find_symbol(last))
        ]
        start, stop = (
            kernel.find_symbol(f"__{edge}_orc_unwind_ip") or 0 for edge in ("start", "stop")
        )
        count = min(max(stop - start, 0) // 4, MAX_ENTRIES)
        self._table = _Table(start, kernel.find_symbol("__start_orc_unwind") or 0, count)
        self._layout = kernel.place("orc_entry", "sp_reg") is not None
        self._bases = self._probe_bases() if count and self._layout else []
        if not self._bases:
            problem("this kernel has no ORC data that dvisor can read: frames are guessed")

    def is_text(self, address: int) -> bool:
        """Whether ``address`` is in the kernel's or a module's code (__kernel_text_address())."""
        if address < TEXT_START:
            return False
        return any(start <= address < end for start, end in self._text) or any(
            start <= address < end for start, end, _ in self.modules()
        )

    def find(self, address: int) -> Entry | None:
        """The entry for the instruction at ``address``; None where there is none."""
        if not self._bases:
            return None
        if any(start <= address < end for start, end in self._text):
            return self._search(self._table, address)
        for start, end, table in self.modules():
            if start <= address < end:
                return self._search(table, address)
        return None

    def modules(self) -> list[tuple[int, int, _Table]]:
        """(start, end, ORC table) of each module's code."""
        if self._modules is None:
            self._modules = []
            try:
                self._read_modules(self._modules)
            except GuestDataError as error:
                self.problem(f"the modules cannot be read: {error}")
        return self._modules

    def _read_modules(self, found: list[tuple[int, int, _Table]]) -> None:
        kernel = self.kernel
        head, link = kernel.find_symbol("modules"), kernel.place("module", "list")
        if head is None or link is None or kernel.place("module", "arch.num_orcs") is None:
            return
        mem = kernel.place("module", "mem")
        if mem:  # ac3b43283923 (6.4): one module_memory a kind, the code's (MOD_TEXT) first
            text, start = kernel.record("module_memory", "base", "size"), mem.offset
        else:
            text, start = kernel.record("module", "core_layout.base", "core_layout.text_size"), 0
        tables = kernel.record("module", "arch.orc_unwind_ip", "arch.orc_unwind", "arch.num_orcs")
        for module in list_entries(
            kernel.memory, head, link.offset, self.problem, "modules", MAX_MODULES
        ):
            base, size = text.read(module + start)
            addresses, entries, count = tables.read(module)
            found.append((base, base + size, _Table(addresses, entries, min(count, MAX_ENTRIES))))

    def _probe_bases(self) -> list[Base]:
        """Which numbering this kernel has: at a function's first instruction the caller's frame
        is 8 bytes above SP."""
        raw = self._raw(self._table, self.kernel.symbol("schedule"))
        if raw is None or self._field(raw, "sp_offset") != 8:
            return []
        names = _BASES.get(self._field(raw, "sp_reg"))
        return [Base(name) for name in names.split(",")] if names else []

    def _raw(self, table: _Table, address: int) -> bytes | None:
        """The last entry at or before ``address``; of equal ones the last counts (__orc_find())."""
        memory, first, last = self.kernel.memory, 0, table.length - 1
        found = -1
        while first <= last:
            middle = (first + last) // 2
            at = table.addresses + 4 * middle
            (distance,) = memory.unpack(_IP, at)
            assert isinstance(distance, int)
            if (at + distance) & MASK64 <= address:
                found, first = middle, middle + 1
            else:
                last = middle - 1
        if found < 0:
            return None
        size = self.kernel.size_of("orc_entry")
        return memory.read(table.entries + size * found, size)

    def _field(self, raw: bytes, name: str) -> int:
        where = self.kernel.place("orc_entry", name)
        if where is None:
            return 0
        part = raw[where.offset : where.offset + where.size]
        value = int.from_bytes(part, "little", signed=not where.bits)
        return value >> where.shift & ((1 << where.bits) - 1) if where.bits else value

    def _search(self, table: _Table, address: int) -> Entry | None:
        raw = self._raw(table, address)
        if raw is None:
            return None
        sp, bp, kind = (self._field(raw, name) for name in ("sp_reg", "bp_reg", "type"))
        bases = self._bases
        kinds = _KINDS
        if self.kernel.place("orc_entry", "end"):
            kinds = _OLD_KINDS
            if not sp:  # ORC_REG_UNDEFINED: nothing is known here, or nothing is above
                end = Kind.END if self._field(raw, "end") else Kind.UNDEFINED
                return Entry(0, 0, Base.UNDEFINED, Base.UNDEFINED, end, False)
        if sp >= len(bases) or bp >= len(bases) or kind >= len(kinds):
            raise GuestDataError(f"the ORC entry for {address:#x} is damaged: {raw.hex()}")
        signal = bool(self._field(raw, "signal"))
        if self.kernel.place("orc_entry", "signal") is None:  # before 6.3 the kind implied it
            signal = kinds[kind] is not Kind.CALL
        return Entry(
            self._field(raw, "sp_offset"),
            self._field(raw, "bp_offset"),
            bases[sp],
            bases[bp],
            kinds[kind],
            signal,
        )
