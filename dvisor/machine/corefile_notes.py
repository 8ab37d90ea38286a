"""The notes of a vmcore: vCPU registers as QEMU keeps them, and VMCOREINFO; both ways.

Layouts: QEMU target/i386/arch_dump.c (x86_64_elf_prstatus, QEMUCPUState), dump/dump.c
(VMCOREINFO); Linux include/linux/elfcore.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dvisor.errors import UsageError
from dvisor.machine.engine import CpuRegisters

NT_PRSTATUS = 1
_HEADER = struct.Struct("<III")
_PRSTATUS = struct.Struct("<32xI76x27Q8x")
# version, size; rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags; ten segments of (selector,
# limit, flags, pad, base): cs ds es fs gs ss ldt tr gdt idt; cr0-cr4. Newer QEMUs add
# kernel_gs_base at the end and say so by ``size``.
_CPU_STATE = struct.Struct("<II18Q" + "IIIIQ" * 10 + "5Q")
_KERNEL_GS = struct.Struct("<Q")
_CPU_STATE_VERSION = 1
_RSP, _RBP, _RIP, _RFLAGS, _SEGMENTS, _CR = 8, 9, 18, 19, 20, 70
_CS, _FS, _GS, _SS, _IDT = 0, 3, 4, 5, 9
# What QEMU's note lacks: our own note of (index, halted, EFER).
_OURS = struct.Struct("<IIQ")
_OURS_NAME = b"DVISOR"
_EFER_LONG_MODE = 0x500  # LME and LMA (Intel SDM vol. 3A, 2.2.1)
MAX_VCPUS = 4096


@dataclass(frozen=True, slots=True)
class Note:
    """One ELF note; ``name`` without its ending zero."""

    name: bytes
    kind: int
    data: bytes


def parse_notes(raw: bytes) -> Iterator[Note]:
    """The notes in a PT_NOTE segment; UsageError where one runs over its end."""
    at = 0
    while at + _HEADER.size <= len(raw):
        name_size, data_size, kind = _HEADER.unpack_from(raw, at)
        name_at = at + _HEADER.size
        data_at = name_at + _padded(name_size)
        at = data_at + _padded(data_size)
        if data_at + data_size > len(raw):
            raise UsageError("the core file's notes are damaged: one runs over their end")
        if name_size == 0 and data_size == 0 and kind == 0:
            return  # padding, as at the end of /proc/vmcore's notes
        name = raw[name_at : name_at + name_size].rstrip(b"\0")
        yield Note(name, kind, raw[data_at : data_at + data_size])


def pack_note(note: Note) -> bytes:
    """``note`` as it stands in a PT_NOTE segment."""
    name = note.name + b"\0"
    header = _HEADER.pack(len(name), len(note.data), note.kind)
    return header + _filled(name) + _filled(note.data)


def registers_of(notes: Iterable[Note]) -> tuple[CpuRegisters, ...]:
    """The vCPUs of QEMU's notes, by index; empty where there are none.

    QEMU's notes have no EFER and no HLT. For a dump of ours both come from a note of ours; else
    a vCPU with paging and PAE on counts as in long mode (QEMU makes an x86-64 dump only of a
    guest in long mode), and none as halted.
    """
    ours: dict[int, tuple[int, int]] = {}
    states = []
    for note in notes:
        if note.name == _OURS_NAME and len(note.data) == _OURS.size:
            index, halted, efer = _OURS.unpack(note.data)
            ours[index] = halted, efer
        elif note.name == b"QEMU" and len(note.data) >= _CPU_STATE.size:
            states.append(note.data)
            if len(states) > MAX_VCPUS:
                raise UsageError(f"the core file tells of more than {MAX_VCPUS} vCPUs: damaged")
    return tuple(_registers(i, state, ours.get(i)) for i, state in enumerate(states))


def _registers(index: int, state: bytes, ours: tuple[int, int] | None) -> CpuRegisters:
    words = _CPU_STATE.unpack_from(state)
    has_gs = len(state) >= _CPU_STATE.size + _KERNEL_GS.size
    cr0, cr3, cr4 = words[_CR], words[_CR + 3], words[_CR + 4]
    paging = cr0 >> 31 & 1 and cr4 >> 5 & 1
    halted, efer = ours or (0, _EFER_LONG_MODE if paging else 0)
    return CpuRegisters(
        index=index,
        cr0=cr0,
        cr3=cr3,
        cr4=cr4,
        efer=efer,
        idt_base=words[_SEGMENTS + 5 * _IDT + 4],
        idt_limit=words[_SEGMENTS + 5 * _IDT + 1],
        fs_base=words[_SEGMENTS + 5 * _FS + 4],
        gs_base=words[_SEGMENTS + 5 * _GS + 4],
        kernel_gs_base=_KERNEL_GS.unpack_from(state, _CPU_STATE.size)[0] if has_gs else 0,
        rip=words[_RIP],
        rsp=words[_RSP],
        rbp=words[_RBP],
        rflags=words[_RFLAGS],
        cpl=words[_SEGMENTS + 5 * _CS] & 3,
        halted=bool(halted),
    )


def notes_for(registers: Sequence[CpuRegisters]) -> list[Note]:
    """What QEMU writes for these vCPUs (all PRSTATUS first), and our own notes behind it."""
    return [
        *(Note(b"CORE", NT_PRSTATUS, _prstatus(cpu)) for cpu in registers),
        *(Note(b"QEMU", 0, _cpu_state(cpu)) for cpu in registers),
        *(Note(_OURS_NAME, 1, _OURS.pack(cpu.index, cpu.halted, cpu.efer)) for cpu in registers),
    ]


def _selectors(cpu: CpuRegisters) -> tuple[int, int]:
    """CS and SS as Linux has them (arch/x86/include/asm/segment.h)."""
    return (0x33, 0x2B) if cpu.cpl else (0x10, 0x18)


def _prstatus(cpu: CpuRegisters) -> bytes:
    """Registers that the engine does not give (rax and other general ones) are 0."""
    cs, ss = _selectors(cpu)
    words = [0] * 27  # struct user_regs_struct
    words[4], words[16], words[17], words[18] = cpu.rbp, cpu.rip, cs, cpu.rflags
    words[19], words[20], words[21], words[22] = cpu.rsp, ss, cpu.fs_base, cpu.gs_base
    return _PRSTATUS.pack(cpu.index + 1, *words)  # QEMU: pid is the vCPU's index + 1


def _cpu_state(cpu: CpuRegisters) -> bytes:
    words = [0] * 75
    words[0], words[1] = _CPU_STATE_VERSION, _CPU_STATE.size + _KERNEL_GS.size
    words[_RSP], words[_RBP], words[_RIP], words[_RFLAGS] = cpu.rsp, cpu.rbp, cpu.rip, cpu.rflags
    words[_SEGMENTS + 5 * _CS], words[_SEGMENTS + 5 * _SS] = _selectors(cpu)
    words[_SEGMENTS + 5 * _FS + 4] = cpu.fs_base
    words[_SEGMENTS + 5 * _GS + 4] = cpu.gs_base
    words[_SEGMENTS + 5 * _IDT + 1] = cpu.idt_limit
    words[_SEGMENTS + 5 * _IDT + 4] = cpu.idt_base
    words[_CR], words[_CR + 3], words[_CR + 4] = cpu.cr0, cpu.cr3, cpu.cr4
    return _CPU_STATE.pack(*words) + _KERNEL_GS.pack(cpu.kernel_gs_base)


def _padded(size: int) -> int:
    return (size + 3) & ~3


def _filled(data: bytes) -> bytes:
    return data.ljust(_padded(len(data)), b"\0")
