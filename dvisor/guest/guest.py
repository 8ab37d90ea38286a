"""The guest as a user sees it: one object, views as methods.

It holds what was found out about the running kernel and drops it when the guest is reset, so that
no answer ever mixes two kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from dvisor.errors import DvisorError, StateError
from dvisor.guest import kernel as kernels
from dvisor.guest.cpus import Cpu, read_cpus
from dvisor.guest.dmesg import LogRecord, read_log
from dvisor.guest.dump import Dump, read_dump
from dvisor.guest.files import OpenFile, read_files
from dvisor.guest.info import Info, read_info
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.maps import Mapping, read_maps
from dvisor.guest.modules import Module, read_modules
from dvisor.guest.mounts import Mount, read_mounts
from dvisor.guest.processes import (
    Process,
    read_environment,
    read_process,
    read_processes,
)
from dvisor.guest.resolve import resolve
from dvisor.guest.sock import Socket
from dvisor.guest.sockets import read_sockets
from dvisor.guest.stack import Frame, read_stack
from dvisor.guest.structures import Structure, read_structure
from dvisor.guest.symbols import Symbol, find_symbols
from dvisor.guest.tasks import Task, find_task, read_tasks
from dvisor.machine.engine import Engine

P = ParamSpec("P")
T = TypeVar("T")


class Guest:
    """Views of a Linux guest over any engine.

    Each call reads the guest as it is at that time. While it runs, two members of one answer may
    be a few microseconds apart; inside ``engine.stopped()`` an answer is exact. All calls may
    raise StateError (no kernel runs yet, or the guest was reset meanwhile) and GuestDataError.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._kernel: Kernel | None = None

    @property
    def kernel(self) -> Kernel:
        """The running kernel; looked for at first use and after each reset."""
        if self._kernel is None or not self._kernel.alive():
            self._kernel = None
            self._kernel = kernels.find(self.engine)
        return self._kernel

    def view(self, read: Callable[Concatenate[Kernel, P], T], *args: P.args, **kw: P.kwargs) -> T:
        """Call ``read(kernel, ...)`` such that its answer is of one kernel only.

        A reset meanwhile throws the answer away. What failed because of one is StateError.
        """
        kernel = self.kernel
        try:
            answer = read(kernel, *args, **kw)
        except DvisorError:
            if kernel.alive():
                raise
            lost = True
        else:
            lost = not kernel.alive()
        if lost:
            self._kernel = None
            raise StateError("the guest was reset while it was read: call again")
        kernel.remember()
        return answer

    def tasks(self, threads: bool = False) -> Listing[Task]:
        """All processes, in the kernel's order (by start); with ``threads`` all threads."""
        return self.view(read_tasks, threads)

    def task(self, pid: int) -> Task:
        """The task with this (global) thread id; NotFoundError."""
        return self.view(find_task, pid)

    def processes(self, threads: bool = False) -> Listing[Process]:
        """All processes in full: credentials, command line, directories, namespaces ..."""
        return self.view(read_processes, threads)

    def process(self, pid: int) -> Process:
        """The process or thread with this id in full; NotFoundError."""
        return self.view(read_process, pid)

    def environment(self, pid: int) -> tuple[str, ...] | None:
        """A process's ``NAME=value`` strings as at its start; None if they are not in RAM."""
        return self.view(read_environment, pid)

    def files(self, pid: int | None = None) -> Listing[OpenFile]:
        """Open files of all processes, or of one process or thread (NotFoundError)."""
        return self.view(read_files, pid)

    def maps(self, pid: int) -> Listing[Mapping]:
        """Memory maps of a process, as /proc/PID/maps; NotFoundError."""
        return self.view(read_maps, pid)

    def mounts(self, pid: int = 1) -> Listing[Mount]:
        """Mounts that a process sees, as /proc/PID/mountinfo; NotFoundError."""
        return self.view(read_mounts, pid)

    def sockets(self) -> Listing[Socket]:
        """All sockets of all network namespaces, with the processes that hold them open."""
        return self.view(read_sockets)

    def modules(self) -> Listing[Module]:
        """All kernel modules, latest loaded first; then those that hide from /proc/modules."""
        return self.view(read_modules)

    def resolve(self, address: int) -> str:
        """What a kernel address is called: ``symbol+0x12``, or ``symbol+0x12 [module]``."""
        return self.view(resolve, address)

    def dmesg(self, since: int = 0) -> Listing[LogRecord]:
        """The kernel log, oldest message first; only those with ``seq`` >= since."""
        return self.view(read_log, since)

    def cpus(self) -> Listing[Cpu]:
        """What each CPU that is online runs, and what waits for it."""
        return self.view(read_cpus)

    def stack(self, pid: int) -> Listing[Frame]:
        """The kernel stack of the task with this thread id, innermost frame first; NotFoundError.

        Empty in user mode. A task that runs is read exactly only inside ``engine.stopped()``.
        """
        return self.view(lambda kernel: read_stack(kernel, find_task(kernel, pid).address))

    def info(self) -> Info:
        """The kernel, its boot and its protection in one page."""
        return self.view(read_info)

    def symbols(self, wanted: str) -> Listing[Symbol]:
        """What a name, a pattern (``tcp_*``) or an address (``0x...``) is; NotFoundError."""
        return self.view(find_symbols, wanted)

    def structure(self, name: str) -> Structure:
        """A struct or union with the places of its members; NotFoundError."""
        return self.view(read_structure, name)

    def read(
        self, address: int | str, size_bytes: int, *, pid: int | None = None, physical: bool = False
    ) -> Dump:
        """Bytes by an address of the kernel (or ``symbol+0x10``), of a process, or physical.

        GuestMemoryError where any page of them is absent.
        """
        return self.view(read_dump, address, size_bytes, pid, physical)
