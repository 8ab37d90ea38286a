"""The task list from beneath against the guest's own /proc."""

from __future__ import annotations

import json

import pytest

from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

_PROC = """
import json, os
rows = {}
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            stat = open(f"/proc/{pid}/task/{tid}/stat", "rb").read()
            status = open(f"/proc/{pid}/task/{tid}/status").read()
            name, rest = stat[stat.index(b"(") + 1:].rsplit(b")", 1)
            fields = rest.split()
            uid = status.split("Uid:")[1].split()[0]
            comm = name.decode("utf-8", "backslashreplace")
            if comm.startswith("kworker/") and comm[8] != "R":  # /proc adds its present work
                comm = comm.split("-")[0].split("+")[0]
            if int(fields[6]) & 0x20_0000:  # /proc cuts the names of workers
                comm = comm[:15]
            rows[tid] = [int(pid), int(fields[1]), int(uid), comm, fields[0].decode()]
    except (FileNotFoundError, ProcessLookupError):
        pass
print(json.dumps(rows))
"""


def inside(guest: RunningGuest) -> dict[int, tuple[object, ...]]:
    """(tgid, ppid, uid, comm, state) by thread id, as the guest's /proc says."""
    return {int(tid): tuple(row) for tid, row in json.loads(guest.python(_PROC)).items()}


def beneath(guest: RunningGuest) -> dict[int, tuple[object, ...]]:
    with guest.stopped():
        listing = guest.guest.tasks(threads=True)
    assert listing.complete, listing.problems
    return {
        t.pid: (t.tgid, t.ppid, t.uid, t.comm[:15] if t.kernel_thread else t.comm, t.state)
        for t in listing
    }


def test_every_thread_is_as_the_guest_itself_says(matrix_guest: RunningGuest) -> None:
    before = inside(matrix_guest)
    seen = beneath(matrix_guest)
    after = inside(matrix_guest)
    assert len(before) > 200
    lasting = before.keys() & after.keys()
    assert lasting <= seen.keys() <= before.keys() | after.keys()
    # A kernel thread may be caught at work by one side and asleep by the other.
    for tid in lasting:
        assert seen[tid][:4] in (before[tid][:4], after[tid][:4])
    same = [tid for tid in lasting if before[tid] == after[tid] and before[tid][4] not in "RD"]
    differing = [(before[tid], seen[tid]) for tid in same if before[tid] != seen[tid]]
    assert len(differing) <= 2, differing  # the shell and the program that ask are mid-change
    assert {seen[tid][4] for tid in lasting} >= set("STZ")


def test_a_kernel_thread_has_its_whole_name(matrix_guest: RunningGuest) -> None:
    long = "rcu_tasks_kthread"  # one that is there on all kernels, and longer than comm
    assert long in matrix_guest.shell("cat /proc/[0-9]*/comm")
    assert long in {task.comm for task in matrix_guest.guest.tasks()}


def test_one_task_is_found_by_thread_id(matrix_guest: RunningGuest) -> None:
    threads = matrix_guest.guest.tasks(threads=True)
    worker = next(task for task in threads if task.comm == "worker-7")
    assert matrix_guest.guest.task(worker.pid) == worker
    assert worker.pid != worker.tgid
