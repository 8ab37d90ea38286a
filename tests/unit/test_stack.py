"""Unwinding a stack that was made up, over ORC data that was made up."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.guest.orc import Orc
from dvisor.guest.stack import MAX_FRAMES, StackRange, Start, Unwinder
from tests.unit.invented import InventedKernel

TEXT = 0xFFFF_FFFF_8100_0000
IPS, ENTRIES, MODULES = TEXT + 0x10_0000, TEXT + 0x20_0000, TEXT + 0x30_0000
STACK, STACK_SIZE = 0xFFFF_C900_0000_0000, 0x4000
LEAF, MIDDLE, FRAMED, THREAD, ENTRY, NOWHERE = (TEXT + i * 0x100 for i in range(6))

PT_REGS = {"bp": (32, "Q"), "ip": (128, "Q"), "cs": (136, "Q"), "sp": (152, "Q")}
NEW = {"sp_reg": (4, "B:0:4"), "bp_reg": (4, "B:4:4"), "type": (5, "B:0:3"), "signal": (5, "B:3:1")}
OLD = {"sp_reg": (4, "B:0:4"), "bp_reg": (4, "B:4:4"), "type": (5, "B:0:2"), "end": (5, "B:2:1")}
OFFSETS = {"sp_offset": (0, "h"), "bp_offset": (2, "h")}


class Encoding:
    """Numbers of one generation of ORC data (arch/x86/include/asm/orc_types.h)."""

    def __init__(self, old: bool) -> None:
        self.fields = {**OFFSETS, **(OLD if old else NEW)}
        self.sp, self.bp, self.previous = (5, 4, 1) if old else (3, 4, 8)
        self.call, self.regs = (0, 1) if old else (2, 3)
        self.old = old

    def entry(self, sp_offset: int, base: int, kind: int, bp_base: int = 0, bp: int = 0) -> bytes:
        return struct.pack("<hhBB", sp_offset, bp, base | bp_base << 4, kind)

    def end(self) -> bytes:
        return struct.pack("<hhBB", 0, 0, 0, 4 if self.old else 1)

    def unknown(self) -> bytes:
        return bytes(6)


def invent(old: bool) -> tuple[InventedKernel, Encoding]:
    code = Encoding(old)
    table = [
        (LEAF, code.entry(8, code.sp, code.call)),
        (MIDDLE, code.entry(24, code.sp, code.call)),
        (FRAMED, code.entry(16, code.bp, code.call, code.previous, -16)),
        (THREAD, code.end()),
        (ENTRY, code.entry(0, code.sp, code.regs)),
        (NOWHERE, code.unknown()),
    ]
    symbols = {
        "schedule": LEAF,
        "_stext": TEXT,
        "_etext": TEXT + 0x1000,
        "__start_orc_unwind_ip": IPS,
        "__stop_orc_unwind_ip": IPS + 4 * len(table),
        "__start_orc_unwind": ENTRIES,
        "modules": MODULES,
    }
    kernel = InventedKernel(symbols, {"orc_entry": (6, code.fields), "pt_regs": (168, PT_REGS)})
    memory = kernel.memory
    memory.area(IPS, 4 * len(table))
    memory.area(ENTRIES, 6 * len(table))
    memory.area(STACK, STACK_SIZE)
    for i, (address, raw) in enumerate(table):
        memory.put(IPS + 4 * i, "i", address - (IPS + 4 * i))
        memory.put(ENTRIES + 6 * i, "6s", raw)
    return kernel, code


def unwound(
    kernel: InventedKernel, ip: int, sp: int, bp: int = 0
) -> tuple[list[tuple[int, bool]], list[str]]:
    """((address, reliable) of each frame, problems)."""
    problems: list[str] = []
    stacks = [StackRange("task", STACK, STACK + STACK_SIZE)]
    start = Start(ip, sp, bp, True, stacks)
    orc = Orc(kernel.as_kernel(), problems.append)
    unwinder = Unwinder(kernel.as_kernel(), orc, start, problems.append)
    return [(address, ok) for address, _, ok, _ in unwinder.frames()], problems


both_generations = pytest.mark.parametrize("old", [True, False], ids=["6.1", "6.4"])


@both_generations
def test_calls_are_followed_to_the_end_of_a_kernel_thread(old: bool) -> None:
    kernel, _ = invent(old)
    sp = STACK + 0x3000
    kernel.memory.put(sp, "Q", MIDDLE + 5)  # pushed by the call of the leaf
    kernel.memory.put(sp + 8 + 16, "Q", FRAMED + 7)
    bp = sp + 0x100
    kernel.memory.put(bp, "QQ", 0, THREAD + 9)
    frames, problems = unwound(kernel, LEAF, sp, bp)
    assert frames == [(LEAF, True), (MIDDLE + 5, True), (FRAMED + 7, True), (THREAD + 9, True)]
    assert problems == []


@both_generations
def test_it_ends_where_user_mode_was_left(old: bool) -> None:
    kernel, _ = invent(old)
    sp = STACK + 0x3000
    kernel.memory.put(sp, "Q", ENTRY + 3)
    regs = sp + 8
    kernel.memory.put(regs + 128, "QQ", 0x40_1000, 0x33)
    frames, problems = unwound(kernel, LEAF, sp)
    assert frames == [(LEAF, True), (ENTRY + 3, True)]
    assert problems == []


@both_generations
def test_an_interrupted_function_is_found_through_its_registers(old: bool) -> None:
    kernel, _ = invent(old)
    sp = STACK + 0x3000
    kernel.memory.put(sp, "Q", ENTRY + 3)
    regs, interrupted = sp + 8, sp + 0x200
    kernel.memory.put(regs + 128, "QQ", FRAMED + 1, 0x10)
    kernel.memory.put(regs + 152, "Q", interrupted)
    kernel.memory.put(regs + 32, "Q", interrupted + 0x40)  # its frame pointer
    kernel.memory.put(interrupted + 0x40, "QQ", 0, THREAD + 9)
    frames, problems = unwound(kernel, LEAF, sp)
    assert [address for address, _ in frames] == [LEAF, ENTRY + 3, FRAMED + 1, THREAD + 9]
    assert problems == []


@both_generations
def test_what_is_only_found_on_the_stack_is_marked(old: bool) -> None:
    kernel, _ = invent(old)
    sp = STACK + 0x3F00
    kernel.memory.put(sp, "Q", NOWHERE + 4)  # code that ORC knows nothing of
    kernel.memory.put(sp + 0x40, "Q", MIDDLE + 5)
    frames, problems = unwound(kernel, LEAF, sp)
    assert frames[:2] == [(LEAF, True), (NOWHERE + 4, True)]
    assert frames[2:] == [(MIDDLE + 5, False)]
    assert "no way up" in problems[0]


def test_a_kernel_without_orc_data_says_so() -> None:
    kernel, _ = invent(old=False)
    kernel.symbols_by_name["__stop_orc_unwind_ip"] = IPS
    _, problems = unwound(kernel, LEAF, STACK + 0x3F00)
    assert "no ORC data" in problems[0]


@given(
    st.lists(
        st.one_of(
            st.integers(TEXT, TEXT + 0x600),
            st.integers(STACK, STACK + 0x800).map(lambda n: n & -8),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=200,
    ),
    st.integers(TEXT, TEXT + 0x600),
    st.integers(STACK - 64, STACK + 0x800),
    st.booleans(),
)
def test_any_stack_has_an_end(words: list[int], ip: int, sp: int, old: bool) -> None:
    kernel, _ = invent(old)
    kernel.memory.put(STACK, f"{len(words)}Q", *words)
    frames, problems = unwound(kernel, ip, sp, sp + 16)
    assert len(frames) <= 2 * MAX_FRAMES
    assert all(ok for _, ok in frames) or problems


@given(st.binary(min_size=36, max_size=36), st.integers(STACK, STACK + 0x100))
def test_damaged_orc_data_is_a_problem_and_no_crash(raw: bytes, sp: int) -> None:
    kernel, code = invent(old=False)
    kernel.memory.put(ENTRIES, "36s", raw)
    kernel.memory.put(ENTRIES, "6s", code.entry(8, code.sp, code.call))
    kernel.memory.put(STACK, "64Q", *[TEXT + i * 8 for i in range(64)])
    frames, _ = unwound(kernel, MIDDLE, sp, sp)
    assert len(frames) <= 2 * MAX_FRAMES
