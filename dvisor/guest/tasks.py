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
MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
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
    """One pass over the task list. Each task is one read: its list links come with its members,
    and what tasks share (credentials, parents) is read once."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.task: Record = kernel.record(
            "task_struct",
            "tasks.next",
            "tasks.prev",
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
        self.tgid = kernel.record("task_struct", "tgid")
        self.uids: dict[int, int] = {}
        self.tgids: dict[int, int] = {0: 0}
        self.letters: dict[tuple[int, int], str] = {}

    def read(self, threads: bool) -> Listing[Task]:
        """The same walk as ``lists.list_entries``, which explains the checks."""
        listing: Listing[Task] = Listing()
        link = self.kernel.offset("task_struct", "tasks")
        head = self.kernel.symbol("init_task") + link
        previous, at = head, self.kernel.memory.u64(head)
        seen = {head}
        while at != head:
            if at in seen or len(seen) > MAX_TASKS:
                listing.problem("the task list runs in a circle or has no end")
                break
            seen.add(at)
            try:
                values = self.task.read(at - link)
            except GuestDataError as error:
                listing.problem(f"the task list is broken: {error}")
                break
            if values[1] != previous:
                listing.problem("the task list changed while it was read")
            try:
                task = self._task(at - link, values)
            except GuestDataError as error:
                listing.problem(str(error))
            else:
                listing.append(task)
                if threads:
                    listing.extend(self._others(task, values[12], listing.problem))
            previous, at = at, values[0]
        return listing

    def _others(self, leader: Task, signal: int, problem: Problem) -> Iterator[Task]:
        """The process's other threads (signal_struct.thread_head; before 6.7 also
        task_struct.thread_group, 8e1f385104ac)."""
        kernel = self.kernel
        head = kernel.offset("signal_struct", "thread_head")
        link = kernel.offset("task_struct", "thread_node")
        if not signal:  # given back already: a zombie that is being reaped
            return
        what = f"threads of {leader.tgid}"
        try:
            for address in list_entries(
                kernel.memory, signal + head, link, problem, what, MAX_TASKS
            ):
                if address != leader.address:
                    yield self.one(address)
        except GuestDataError as error:
            problem(f"the {what} cannot be read: {error}")

    def one(self, address: int) -> Task:
        """The task at ``address``; GuestDataError if that cannot be one."""
        return self._task(address, self.task.read(address))

    def _task(self, address: int, values: tuple[Any, ...]) -> Task:
        _, _, pid, tgid, comm, state, exit_state, flags, start, mm, parent, cred, _, private = (
            values
        )
        if not 0 <= pid <= MAX_PID or not 0 <= tgid <= MAX_PID:
            raise GuestDataError(f"no task has the pid {pid}, tgid {tgid} ({address:#x})")
        name = comm.partition(b"\0")[0]
        if private and len(name) == COMM_LENGTH and flags & PF_KTHREAD:
            name = self._full_name(private) or name
        self.tgids[address] = tgid
        uid = self.uids.get(cred)
        ppid = self.tgids.get(parent)
        letter = self.letters.get((state, exit_state))
        if letter is None:
            letter = self.letters[state, exit_state] = state_letter(state, exit_state)
        return Task(
            pid,
            tgid,
            self._first(self.tgids, self.tgid, parent) if ppid is None else ppid,
            self._first(self.uids, self.uid, cred) if uid is None else uid,
            name.decode("utf-8", "backslashreplace"),
            letter,
            flags & PF_KTHREAD != 0,
            start,
            mm,
            address,
        )

    @staticmethod
    def _first(known: dict[int, int], record: Record, address: int) -> int:
        """What ``record`` reads at ``address``, kept in ``known``; -1 if it cannot be read."""
        try:
            known[address] = record.read(address)[0]
        except GuestDataError:
            known[address] = -1
        return known[address]

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
