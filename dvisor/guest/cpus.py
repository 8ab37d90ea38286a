"""CPUs: what each one runs, what waits for it, and where its registers point."""

from __future__ import annotations

import msgspec

from dvisor.errors import GuestDataError, NotFoundError, UnsupportedError
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.runqueue import RunQueue, RunQueues
from dvisor.machine.engine import CpuRegisters


class CpuPosition(msgspec.Struct, frozen=True):
    """Where a vCPU was when the engine read its registers."""

    mode: str
    """``user`` or ``kernel``."""
    rip: int
    symbol: str
    """``name+0x10`` of the kernel function, or empty."""
    halted: bool
    """In HLT: nothing to do."""


class Cpu(msgspec.Struct, frozen=True):
    """One CPU that is online, by the kernel's number."""

    number: int
    pid: int
    """Thread id of the current task; 0 for the CPU's own idle task."""
    tgid: int
    comm: str
    idle: bool
    task: int
    """Address of the current task_struct."""
    queue: RunQueue
    position: CpuPosition | None
    """None where the engine has no registers. In a guest that runs, a moment older than the rest:
    stop it for an exact picture."""


def read_cpus(kernel: Kernel) -> Listing[Cpu]:
    """Every CPU that is online."""
    listing: Listing[Cpu] = Listing()
    try:
        registers = cpu_registers(kernel)
    except UnsupportedError:
        registers = {}
    queues = RunQueues(kernel, listing.problem)
    symbol = kernel.symbol("runqueues")
    idle_at = kernel.offset("rq", "idle")
    task = kernel.record("task_struct", "pid", "tgid", "comm[]")
    for number in kernel.cpus():
        try:
            queue = queues.read(kernel.per_cpu(symbol, number))
            current = current_task(kernel, number)
            pid, tgid, comm = task.read(current)
            idle = current == kernel.memory.u64(queue.address + idle_at)
        except GuestDataError as error:
            listing.problem(f"CPU {number} cannot be read: {error}")
            continue
        name = comm.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        position = _position(kernel, registers[number]) if number in registers else None
        listing.append(Cpu(number, pid, tgid, name, idle, current, queue, position))
    return listing


def current_task(kernel: Kernel, cpu: int) -> int:
    """Address of the task_struct that ``cpu`` runs."""
    symbol = kernel.find_symbol("current_task")
    if symbol is None:  # 6.2 to 6.14 (c063a217bc07): in a structure of hot per-CPU variables
        symbol = kernel.symbol("pcpu_hot") + kernel.offset("pcpu_hot", "current_task")
    return kernel.memory.u64(kernel.per_cpu(symbol, cpu))


def cpu_registers(kernel: Kernel) -> dict[int, CpuRegisters]:
    """The engine's registers by the kernel's CPU number; UnsupportedError where it has none.

    The kernel may number CPUs in another order than the engine. In the kernel the GS base is the
    CPU's per-CPU area (cpu_kernelmode_gs_base()), in user mode the swapped-out one is. Where
    neither can be seen, a vCPU gets the number of its index.
    """
    online = kernel.cpus()
    areas: dict[int, int] = {}
    for number in online:
        try:
            areas[kernel.per_cpu(0, number)] = number
        except GuestDataError:
            continue
    found: dict[int, CpuRegisters] = {}
    unknown = []
    for registers in kernel.engine.registers():
        known = areas.get(registers.gs_base, areas.get(registers.kernel_gs_base))
        if known is None or known in found:
            unknown.append(registers)
        else:
            found[known] = registers
    for registers in unknown:
        if registers.index in online:
            found.setdefault(registers.index, registers)
    return found


def _position(kernel: Kernel, registers: CpuRegisters) -> CpuPosition:
    symbol = ""
    mode = "user" if registers.cpl == 3 else "kernel"
    if mode == "kernel":
        try:
            found = kernel.symbols.near(registers.rip)
        except (GuestDataError, NotFoundError):
            found = None
        symbol = f"{found[0]}+{found[1]:#x}" if found else ""
    return CpuPosition(mode, registers.rip, symbol, registers.halted)
