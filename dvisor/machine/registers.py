"""QEMU's ``info registers -a`` as numbers: the one way to all vCPUs' registers over QMP."""

from __future__ import annotations

import re

from dvisor.errors import EngineError
from dvisor.machine.engine import CpuRegisters

MAX_VCPUS = 4096

# QEMU's target/i386/cpu-dump.c prints 64-bit names (RIP=) for a vCPU in 64-bit mode, 32-bit names
# (EIP=) otherwise, and segments as "FS =selector base limit flags".
_CPU = re.compile(r"^CPU#(\d{1,5})\s*$", re.MULTILINE)
_FIELD = re.compile(
    r"\b(?:"
    r"(?P<plain>[RE](?:IP|SP|BP|FL)|CR[034]|EFER|CPL|HLT)=(?P<value>[0-9a-f]{1,16})\b"
    r"|(?P<segment>FS|GS) =[0-9a-f]{4} (?P<base>[0-9a-f]{8,16}) "
    r"|IDT= +(?P<idt_base>[0-9a-f]{8,16}) (?P<idt_limit>[0-9a-f]{8})"
    r")"
)
_NAMES = {
    **{f"{width}{name}": name for width in "RE" for name in ("IP", "SP", "BP", "FL")},
    **{name: name for name in ("CR0", "CR3", "CR4", "EFER", "CPL", "HLT")},
}


def parse_registers(text: str) -> tuple[CpuRegisters, ...]:
    """The vCPUs in the answer to HMP ``info registers -a``, by index.

    HMP does not print MSR KERNEL_GS_BASE: ``kernel_gs_base`` is 0. EngineError when a vCPU lacks
    a register, or when there is none.
    """
    marks = list(_CPU.finditer(text))
    if not marks or len(marks) > MAX_VCPUS:
        raise EngineError(
            f"QEMU's answer to 'info registers -a' names {len(marks)} vCPUs; it begins with "
            f"{text[:60]!r}. Is this QEMU for x86-64?"
        )
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    cpus = [_cpu(int(m[1]), text, m.end(), end) for m, end in zip(marks, ends, strict=True)]
    return tuple(sorted(cpus, key=lambda cpu: cpu.index))


def _cpu(index: int, text: str, start: int, end: int) -> CpuRegisters:
    found: dict[str, int] = {}
    for field in _FIELD.finditer(text, start, end):
        if name := field["plain"]:
            found.setdefault(_NAMES[name], int(field["value"], 16))
        elif segment := field["segment"]:
            found.setdefault(segment, int(field["base"], 16))
        else:
            found.setdefault("IDT", int(field["idt_base"], 16))
            found.setdefault("IDT limit", int(field["idt_limit"], 16))
    try:
        return CpuRegisters(
            index=index,
            cr0=found["CR0"],
            cr3=found["CR3"],
            cr4=found["CR4"],
            efer=found["EFER"],
            idt_base=found["IDT"],
            idt_limit=found["IDT limit"],
            fs_base=found["FS"],
            gs_base=found["GS"],
            kernel_gs_base=0,
            rip=found["IP"],
            rsp=found["SP"],
            rbp=found["BP"],
            rflags=found["FL"],
            cpl=found["CPL"],
            halted=found["HLT"] != 0,
        )
    except KeyError as missing:
        raise EngineError(
            f"QEMU's answer to 'info registers -a' has no {missing.args[0]} for vCPU {index}; "
            f"this QEMU prints registers in a way that dvisor does not know."
        ) from missing
