"""A guest that forks, execs and exits as fast as it can while we look.

Nothing may be invented or fail then, and lists must still come out whole.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from dvisor.guest.listing import Listing
from dvisor.guest.tasks import MAX_PID, Task
from tests.frozen import views
from tests.vm.guests import RunningGuest, running_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

FORKS = "exec -a churn-fork sh -c 'while :; do (:) ; (:) & done'"
EXECS = "exec -a churn-exec sh -c 'while :; do /bin/true; done'"
THREADS = """
import threading
while True:
    for t in [threading.Thread(target=int) for _ in range(8)]: t.start()
"""
# A thread that execs takes over its process's id and place in the list (fs/exec.c, de_thread).
DE_THREAD = """
import os, threading, time
while True:
    pid = os.fork()
    if not pid:
        threading.Thread(target=os.execv, args=("/bin/true", ["true"])).start()
        time.sleep(9)
    os.waitpid(pid, 0)
"""
NAMES = {"sh", "dash", "bash", "true", "python3", "setsid"}
# Names that kernel threads are born with while the guest runs.
KERNEL_NAMES = ("kworker/", "kthreadd")


@pytest.fixture(scope="module")
def churning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningGuest, set[str]]]:
    """The guest, and the names that a process in it may have."""
    scratch = tmp_path_factory.mktemp("churn")
    with running_guest("6.12", "max", 2, scratch, workload=False) as found:
        quiet = {task.comm for task in found.guest.tasks(threads=True)}
        for name, program in (("threads", THREADS), ("dethread", DE_THREAD)):
            (scratch / name).write_text(program)
            lines = " ".join(f'"{line}"' for line in program.strip().replace('"', "'").splitlines())
            found.shell(f"printf '%s\\n' {lines} >/tmp/{name}.py")
            found.shell(f"setsid python3 /tmp/{name}.py >/tmp/{name}.log 2>&1 &")
        for program in (FORKS, EXECS):
            found.shell(f"setsid bash -c {shell_quoted(program)} >/dev/null 2>&1 &")
        yield found, quiet | NAMES


def shell_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def check(tasks: Listing[Task], names: set[str], threads: bool) -> None:
    """No task is invented: each is one that can exist; in a whole list it is there once."""
    if tasks.complete:
        assert {n: c for n, c in Counter(task.pid for task in tasks).items() if c > 1} == {}
        assert threads or all(task.pid == task.tgid for task in tasks)
    for task in tasks:
        assert 0 < task.pid <= MAX_PID, task
        assert 0 <= task.ppid <= MAX_PID, task
        kernels = task.kernel_thread and task.comm.startswith(KERNEL_NAMES)
        assert task.comm in names or kernels or is_half_written(task.comm), task
        assert task.uid == 0 or task.comm not in NAMES, task
        assert task.state in "RSDTtZXIP", task


def is_half_written(comm: str) -> bool:
    """Whether an exec is just copying one of our names over another, byte by byte: since 6.14 the
    kernel's own readers may see that too (__set_task_comm() takes no lock)."""
    return any(
        comm == new[:copied] + old[copied:]
        for new, old in itertools.permutations(NAMES, 2)
        for copied in range(1, len(old))
    )


@pytest.mark.parametrize("seconds", [15, pytest.param(60, marks=pytest.mark.full)])
def test_under_churn_no_view_fails_and_no_task_is_invented(
    churning: tuple[RunningGuest, set[str]], seconds: int
) -> None:
    found, names = churning
    guest = found.guest
    first = max(task.pid for task in guest.tasks())
    whole: Counter[tuple[str, bool]] = Counter()
    slow = [view for view in views(tables=False) if not view[0].startswith("tasks")]
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for threads in (False, True):
            tasks = guest.tasks(threads)
            check(tasks, names, threads)
            whole["threads" if threads else "processes", tasks.complete] += 1
        name, call = slow[turn % len(slow)]
        turn += 1
        answer: Any = call(guest)
        whole[name, not getattr(answer, "problems", None)] += 1
    last = max(task.pid for task in guest.tasks())
    assert last > first, "the guest did not churn"
    for kind in ("processes", "threads"):
        assert whole[kind, True] > 9 * whole[kind, False], whole
