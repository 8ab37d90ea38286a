"""The guest as a user sees it: one object, views as methods.

It holds what was found out about the running kernel and drops it when the guest is reset, so that
no answer ever mixes two kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from dvisor.errors import DvisorError, StateError
from dvisor.guest import kernel as kernels
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.modules import Module, read_modules
from dvisor.guest.resolve import resolve
from dvisor.guest.sock import Socket
from dvisor.guest.sockets import read_sockets
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

    def sockets(self) -> Listing[Socket]:
        """All sockets of all network namespaces, with the processes that hold them open."""
        return self.view(read_sockets)

    def modules(self) -> Listing[Module]:
        """All kernel modules, latest loaded first; then those that hide from /proc/modules."""
        return self.view(read_modules)

    def resolve(self, address: int) -> str:
        """What a kernel address is called: ``symbol+0x12``, or ``symbol+0x12 [module]``."""
        return self.view(resolve, address)
