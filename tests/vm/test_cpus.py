"""CPUs and run queues from beneath, with load that is known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from dvisor.guest.cpus import Cpu
from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

_LOAD = """
import ctypes, os
done, ready = os.pipe()
def spinner(name, prepare):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
        os.sched_setaffinity(0, {0})
        prepare()
        os.write(ready, b".")
        while True:
            pass
spinner(b"spin-plain", lambda: None)
spinner(b"spin-nice", lambda: os.nice(5))
spinner(b"spin-batch", lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
for _ in range(3):
    os.read(done, 1)
"""


@contextlib.contextmanager
def load(guest: RunningGuest) -> Iterator[None]:
    """Three tasks that always want CPU 0."""
    guest.python(_LOAD)
    try:
        yield
    finally:
        guest.shell("pkill spin-")


def stopped_cpus(guest: RunningGuest) -> list[Cpu]:
    with guest.stopped():
        listing = guest.guest.cpus()
    assert listing.complete, listing.problems
    return listing


def test_all_that_wants_a_cpu_is_on_its_queue(matrix_guest: RunningGuest) -> None:
    expected = {"spin-plain": (120, "normal"), "spin-nice": (125, "normal")}
    expected["spin-batch"] = (120, "batch")
    with load(matrix_guest):
        samples = [stopped_cpus(matrix_guest)[0] for _ in range(20)]
    for cpu in samples:
        queued = {task.comm: (task.prio, task.policy) for task in cpu.queue.tasks}
        assert expected.items() <= queued.items()
        assert {t.scheduling_class for t in cpu.queue.tasks if t.comm in expected} == {"fair"}
    # A vCPU may be stopped while it is changing its queue, but hardly each time.
    whole = [cpu for cpu in samples if len(cpu.queue.tasks) == cpu.queue.nr_running]
    assert len(whole) >= 15
    assert {cpu.comm for cpu in samples} & expected.keys()


def test_the_current_task_is_one_of_the_guests(matrix_guest: RunningGuest) -> None:
    with matrix_guest.stopped():
        cpus = matrix_guest.guest.cpus()
        tasks = {task.address: task for task in matrix_guest.guest.tasks(threads=True)}
    online = matrix_guest.shell("grep -c ^processor /proc/cpuinfo")
    assert [cpu.number for cpu in cpus] == list(range(int(online)))
    for cpu in cpus:
        if cpu.idle:
            assert (cpu.pid, cpu.comm) == (0, f"swapper/{cpu.number}")
        else:
            assert tasks[cpu.task].pid == cpu.pid
        assert cpu.position is not None
        assert cpu.position.mode == "kernel" or not cpu.idle


def test_context_switches_are_those_of_proc_stat(matrix_guest: RunningGuest) -> None:
    def inside() -> int:
        return int(matrix_guest.shell("grep ^ctxt /proc/stat").split()[1])

    before = inside()
    seen = sum(cpu.queue.switches for cpu in matrix_guest.guest.cpus())
    assert before <= seen <= inside()
