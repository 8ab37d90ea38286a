"""The kernel stack of a task: through which functions it came to where it is.

The unwinder is the kernel's own (arch/x86/kernel/unwind_orc.c), over the same ORC data, read from
outside. Where that ends before the stack does, the rest is only searched for code addresses: such
frames are marked, as the kernel marks them with "?".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from dvisor.addresses import MASK64, PAGE_SIZE
from dvisor.errors import GuestDataError, GuestMemoryError, NotFoundError, UnsupportedError
from dvisor.guest.cpus import cpu_registers, current_task
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.lists import Problem
from dvisor.guest.orc import FRAME_POINTER, Base, Entry, Kind, Orc
from dvisor.guest.resolve import Resolver
from dvisor.machine.engine import CpuRegisters

MAX_FRAMES = 256
MAX_SCAN_BYTES = 64 << 10


class Frame(msgspec.Struct, frozen=True):
    """One function that has not returned yet."""

    address: int
    """Where it goes on: a return address, or where it was interrupted."""
    symbol: str
    """Its name; empty where none is known."""
    offset: int
    """Of ``address`` in the function, as the kernel prints it (%pB), and the function's size."""
    size: int
    module: str
    """Empty for the kernel itself, ``bpf`` for a compiled BPF program."""
    reliable: bool
    """False: only found on the stack, it may be left over from an earlier call."""
    stack: str
    """``task``; for a task that runs also ``irq``, ``exception`` and ``entry``."""


def read_stack(kernel: Kernel, task: int) -> Listing[Frame]:
    """The kernel stack of the task_struct at ``task``, innermost frame first.

    Empty for a task in user mode and for one that has exited. A task that runs in the kernel
    is read by its vCPU's registers, which is exact only while the guest is stopped.
    """
    listing: Listing[Frame] = Listing()
    orc = Orc(kernel, listing.problem)
    try:
        start = _start(kernel, task)
    except UnsupportedError as error:
        listing.problem(f"the task runs now, and its registers cannot be read: {error}")
        return listing
    if start is None:
        return listing
    resolver = Resolver(kernel)
    unwinder = Unwinder(kernel, orc, start, listing.problem)
    for address, exact, reliable, stack in unwinder.frames():
        listing.append(_frame(resolver, address, exact, reliable, stack))
    return listing


class StackRange(NamedTuple):
    """A stack that the task may be on."""

    name: str
    start: int
    end: int


class Start(NamedTuple):
    """Where to begin. ``exact``: ``ip`` is the next instruction, not a return address."""

    ip: int
    sp: int
    bp: int
    exact: bool
    stacks: list[StackRange]


def _start(kernel: Kernel, task: int) -> Start | None:
    (base,) = kernel.record("task_struct", "stack").read(task)
    if not base:  # release_task_stack()
        return None
    # Both have 4 pages, or with KASAN 8 (arch/x86/include/asm/page_64_types.h).
    stacks = [StackRange("task", base, base + kernel.size_of("irq_stack"))]
    cpu = _cpu_of(kernel, task)
    if cpu is not None:
        return _running(kernel, cpu, stacks)
    (sp,) = kernel.record("task_struct", "thread.sp").read(task)
    bp, ip = kernel.record("inactive_task_frame", "bp", "ret_addr").read(sp)
    # A new task has not called __switch_to_asm(): it will start there (__unwind_start()).
    exact = ip == kernel.find_symbol("ret_from_fork_asm", "ret_from_fork")
    return Start(ip, sp + kernel.size_of("inactive_task_frame"), bp, exact, stacks)


def _cpu_of(kernel: Kernel, task: int) -> int | None:
    """The CPU that runs it now; None if none does."""
    for cpu in kernel.cpus():
        try:
            if current_task(kernel, cpu) == task:
                return cpu
        except GuestDataError:
            continue
    return None


def _running(kernel: Kernel, cpu: int, stacks: list[StackRange]) -> Start | None:
    registers: CpuRegisters | None = cpu_registers(kernel).get(cpu)
    if registers is None:
        raise UnsupportedError(f"the engine knows no vCPU for the guest's CPU {cpu}")
    if registers.cpl == 3:
        return None
    symbol, inner = kernel.find_symbol("hardirq_stack_ptr"), 0
    if symbol is None and (place := kernel.place("pcpu_hot", "hardirq_stack_ptr")):
        symbol, inner = kernel.find_symbol("pcpu_hot"), place.offset
    if symbol is not None:
        end = kernel.memory.u64(kernel.per_cpu(symbol, cpu) + inner) + 8  # map_irq_stack()
        stacks.append(StackRange("irq", end - kernel.size_of("irq_stack"), end))
    symbol = kernel.find_symbol("cea_exception_stacks")
    if symbol is not None:
        start = kernel.memory.u64(kernel.per_cpu(symbol, cpu))
        size = kernel.size_of("cea_exception_stacks")
        stacks.append(StackRange("exception", start, start + size))
        # The one that the CPU switches to when it leaves user mode, in the same area.
        start += kernel.offset("cpu_entry_area", "entry_stack_page")
        start -= kernel.offset("cpu_entry_area", "estacks")
        stacks.append(StackRange("entry", start, start + kernel.size_of("entry_stack_page")))
    return Start(registers.rip, registers.rsp, registers.rbp, True, stacks)


@dataclass
class _Words:
    """The stacks' memory, each page read once; nothing else is read."""

    kernel: Kernel
    stacks: list[StackRange]
    pages: dict[int, bytes] = field(default_factory=dict)

    def on(self, address: int) -> StackRange | None:
        return next((s for s in self.stacks if s.start <= address <= s.end - 8), None)

    def word(self, address: int) -> int:
        if self.on(address) is None or address % 8:
            raise GuestMemoryError(f"{address:#x} is not on a stack of the task", address)
        page = address & -PAGE_SIZE
        if page not in self.pages:
            self.pages[page] = self.kernel.memory.read(page, PAGE_SIZE)
        (value,) = struct.unpack_from("<Q", self.pages[page], address - page)
        assert isinstance(value, int)
        return value


class Unwinder:
    """struct unwind_state, and unwind_next_frame()."""

    def __init__(self, kernel: Kernel, orc: Orc, start: Start, problem: Problem) -> None:
        self.kernel = kernel
        self.orc = orc
        self.problem = problem
        self.words = _Words(kernel, start.stacks)
        self.ip, self.sp, self.bp, self.signal, _ = start
        self.regs = self.earlier_regs = 0
        """Address of the pt_regs of this frame, and of the last full ones; 0 for none."""
        self.full = False
        self.guessed = False

    def frames(self) -> Iterator[tuple[int, bool, bool, str]]:
        """(address, whether it is exact, whether it is reliable, name of the stack)."""
        try:
            for _ in range(MAX_FRAMES):
                if self.regs and self._register(self.regs, "cs") & 3 == 3:
                    return  # it came from user mode
                if not self.orc.is_text(self.ip):
                    raise GuestDataError(f"{self.ip:#x} is not in the kernel's code")
                yield self.ip, self.signal, not self.guessed, self._stack()
                if not self._step():
                    return
            self.problem(f"the stack has more than {MAX_FRAMES} frames")
        except (GuestDataError, NotFoundError) as error:
            self.problem(f"the unwinding stopped early: {error}")
            yield from self._scan()

    def _stack(self) -> str:
        found = self.words.on(self.sp - 8)
        return found.name if found else "task"

    def _scan(self) -> Iterator[tuple[int, bool, bool, str]]:
        """Code addresses above the place where unwinding failed."""
        stack = self.words.on(self.sp)
        if stack is None:
            return
        found = 0
        for at in range(self.sp & -8, min(stack.end, self.sp + MAX_SCAN_BYTES), 8):
            try:
                word = self.words.word(at)
            except GuestMemoryError:
                return
            if found < MAX_FRAMES and self.orc.is_text(word):
                found += 1
                yield word, False, False, stack.name

    def _step(self) -> bool:
        """Go to the caller's frame; False where there is none."""
        entry = self.orc.find(self.ip if self.signal else self.ip - 1)
        if entry is None:
            entry, self.guessed = FRAME_POINTER, True
        if entry.kind is Kind.END:
            return False
        if entry.kind is Kind.UNDEFINED:
            raise GuestDataError(f"there is no way up from {self.ip:#x}")
        before, stack = self.sp, self.words.on(self.sp)
        sp = self._previous_sp(entry)
        self._enter(entry, sp)
        if entry.bp_base is Base.PREV_SP:
            self.bp = self.words.word((sp + entry.bp_offset) & MASK64)
        elif entry.bp_base is Base.BP:
            self.bp = self.words.word((self.bp + entry.bp_offset) & MASK64)
        else:
            saved = self._saved("bp")
            self.bp = self.bp if saved is None else saved
        self.signal = entry.signal
        if stack is not None and stack == self.words.on(self.sp) and self.sp <= before:
            raise GuestDataError("the stack goes in the wrong direction")
        return True

    def _previous_sp(self, entry: Entry) -> int:
        """The stack pointer before the call, or where the registers were pushed."""
        base, offset = entry.sp_base, entry.sp_offset
        if base is Base.SP:
            return (self.sp + offset) & MASK64
        if base is Base.BP:
            return (self.bp + offset) & MASK64
        if base is Base.SP_INDIRECT:
            return (self.words.word(self.sp) + offset) & MASK64
        if base is Base.BP_INDIRECT:
            return self.words.word((self.bp + offset) & MASK64)
        saved = self._saved(base.value)
        if saved is None:
            raise GuestDataError(f"register {base.value} is not known at {self.ip:#x}")
        return saved

    def _enter(self, entry: Entry, sp: int) -> None:
        if entry.kind is Kind.CALL:
            self.ip, self.sp = self.words.word(sp - 8), sp
            self.regs = self.earlier_regs = 0
            return
        frame = self.kernel.offset("pt_regs", "ip")
        if entry.kind is Kind.REGS:
            self.regs, self.earlier_regs, self.full = sp, 0, True
        else:  # only what the CPU itself pushed (IRET_FRAME_OFFSET)
            if self.full:
                self.earlier_regs = self.regs
            self.regs, self.full = sp - frame, False
        self.ip, self.sp = self._register(self.regs, "ip"), self._register(self.regs, "sp")

    def _saved(self, name: str) -> int | None:
        """A register of the interrupted frame (get_reg())."""
        regs = self.regs if self.full else self.earlier_regs
        return self._register(regs, name) if self.regs and regs else None

    def _register(self, regs: int, name: str) -> int:
        return self.words.word(regs + self.kernel.offset("pt_regs", name))


def _frame(resolver: Resolver, address: int, exact: bool, reliable: bool, stack: str) -> Frame:
    # A call that never returns may be its function's last instruction: look up the call itself.
    before = 0 if exact else 1
    found = resolver.find(address - before)
    if found is None:
        return Frame(address, "", 0, 0, "", reliable, stack)
    distance = found.distance + before if found.name else 0
    return Frame(address, found.name, distance, found.size_bytes, found.module, reliable, stack)
