"""Processes and threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from dvisor.errors import GuestDataError, NotFoundError
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.lists import list_entries
from dvisor.guest.records import Record

if TYPE_CHECKING:
    from dvisor.guest.lists import Problem

MAX_TASKS = 1 << 20
TRIES = 8
"""A list that changed under our eyes is read again this often before it is called partial."""

PF_KTHREAD = 0x0020_0000  # include/linux/sched.h
COMM_LENGTH = 15  # TASK_COMM_LEN less the final NUL

# include/linux/sched.h (TASK_*) and fs/proc/array.c (letters of /proc/PID/stat).
_STATES = ((0x01, "S"), (0x02, "D"), (0x04, "T"), (0x08, "t"), (0x40, "P"))
_EXIT_ZOMBIE, _EXIT_DEAD = 0x20, 0x10
_TASK_NOLOAD, _TASK_IDLE = 0x400, 0x402


class Task(msgspec.Struct, frozen=True):
    """One thread as it was at one moment. ``address`` (of its task_struct) identifies it."""

    pid: int
    """The thread's own id, as the initial pid namespace sees it (the kernel's ``pid``)."""
    tgid: int
    """The process's id, what user space calls PID."""
    ppid: int
    uid: int
    """Real user id; -1 if the credentials could not be read. More in ``Guest.credentials``."""
    comm: str
    state: str
    """The letter of /proc/PID/stat: R, S, D, T, t, Z, X, I, P."""
    kernel_thread: bool
    start_ns: int
    """Nanoseconds from boot to the thread's start, suspended time included."""
    mm: int
    """Address of its mm_struct; 0 for a kernel thread or a zombie."""
    address: int


def read_tasks(kernel: Kernel, threads: bool = False) -> Listing[Task]:
    """All processes, or with ``threads`` all threads, by the kernel's task list."""
    listing: Listing[Task] = Listing()
    for _ in range(TRIES):
        listing = _Reader(kernel).read(threads)
        if listing.complete:
            break
    return listing


class _Reader:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.task: Record = kernel.record(
            "task_struct",
            "pid",
            "tgid",
            "comm",
            "__state|state",
            "exit_state",
            "flags",
            "start_boottime|real_start_time",
            "mm",
            "real_parent",
            "cred",
            "signal",
            "worker_private?",
        )
        self.full_name_at = kernel.place("kthread", "full_name")
        self.uid = kernel.record("cred", "uid.val")
        self.tgid_at = kernel.offset("task_struct", "tgid")

    def read(self, threads: bool) -> Listing[Task]:
        kernel = self.kernel
        listing: Listing[Task] = Listing()
        first = kernel.symbol("init_task")
        link = kernel.offset("task_struct", "tasks")
        entries = list_entries(
            kernel.memory, first + link, link, listing.problem, "tasks", MAX_TASKS
        )
        for address in entries:
            try:
                task = self.one(address)
                listing.append(task)
                if threads:
                    listing.extend(self._others(task, listing.problem))
            except GuestDataError as error:
                listing.problem(f"a task cannot be read: {error}")
        return listing

    def _others(self, leader: Task, problem: Problem) -> Iterator[Task]:
        """The process's other threads (signal_struct.thread_head; before 6.7 also
        task_struct.thread_group, 8e1f385104ac)."""
        kernel = self.kernel
        head = kernel.offset("signal_struct", "thread_head")
        link = kernel.offset("task_struct", "thread_node")
        signal = self.task.read(leader.address)[10]
        if not signal:
            return
        for address in list_entries(
            kernel.memory, signal + head, link, problem, f"threads of {leader.tgid}", MAX_TASKS
        ):
            if address != leader.address:
                yield self.one(address)

    def one(self, address: int) -> Task:
        """The task at ``address``; GuestDataError if that cannot be one."""
        values: tuple[Any, ...] = self.task.read(address)
        pid, tgid, comm, state, exit_state, flags, start, mm, parent, cred, _, private = values
        if not 0 <= pid <= 1 << 22 or not 0 <= tgid <= 1 << 22:  # PID_MAX_LIMIT
            raise GuestDataError(f"no task has the pid {pid}, tgid {tgid} ({address:#x})")
        memory = self.kernel.memory
        try:
            uid = self.uid.read(cred)[0]
        except GuestDataError:
            uid = -1
        try:
            ppid = memory.u32(parent + self.tgid_at) if parent else 0
        except GuestDataError:
            ppid = -1
        name = comm.partition(b"\0")[0]
        if flags & PF_KTHREAD and private and len(name) == COMM_LENGTH:
            name = self._full_name(private) or name
        return Task(
            pid,
            tgid,
            ppid,
            uid,
            name.decode("utf-8", "backslashreplace"),
            state_letter(state, exit_state),
            bool(flags & PF_KTHREAD),
            start,
            mm,
            address,
        )

    def _full_name(self, kthread: int) -> bytes:
        """A kernel thread's name beyond what task_struct.comm holds (d6986ce24fc0)."""
        memory = self.kernel.memory
        try:
            name = self.full_name_at and memory.u64(kthread + self.full_name_at.offset)
            return memory.string(name, 64) if name else b""
        except GuestDataError:
            return b""


def state_letter(state: int, exit_state: int) -> str:
    """As fs/proc/array.c prints it."""
    if exit_state:
        return "Z" if exit_state & _EXIT_ZOMBIE else "X"
    if state & _TASK_IDLE == _TASK_IDLE:
        return "I"
    for bit, letter in _STATES:
        if state & bit:
            return letter
    return "R"


def find_task(kernel: Kernel, pid: int) -> Task:
    """The thread with this id; NotFoundError."""
    for task in read_tasks(kernel):
        if task.pid == pid:
            return task
    for task in read_tasks(kernel, threads=True):
        if task.pid == pid:
            return task
    raise NotFoundError(f"no task with pid {pid} in the guest")
