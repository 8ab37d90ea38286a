"""Kernel stacks from beneath against /proc/TID/stack in the guest."""

from __future__ import annotations

import json

import pytest

from dvisor.guest.stack import Frame
from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

_STACKS = """
import glob, json
rows = {}
for path in glob.glob("/proc/[0-9]*/task/*/stack"):
    try:
        lines = open(path).read().splitlines()
        rows[path.split("/")[4]] = [line.split(" ", 1)[1] for line in lines]
    except (FileNotFoundError, ProcessLookupError):
        pass
print(json.dumps(rows))
"""

_IN_A_MODULE = """
import os, socket
listener = socket.socket(socket.AF_VSOCK)  # loads the module
listener.bind((socket.VMADDR_CID_ANY, 77))
listener.listen()
pid = os.fork()
if pid == 0:
    listener.accept()
print(pid)
"""
BUSY = "dd if=/dev/zero of=/dev/null bs=16M"


def inside(guest: RunningGuest) -> dict[int, list[str]]:
    return {int(tid): frames for tid, frames in json.loads(guest.python(_STACKS)).items()}


def printed(frame: Frame) -> str:
    module = f" [{frame.module}]" if frame.module else ""
    return f"{frame.symbol}+{frame.offset:#x}/{frame.size:#x}{module}"


def test_every_sleeping_task_is_where_the_guest_itself_says(matrix_guest: RunningGuest) -> None:
    before = inside(matrix_guest)
    kernel = matrix_guest.guest.kernel
    # /proc leaves the scheduler's own functions out (stack_trace_consume_entry_nosched()).
    first, last = kernel.symbol("__sched_text_start"), kernel.symbol("__sched_text_end")
    seen: dict[int, list[str]] = {}
    with matrix_guest.stopped():
        for task in matrix_guest.guest.tasks(threads=True):
            frames = matrix_guest.guest.stack(task.pid)
            assert frames.complete, (task.comm, frames.problems)
            assert all(frame.reliable for frame in frames)
            seen[task.pid] = [printed(f) for f in frames if not first <= f.address < last]
    after = inside(matrix_guest)
    lasting = [tid for tid in before.keys() & after.keys() if before[tid] == after[tid]]
    differing = [(tid, before[tid], seen[tid]) for tid in lasting if seen[tid] != before[tid]]
    assert len(differing) <= 3, differing  # the shell and what else works right now
    assert len(lasting) > 200


def test_a_task_that_sleeps_in_a_module_is_followed_through_it(matrix_guest: RunningGuest) -> None:
    pid = int(matrix_guest.python(_IN_A_MODULE))
    try:
        path = f"/proc/{pid}/stack"
        matrix_guest.shell(f"until grep -q vsock_accept {path}; do sleep 0.1; done; cat {path}")
        inside = matrix_guest.shell(f"cat {path}").splitlines()
        seen = matrix_guest.guest.stack(pid)
        assert seen.complete, seen.problems
        assert "[vsock]" in inside[0]
        assert [printed(frame) for frame in seen][-len(inside) :] == [
            line.split(" ", 1)[1] for line in inside
        ]
    finally:
        matrix_guest.shell(f"kill {pid}")


def test_a_task_that_runs_in_the_kernel_is_followed_to_its_system_call(
    matrix_guest: RunningGuest,
) -> None:
    pid = int(matrix_guest.shell(f"({BUSY} >/dev/null 2>&1 & echo $!)"))
    try:
        found: list[str] = []
        for _ in range(300):
            with matrix_guest.stopped():
                running = [cpu for cpu in matrix_guest.guest.cpus() if cpu.pid == pid]
                frames = matrix_guest.guest.stack(pid)
            in_kernel = running and running[0].position and running[0].position.mode == "kernel"
            if in_kernel and {"ksys_read", "ksys_write"} & {f.symbol for f in frames}:
                assert frames.complete, frames.problems
                assert all(frame.reliable for frame in frames)
                found = [frame.symbol for frame in frames]
                break
        assert found[-2:] == ["do_syscall_64", "entry_SYSCALL_64_after_hwframe"], found
    finally:
        matrix_guest.shell(f"kill {pid}")


def test_a_task_that_has_exited_has_no_stack(matrix_guest: RunningGuest) -> None:
    zombie = next(task for task in matrix_guest.guest.tasks() if task.state == "Z")
    assert list(matrix_guest.guest.stack(zombie.pid)) == []
