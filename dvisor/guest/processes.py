"""Processes in full: a task, and all that its kernel structures say about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dvisor.errors import GuestDataError, NotFoundError
from dvisor.guest.cgroups import CgroupReader
from dvisor.guest.credentials import Credentials, CredentialsReader
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.namespaces import NamespaceReader
from dvisor.guest.paths import Location, Paths
from dvisor.guest.rss import RssReader
from dvisor.guest.tasks import Task, find_task, read_tasks
from dvisor.guest.user_memory import UserMemoryReader

if TYPE_CHECKING:
    from dvisor.guest.lists import Problem

T = TypeVar("T")

_MAX_RT_PRIO, _DEFAULT_PRIO = 100, 120  # include/linux/sched/prio.h
_POLICIES = {  # include/uapi/linux/sched.h
    0: "normal",
    1: "fifo",
    2: "rr",
    3: "batch",
    5: "idle",
    6: "deadline",
    7: "ext",
}


class Process(Task, frozen=True):
    """A process or thread with everything around it.

    A member that could not be read has its empty value (None, "", 0, -1), and the listing's
    problems tell; a process that has exited has none of most.
    """

    credentials: Credentials | None
    cmdline: tuple[str, ...] | None
    """() for kernel threads and zombies; None if it is not in RAM (swapped out)."""
    exe: str
    cwd: str
    root: str
    """Its root directory, as the first process sees it; "/" unless it is in a chroot."""
    cgroup: str
    """Path in the unified hierarchy."""
    namespaces: dict[str, int]
    """Inode number by kind, as in /proc/PID/ns."""
    pids: tuple[int, ...]
    """Its id in each pid namespace, from the initial one inwards (NSpid of /proc/PID/status)."""
    pgid: int
    sid: int
    tty: str
    """Its controlling terminal (``pts/0``), or ""."""
    priority: int
    """As in /proc/PID/stat: 0 to 39 for normal tasks, -2 to -100 for real-time ones."""
    nice: int
    policy: str
    """normal, fifo, rr, batch, idle, deadline or ext."""
    threads: int
    rss_bytes: int
    """Resident memory."""


def read_processes(kernel: Kernel, threads: bool = False) -> Listing[Process]:
    """All processes, or with ``threads`` all threads, in full."""
    tasks = read_tasks(kernel, threads)
    listing: Listing[Process] = Listing(problems=tasks.problems)
    reader = ProcessReader(kernel)
    listing.extend(reader.read(task, listing.problem) for task in tasks)
    return listing


def read_process(kernel: Kernel, pid: int) -> Process:
    """One process or thread in full; NotFoundError. GuestDataError if part of it is damaged."""
    problems: Listing[None] = Listing()
    process = ProcessReader(kernel).read(find_task(kernel, pid), problems.problem)
    if problems.problems:
        raise GuestDataError("; ".join(problems.problems))
    return process


def read_environment(kernel: Kernel, pid: int) -> tuple[str, ...] | None:
    """A process's ``NAME=value`` strings as at its start; None if they are not in RAM."""
    task = find_task(kernel, pid)
    return UserMemoryReader(kernel).environment(task.mm) if task.mm else ()


class ProcessReader:
    """Completes tasks to processes. Made for one answer: its parts remember what tasks share."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.paths = Paths(kernel)
        self.credentials = CredentialsReader(kernel)
        self.namespaces = NamespaceReader(kernel)
        self.cgroups = CgroupReader(kernel)
        self.user_memory = UserMemoryReader(kernel)
        self.rss = RssReader(kernel)
        self.task = kernel.record(
            "task_struct",
            "real_cred",
            "fs",
            "cgroups",
            "nsproxy",
            "thread_pid",
            "signal",
            "prio",
            "static_prio",
            "policy",
        )
        self.fs = kernel.record("fs_struct", "root.mnt", "root.dentry", "pwd.mnt", "pwd.dentry")
        self.exe_file = kernel.record("mm_struct", "exe_file")
        self.file = kernel.record("file", "f_path.mnt", "f_path.dentry")
        self.signal = kernel.record("signal_struct", "nr_threads", "tty")
        self.tty = kernel.record("tty_struct", "name[]")
        pids = kernel.offset("signal_struct", "pids")
        self.pgid_at = pids + 8 * _pid_type(kernel, "PIDTYPE_PGID", 2)
        self.sid_at = pids + 8 * _pid_type(kernel, "PIDTYPE_SID", 3)

    def read(self, task: Task, problem: Problem) -> Process:
        """``task`` in full; what cannot be read is empty and told to ``problem``."""

        def attempt(what: str, empty: T, part: Callable[[], T]) -> T:
            try:
                return part()
            except (GuestDataError, NotFoundError) as error:
                problem(f"the {what} of task {task.pid} cannot be read: {error}")
                return empty

        none: tuple[Any, ...] = (0, 0, 0, 0, 0, 0, 0, 0, 0)
        nowhere: dict[str, int] = {}
        no_pids: tuple[int, ...] = ()
        cred, fs, css_set, nsproxy, pid, signal, prio, static_prio, policy = attempt(
            "task_struct", none, lambda: self.task.read(task.address)
        )
        root, cwd = attempt("directories", ("", ""), lambda: self._directories(fs))
        pgid, sid, threads, tty = attempt("session", (-1, -1, 0, ""), lambda: self._session(signal))
        around: tuple[Any, ...] = (
            attempt("credentials", None, lambda: self.credentials.read(cred)),
            self.user_memory.command_line(task.mm) if task.mm else (),
            attempt("executable", "", lambda: self._executable(task.mm)),
            cwd,
            root,
            attempt("cgroup", "", lambda: self.cgroups.path(css_set)),
            attempt("namespaces", nowhere, lambda: self.namespaces.read(nsproxy, pid, cred)),
            attempt("pids", no_pids, lambda: self.namespaces.pid_numbers(pid) if pid else ()),
            pgid,
            sid,
            tty,
            prio - _MAX_RT_PRIO,
            static_prio - _DEFAULT_PRIO,
            _POLICIES.get(policy, str(policy)),
            threads,
            attempt("memory counters", 0, lambda: self.rss.read(task.mm) if task.mm else 0),
        )
        return Process(*msgspec.structs.astuple(task), *around)

    def _directories(self, fs: int) -> tuple[str, str]:
        if not fs:
            return "", ""
        root_mount, root, cwd_mount, cwd = self.fs.read(fs)
        return (
            self.paths.path(Location(root_mount, root)).text,
            self.paths.path(Location(cwd_mount, cwd)).text,
        )

    def _executable(self, mm: int) -> str:
        file = self.exe_file.read(mm)[0] if mm else 0
        return self.paths.path(Location(*self.file.read(file))).text if file else ""

    def _session(self, signal: int) -> tuple[int, int, int, str]:
        """Process group, session, number of threads and terminal of a signal_struct."""
        threads, tty = self.signal.read(signal)
        u64 = self.kernel.memory.u64
        name = self.tty.read(tty)[0].partition(b"\0")[0] if tty else b""
        if name.startswith(b"pts"):  # devpts: the kernel's pts0 is the user's pts/0
            name = b"pts/" + name[3:]
        number = self.namespaces.pid_number
        return (
            number(u64(signal + self.pgid_at)),
            number(u64(signal + self.sid_at)),
            threads,
            name.decode("utf-8", "backslashreplace"),
        )


def _pid_type(kernel: Kernel, name: str, usual: int) -> int:
    number = kernel.constant(name)
    return usual if number is None else number
