"""Run queues: which tasks wait for (or have) a CPU, in each scheduling class.

Source: kernel/sched/sched.h. ``struct rq`` holds one queue a class: a red-black tree of entities
for the fair class, which may be groups with a tree of their own; an array of lists for the
real-time class; a tree for deadlines; a list for sched_ext; and one stop task.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.lists import Problem, list_entries, tree_entries

MAX_QUEUED = 1 << 16
"""Entities (tasks and groups) and lists of one run queue looked at, all levels together."""

MAX_RT_PRIO = 100  # include/linux/sched/prio.h
POLICIES = {0: "normal", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline", 7: "ext"}
"""SCHED_* of include/uapi/linux/sched.h."""


class QueuedTask(msgspec.Struct, frozen=True):
    """A runnable task on a run queue."""

    pid: int
    tgid: int
    comm: str
    scheduling_class: str
    """The queue it is on: ``stop``, ``deadline``, ``rt``, ``fair`` or ``ext``."""
    policy: str
    """What was asked for by sched_setscheduler(2); differs from the class while boosted."""
    prio: int
    """The kernel's effective priority, less is more urgent: -1 deadline, 0..98 real-time (98 - n
    is sched_priority - 1), 100..139 nice -20..19."""
    current: bool
    """Runs right now; all others wait."""
    delayed: bool
    """Asleep, but left on the queue until its lag is used up (EEVDF's delayed dequeue)."""
    groups: int
    """How many task groups (cpu cgroups) lie between it and the CPU's own queue."""
    address: int


class RunQueue(msgspec.Struct, frozen=True):
    """One CPU's ``struct rq``."""

    nr_running: int
    """The kernel's own count of tasks on the queue, ``delayed`` ones included."""
    fair: int
    """The kernel's counts by class; ``fair`` over all groups."""
    rt: int
    deadline: int
    switches: int
    """Context switches since boot."""
    clock_ns: int
    """The queue's clock at its last update."""
    tasks: list[QueuedTask]
    address: int


class RunQueues:
    """Reads run queues; what members they have is looked up once."""

    def __init__(self, kernel: Kernel, problem: Problem) -> None:
        self.kernel = kernel
        self.memory = kernel.memory
        self.problem = problem
        self.left = MAX_QUEUED
        offset, place = kernel.offset, kernel.place
        self.counts = kernel.record(
            "rq",
            "nr_running",
            "curr",
            "stop",
            "nr_switches",
            "clock",
            "cfs.h_nr_queued|cfs.h_nr_running",
            "rt.rt_nr_running",
            "dl.dl_nr_running",
        )
        self.cfs, self.rt = offset("rq", "cfs"), offset("rq", "rt.active.queue")
        self.deadline = offset("rq", "dl.root")
        self.timeline = offset("cfs_rq", "tasks_timeline")
        self.running = offset("cfs_rq", "curr")
        self.run_node = offset("sched_entity", "run_node")
        self.on_rq = offset("sched_entity", "on_rq")
        self.my_q = place("sched_entity", "my_q")
        self.entity = offset("task_struct", "se")
        self.rt_entity = offset("task_struct", "rt")
        self.rt_link = offset("sched_rt_entity", "run_list")
        self.rt_my_q = place("sched_rt_entity", "my_q")
        self.rt_queue = offset("rt_rq", "active.queue")
        self.dl_entity = offset("task_struct", "dl")
        self.dl_node = offset("sched_dl_entity", "rb_node")
        self.dl_server = kernel.record("sched_dl_entity", "dl_server?")
        self.ext_list = place("rq", "scx.runnable_list")
        self.ext_node = place("task_struct", "scx.runnable_node")
        self.task = kernel.record(
            "task_struct", "pid", "tgid", "comm[]", "prio", "policy", "on_rq", "se.sched_delayed?"
        )

    def read(self, address: int) -> RunQueue:
        """The ``struct rq`` at ``address``."""
        running, current, stop, switches, clock, fair, rt, deadline = self.counts.read(address)
        tasks: list[QueuedTask] = []
        seen: set[int] = set()
        self.left = MAX_QUEUED
        try:
            for task, scheduling_class, groups in self._queued(address, stop):
                if task in seen:
                    raise GuestDataError(f"the task at {task:#x} is on it twice")
                seen.add(task)
                tasks.append(self._task(task, scheduling_class, groups, task == current))
        except GuestDataError as error:
            self.problem(f"the run queue at {address:#x} cannot be read to its end: {error}")
        return RunQueue(running, fair, rt, deadline, switches, clock, tasks, address)

    def _queued(self, rq: int, stop: int) -> Iterator[tuple[int, str, int]]:
        """(task_struct, class, depth of groups), the most urgent class first."""
        if stop and self.memory.u32(stop + self.kernel.offset("task_struct", "on_rq")) == 1:
            yield stop, "stop", 0
        for entity in self._tree(rq + self.deadline, self.dl_node, "deadline entities"):
            if not self.dl_server.read(entity)[0]:  # that serves the fair class, it is no task
                yield entity - self.dl_entity, "deadline", 0
        for entity, depth in self._rt(rq + self.rt):
            yield entity - self.rt_entity, "rt", depth
        for entity, depth in self._fair(rq + self.cfs):
            yield entity - self.entity, "fair", depth
        if self.ext_list and self.ext_node:
            link = self.ext_node.offset
            for task in self._list(rq + self.ext_list.offset, link, "sched_ext tasks"):
                yield task, "ext", 0

    def _fair(self, root: int) -> Iterator[tuple[int, int]]:
        """(sched_entity of a task, depth), groups opened. The running entity of each level is not
        in its tree (set_next_entity() takes it out)."""
        queues, seen = [(root, 0)], {root}
        while queues:
            queue, depth = queues.pop()
            entities = list(self._tree(queue + self.timeline, self.run_node, "fair entities"))
            running = self.memory.u64(queue + self.running)
            if running and running not in entities and self.memory.read(running + self.on_rq, 1)[0]:
                entities.insert(0, running)
            for entity in entities:
                group = self.memory.u64(entity + self.my_q.offset) if self.my_q else 0
                if not group:
                    yield entity, depth
                elif group in seen:
                    self.problem("the groups of a fair run queue do not form a tree")
                else:
                    seen.add(group)
                    queues.append((group, depth + 1))

    def _rt(self, lists: int) -> Iterator[tuple[int, int]]:
        """(sched_rt_entity of a task, depth); groups only with CONFIG_RT_GROUP_SCHED."""
        arrays, seen = [(lists, 0)], {lists}
        while arrays:
            array, depth = arrays.pop()
            for prio in range(MAX_RT_PRIO):
                for entity in self._list(array + 16 * prio, self.rt_link, "real-time entities"):
                    group = self.memory.u64(entity + self.rt_my_q.offset) if self.rt_my_q else 0
                    if not group:
                        yield entity, depth
                    elif group in seen:
                        self.problem("the groups of a real-time run queue do not form a tree")
                    else:
                        seen.add(group)
                        arrays.append((group + self.rt_queue, depth + 1))

    def _tree(self, root: int, offset: int, what: str) -> Iterator[int]:
        self._spend()
        for entity in tree_entries(self.memory, root, offset, self.problem, what, self.left):
            self._spend()
            yield entity

    def _list(self, head: int, offset: int, what: str) -> Iterator[int]:
        self._spend()
        for entity in list_entries(self.memory, head, offset, self.problem, what, self.left):
            self._spend()
            yield entity

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise GuestDataError(f"it has more than {MAX_QUEUED} entries")

    def _task(self, address: int, scheduling_class: str, groups: int, current: bool) -> QueuedTask:
        pid, tgid, comm, prio, policy, on_rq, delayed = self.task.read(address)
        if not 0 <= pid <= 1 << 22 or on_rq not in {0, 1, 2}:  # PID_MAX_LIMIT; TASK_ON_RQ_*
            raise GuestDataError(f"there is no task at {address:#x}")
        return QueuedTask(
            pid,
            tgid,
            comm.partition(b"\0")[0].decode("utf-8", "backslashreplace"),
            scheduling_class,
            POLICIES.get(policy, str(policy)),
            prio,
            current,
            bool(delayed),
            groups,
            address,
        )
