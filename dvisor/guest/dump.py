"""Raw bytes of a guest, by any kind of address."""

from __future__ import annotations

import msgspec

from dvisor.addresses import GuestPhysical
from dvisor.errors import NotFoundError, UsageError
from dvisor.guest.kernel import Kernel
from dvisor.guest.memory import READ_LIMIT, Memory
from dvisor.guest.symbols import address_of
from dvisor.guest.tasks import find_task


class Dump(msgspec.Struct, frozen=True):
    """A run of memory."""

    address: int
    data: bytes


def read_dump(
    kernel: Kernel,
    address: int | str,
    size_bytes: int,
    pid: int | None = None,
    physical: bool = False,
) -> Dump:
    """``size_bytes`` at ``address``: of the kernel; with ``pid`` of that process; or physical.

    ``address`` may be written as ``symbols.address_of`` takes it. GuestMemoryError where any page
    is absent (of a process also: swapped out); NotFoundError for no such symbol or process.
    """
    if physical and pid is not None:
        raise UsageError("an address is either physical or of a process, not both")
    if not 0 < size_bytes <= READ_LIMIT:
        raise UsageError(f"give a size from 1 to {READ_LIMIT} bytes, not {size_bytes}")
    at = address if isinstance(address, int) else address_of(kernel, address)
    if physical:
        return Dump(at, kernel.engine.read(GuestPhysical(at), size_bytes))
    memory = kernel.memory if pid is None else process_memory(kernel, pid)
    return Dump(at, memory.read(at, size_bytes))


def process_memory(kernel: Kernel, pid: int) -> Memory:
    """The address space of a process; NotFoundError if it has none (a kernel thread, a zombie)."""
    task = find_task(kernel, pid)
    if not task.mm:
        kind = "a kernel thread" if task.kernel_thread else "gone but not yet waited for"
        raise NotFoundError(f"task {pid} ({task.comm}) has no memory of its own: it is {kind}")
    (pgd,) = kernel.record("mm_struct", "pgd").read(task.mm)
    return kernel.memory.user(kernel.memory.physical(pgd))
