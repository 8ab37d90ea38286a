"""CPU time of processes, by the guest scheduler's own accounts."""

from __future__ import annotations

import time

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.tasks import Task, read_tasks


class TaskUsage(msgspec.Struct, frozen=True):
    """One process, all its threads together."""

    pid: int
    uid: int
    comm: str
    state: str
    cpu_ns: int
    """On the CPU since its start, in nanoseconds (threads that have ended included)."""
    cpu_percent: float
    """Of one CPU, over the interval; above 100 with several threads. 0 in a first picture."""
    start_ns: int


class Usage(msgspec.Struct, frozen=True):
    """All processes at one time; the busiest first, once there is an interval."""

    tasks: Listing[TaskUsage]
    cpus: int
    cpu_percent: float
    """Of all CPUs together, at most 100."""
    taken_ns: int
    """The host's monotonic clock."""
    read_ms: float


def read_usage(kernel: Kernel) -> Usage:
    """CPU time so far of every process."""
    started = time.monotonic_ns()
    run_time = kernel.record("task_struct", "se.sum_exec_runtime")
    ended = kernel.record("signal_struct", "sum_sched_runtime")
    signal = kernel.record("task_struct", "signal")
    spent: dict[int, int] = {}
    leaders: dict[int, Task] = {}
    threads = read_tasks(kernel, threads=True)
    listing: Listing[TaskUsage] = Listing(problems=threads.problems)
    for task in threads:
        try:
            time_ns = run_time.read(task.address)[0]
            if task.pid == task.tgid:
                leaders[task.tgid] = task
                time_ns += ended.read(signal.read(task.address)[0])[0]
        except GuestDataError as error:
            if task.state not in "ZX":  # the dead give their signal_struct back
                listing.problem(f"the CPU time of {task.pid} cannot be read: {error}")
            time_ns = 0
        spent[task.tgid] = spent.get(task.tgid, 0) + time_ns
    listing.extend(
        TaskUsage(task.tgid, task.uid, task.comm, task.state, spent[tgid], 0.0, task.start_ns)
        for tgid, task in leaders.items()
    )
    taken = time.monotonic_ns()
    return Usage(listing, len(kernel.cpus()), 0.0, taken, (taken - started) / 1e6)


def between(before: Usage, now: Usage) -> Usage:
    """``now`` with the shares of the interval since ``before``, busiest process first."""
    interval_ns = max(1, now.taken_ns - before.taken_ns)
    known = {(task.pid, task.start_ns): task.cpu_ns for task in before.tasks}
    rows = []
    for task in now.tasks:
        spent_ns = max(0, task.cpu_ns - known.get((task.pid, task.start_ns), 0))
        rows.append(msgspec.structs.replace(task, cpu_percent=100 * spent_ns / interval_ns))
    rows.sort(key=lambda row: (-row.cpu_percent, row.pid))
    busy = min(100.0, sum(row.cpu_percent for row in rows) / max(1, now.cpus))
    return msgspec.structs.replace(now, tasks=Listing(rows, now.tasks.problems), cpu_percent=busy)
