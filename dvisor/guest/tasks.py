"""Processes and threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dvisor.errors import GuestDataError, NotFoundError
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.lists import links, read_list
from dvisor.guest.records import Record

MAX_TASKS = 1 << 20
TRIES = 4
"""A list with a flaw is read so often before it is called partial."""

PF_KTHREAD = 0x0020_0000  # include/linux/sched.h
MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_NEXT, _PREV, _PID, _TGID, _SIGNAL = 2, 3, 6, 7, 13  # places in what _Reader.task reads
MAX_NAMES = 1 << 14
COMM_LENGTH = 15  # TASK_COMM_LEN less the final NUL

# include/linux/sched.h (TASK_*) and fs/proc/array.c (letters of /proc/PID/stat).
_STATES = ((0x01, "S"), (0x02, "D"), (0x04, "T"), (0x08, "t"), (0x40, "P"))
_EXIT_ZOMBIE, _EXIT_DEAD = 0x20, 0x10
_TASK_NOLOAD, _TASK_IDLE = 0x400, 0x402


class Task(msgspec.Struct, frozen=True, gc=False):
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


Entry = Task | Listing[Task]
"""What one entry of a list gives: a task; or its process's threads; or none, and why."""


def read_tasks(kernel: Kernel, threads: bool = False) -> Listing[Task]:
    """All processes, or with ``threads`` all threads, by the kernel's task list."""
    listing = _Reader(kernel).read(threads)
    for _ in range(TRIES - 1):
        if listing.complete:
            break
        before, listing = listing, _Reader(kernel).read(threads)
        if listing.problems == before.problems:  # damage, which stays
            break
    return listing


class _Reader:
    """One pass over the task list. Each task is one read: its list links come with its members,
    and what tasks share (credentials, parents) is read once."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        # In the order in which all known kernels have them: then nothing needs rearranging.
        self.task: Record = kernel.record(
            "task_struct",
            "__state|state",
            "flags",
            "tasks.next",
            "tasks.prev",
            "mm",
            "exit_state",
            "pid",
            "tgid",
            "real_parent",
            "worker_private?",
            "start_boottime|real_start_time",
            "real_cred",
            "comm[]",
            "signal",
        )
        self.full_name_at = kernel.place("kthread", "full_name")
        self.names = kernel.task_names
        self.uid = kernel.record("cred", "uid.val")
        self.tgid = kernel.record("task_struct", "tgid")
        self.uids: dict[int, int] = {}
        self.tgids: dict[int, int] = {0: 0}
        self.letters: dict[tuple[int, int], str] = {}
        ram = sum(block.size for block in kernel.engine.ram())
        self.room = min(MAX_TASKS, ram // max(kernel.size_of("task_struct"), 1))
        """How many tasks there can be: a list that is longer is no list of tasks."""

    def read(self, threads: bool) -> Listing[Task]:
        listing: Listing[Task] = Listing()
        kernel = self.kernel
        link = kernel.offset("task_struct", "tasks")

        read, task_of = self.task.read, self._process if threads else self._task

        def process(at: int) -> tuple[int, int, Entry]:
            address = at - link
            values = read(address)
            try:
                entry = task_of(address, values)
            except GuestDataError as error:
                return values[_NEXT], values[_PREV], Listing((), [str(error)])
            if values[_PID] != values[_TGID]:
                entry = _replaced(entry, values[_TGID])
            return values[_NEXT], values[_PREV], entry

        head = kernel.symbol("init_task") + link
        self._gather(listing, head, process, "task list")
        if len({task.pid for task in listing}) < len(listing):
            listing.problem("several tasks have the same id")
        return listing

    def _gather(
        self,
        listing: Listing[Task],
        head: int,
        read: Callable[[int], tuple[int, int, Entry]],
        what: str,
    ) -> None:
        """Add a list's tasks. The problems of one that left the list meanwhile went with it."""
        for found in read_list(self.kernel.memory, head, read, listing.problem, what, self.room):
            self.room -= 1
            if isinstance(found, Task):
                listing.append(found)
                continue
            listing += found
            for text in found.problems:
                listing.problem(text)

    def _lone(self, address: int, values: tuple[Any, ...]) -> Entry:
        """The task at ``address``."""
        try:
            return self._task(address, values)
        except GuestDataError as error:
            return Listing((), [str(error)])

    def _process(self, address: int, values: tuple[Any, ...]) -> Entry:
        """The task at ``address`` and the other threads of its process."""
        task = self._lone(address, values)
        if isinstance(task, Task) and values[_SIGNAL]:  # none: a zombie that is being reaped
            return self._with_others(task, values[_SIGNAL])
        return task

    def _with_others(self, leader: Task, signal: int) -> Listing[Task]:
        """Threads by signal_struct.thread_head (before 6.7 there was also
        task_struct.thread_group, 8e1f385104ac)."""
        kernel, found = self.kernel, Listing([leader])
        head = signal + kernel.offset("signal_struct", "thread_head")
        link = kernel.offset("task_struct", "thread_node")

        def thread(at: int) -> tuple[int, int, Entry]:
            following, back = links(kernel.memory, at)
            address = at - link
            if address == leader.address:
                return following, back, Listing()
            return following, back, self._lone(address, self.task.read(address))

        own = leader.address + link
        try:
            if links(kernel.memory, head) == (own, own):  # most have one thread
                return found
            self._gather(found, head, thread, f"list of threads of {leader.tgid}")
        except GuestDataError as error:
            found.problem(f"the threads of {leader.tgid} cannot be read: {error}")
        return found

    def one(self, address: int) -> Task:
        """The task at ``address``; GuestDataError if that cannot be one."""
        return self._task(address, self.task.read(address))

    def _task(self, address: int, values: tuple[Any, ...]) -> Task:
        state, flags, _, _, mm, exit_state, pid, tgid, parent, private, start, cred, comm, _ = (
            values
        )
        if not 0 <= pid <= MAX_PID or not 0 <= tgid <= MAX_PID:
            raise GuestDataError(f"no task has the pid {pid}, tgid {tgid} ({address:#x})")
        name = self.names.get(comm) or self._name(comm)
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
            name,
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

    def _name(self, comm: bytes) -> str:
        """task_struct.comm as text, and remembered: names recur in every list."""
        if len(self.names) > MAX_NAMES:
            self.names.clear()
        name = comm.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        self.names[comm] = name
        return name

    def _full_name(self, kthread: int) -> str:
        """A kernel thread's name beyond what task_struct.comm holds (d6986ce24fc0)."""
        memory = self.kernel.memory
        try:
            name = self.full_name_at and memory.u64(kthread + self.full_name_at.offset)
            return memory.string(name, 64).decode("utf-8", "backslashreplace") if name else ""
        except GuestDataError:
            return ""


def _replaced(leader: Entry, tgid: int) -> Listing[Task]:
    """A thread that execs swaps ids with its leader, then takes its place (de_thread(), fs/exec.c):
    in between, the leader is on the list with the thread's id."""
    found = leader if isinstance(leader, Listing) else Listing([leader])
    found.problem(f"the leader of process {tgid} has another id")
    return found


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
