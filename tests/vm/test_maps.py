"""Memory maps from beneath against the guest's own /proc/PID/maps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vm.guests import RunningGuest
from tests.vm.proc import ask, started

pytestmark = pytest.mark.vm

_PROC = """
for pid in processes():
    try:
        lines = text(f"/proc/{pid}/maps")
        name = text(f"/proc/{pid}/comm")
    except OSError:
        continue
    if not name.startswith("sleeper-") or name.startswith("sleeper-1"):
        found[pid] = lines
"""


def parsed(line: str) -> tuple[Any, ...]:
    fields = line.split(None, 5)
    start, end = (int(part, 16) for part in fields[0].split("-"))
    major, minor = (int(part, 16) for part in fields[3].split(":"))
    path = fields[5] if len(fields) > 5 else ""
    return start, end, fields[1], int(fields[2], 16), f"{major}:{minor}", int(fields[4]), path


def beneath(guest: RunningGuest, pid: int) -> list[tuple[Any, ...]]:
    listing = guest.guest.maps(pid)
    assert listing.complete, listing.problems
    return [(m.start, m.end, m.permissions, m.offset, m.device, m.inode, m.path) for m in listing]


def test_every_map_is_as_the_guest_itself_says(matrix_guest: RunningGuest) -> None:
    told = ask(matrix_guest, _PROC)
    still = {task.pid for task in matrix_guest.guest.tasks()}
    compared = 0
    for pid, text in told.items():
        if int(pid) in still and int(pid) != shell_pid(matrix_guest):
            assert beneath(matrix_guest, int(pid)) == [parsed(line) for line in text.splitlines()]
            compared += bool(text)
    assert compared > 20
    paths = {parsed(line)[6] for text in told.values() for line in text.splitlines()}
    assert paths >= {"", "[heap]", "[stack]", "[vdso]"}
    assert any(path.endswith(" (deleted)") for path in paths)


def shell_pid(guest: RunningGuest) -> int:
    """The console's own shell, whose heap moves as it is used."""
    return int(guest.shell("echo $$"))


def test_kernel_threads_and_zombies_have_no_maps(matrix_guest: RunningGuest) -> None:
    tasks = matrix_guest.guest.tasks()
    for task in (
        next(t for t in tasks if t.kernel_thread),
        next(t for t in tasks if t.state == "Z"),
    ):
        assert matrix_guest.guest.maps(task.pid) == []


def test_a_process_with_thousands_of_maps_has_them_all(matrix_guest: RunningGuest) -> None:
    code = (
        "import mmap, time; keep = [mmap.mmap(-1, 4096, prot=1 + i % 2 * 2) for i in range(3000)];"
        'print("made", flush=True); time.sleep(600)'
    )
    with started(matrix_guest, code) as pid:
        count = int(matrix_guest.shell(f"wc -l </proc/{pid}/maps"))
        assert count > 3000
        assert len(beneath(matrix_guest, pid)) == count
