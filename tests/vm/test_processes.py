"""Processes in full from beneath against the guest's own /proc/PID."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dvisor.guest.processes import Process
from tests.vm.guests import RunningGuest
from tests.vm.proc import ask, assert_between, started

pytestmark = pytest.mark.vm

_PROC = """
for pid in processes():
    try:
        p = f"/proc/{pid}/"
        links = {}
        for name in ("exe", "cwd", "root", *("ns/" + n for n in os.listdir(p + "ns"))):
            try:
                links[name] = link(p + name)
            except OSError:
                pass
        found[pid] = [text(p + n) for n in ("stat", "status", "cmdline", "cgroup")] + [links]
    except (FileNotFoundError, ProcessLookupError):
        pass
"""
_POLICIES = {0: "normal", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline"}
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def parsed(stat: str, status: str, cmdline: str, cgroup: str, links: dict[str, str]) -> Any:
    fields = stat.rsplit(")", 1)[1].split()
    known = dict(re.findall(r"^(\w+):[ \t]*(.*)$", status, re.MULTILINE))
    device = int(fields[4])
    line = next((row[3:] for row in cgroup.splitlines() if row.startswith("0::")), "/")
    return (
        tuple(map(int, known["Uid"].split() + known["Gid"].split())),
        tuple(map(int, known["Groups"].split())),
        tuple(int(known[name], 16) for name in _CAPABILITIES),
        cmdline.removesuffix("\0"),
        tuple(links.get(name, "") for name in ("exe", "cwd", "root")),
        line,
        tuple(
            (name[3:], int(re.findall(r"\d+", target)[0]))
            for name, target in sorted(links.items())
            if name.startswith("ns/")
        ),
        tuple(map(int, known["NSpid"].split())),
        tuple(map(int, fields[1:4])),  # ppid, pgid, sid
        (device >> 8, device & 0xFF) if device else None,
        tuple(map(int, fields[15:18])),  # priority, nice, threads
        _POLICIES[int(fields[38])],
    )


def row(process: Process) -> Any:
    who = process.credentials
    assert who is not None
    return (
        (who.uid, who.euid, who.suid, who.fsuid, who.gid, who.egid, who.sgid, who.fsgid),
        who.groups,
        (
            who.cap_inheritable,
            who.cap_permitted,
            who.cap_effective,
            who.cap_bounding,
            who.cap_ambient,
        ),
        None if process.cmdline is None else "\0".join(process.cmdline),
        (process.exe, process.cwd, process.root),
        process.cgroup,
        tuple(process.namespaces.items()),
        process.pids,
        (process.ppid, process.pgid, process.sid),
        terminal(process.tty),
        (process.priority, process.nice, process.threads),
        process.policy,
    )


def terminal(name: str) -> tuple[int, int] | None:
    """Device number of a terminal by its name (Documentation/admin-guide/devices.txt)."""
    if not name:
        return None
    if name.startswith("pts/"):
        return 136, int(name[4:])
    assert name.startswith("ttyS")
    return 4, 64 + int(name[4:])


def inside(guest: RunningGuest) -> dict[int, Any]:
    return {int(pid): parsed(*parts) for pid, parts in ask(guest, _PROC).items()}


def named(guest: RunningGuest, comm: str) -> Process:
    return next(p for p in guest.guest.processes() if p.comm == comm)


def test_every_process_is_as_the_guest_itself_says(matrix_guest: RunningGuest) -> None:
    before = inside(matrix_guest)
    with matrix_guest.stopped():
        listing = matrix_guest.guest.processes()
    after = inside(matrix_guest)
    assert listing.complete, listing.problems
    assert_between(before, {process.pid: row(process) for process in listing}, after)
    assert len(listing) > 200
    assert {process.policy for process in listing} >= {"normal", "rr"}
    assert len({process.namespaces.get("pid") for process in listing}) > 1


def test_resident_memory_is_what_the_page_tables_hold(matrix_guest: RunningGuest) -> None:
    process = named(matrix_guest, "sleeper-5")
    # 6.1 counts what faults bring on the thread first (SPLIT_RSS_COUNTING), so that no count is
    # that of the page tables. Later, /proc's own count is an estimate, and dvisor's is exact.
    file = "status" if matrix_guest.kernel_key == "6.1" else "smaps_rollup"
    text = matrix_guest.shell(f"cat /proc/{process.pid}/{file}")
    resident = int(re.findall(r"^(?:VmRSS|Rss):\s+(\d+) kB", text, re.MULTILINE)[0]) << 10
    assert resident > 1 << 20
    assert process.rss_bytes == resident


def test_a_large_environment_is_read_across_pages(matrix_guest: RunningGuest) -> None:
    asleep = next(
        p for p in matrix_guest.guest.processes() if p.cmdline == ("/bin/sleep", "100000")
    )
    assert matrix_guest.guest.environment(asleep.pid) == ("A=" + "b" * 5000,)
    assert asleep.cwd == "/usr/share"


def test_arguments_keep_spaces_and_emptiness(matrix_guest: RunningGuest) -> None:
    lines = {p.cmdline for p in matrix_guest.guest.processes()}
    script = ("/bin/sh", "-c", "sleep 100001; true", "argument with spaces", "")
    assert script in lines


def test_a_program_that_was_deleted_says_so(matrix_guest: RunningGuest) -> None:
    gone = next(
        p for p in matrix_guest.guest.processes() if p.cmdline and p.cmdline[-1] == "100003"
    )
    assert gone.exe == "/tmp/workload/gone (deleted)"


def test_a_container_is_seen_with_its_own_numbers(matrix_guest: RunningGuest) -> None:
    inner = next(p for p in matrix_guest.guest.processes() if p.cmdline == ("sleep", "100004"))
    outer = matrix_guest.guest.process(1)
    assert len(inner.pids) == 2
    assert inner.pids[0] == inner.pid > inner.pids[1]
    for kind in ("mnt", "pid", "net", "uts", "ipc"):
        assert inner.namespaces[kind] != outer.namespaces[kind]
    assert inner.namespaces["user"] == outer.namespaces["user"]


def test_zombies_and_kernel_threads_lack_what_they_do_not_have(
    matrix_guest: RunningGuest,
) -> None:
    listing = matrix_guest.guest.processes()
    zombie = next(p for p in listing if p.state == "Z")
    assert (zombie.cmdline, zombie.exe, zombie.cwd, zombie.rss_bytes) == ((), "", "", 0)
    assert zombie.namespaces.keys() <= {"pid", "user"}
    worker = next(p for p in listing if p.kernel_thread)
    assert (worker.cmdline, worker.exe, worker.rss_bytes) == ((), "", 0)


def test_a_command_line_that_is_not_in_memory_is_none(matrix_guest: RunningGuest) -> None:
    code = (
        "import ctypes, time; c = ctypes.CDLL(None); "
        'f = open("/proc/self/stat").read().rsplit(")", 1)[1].split(); '
        "a = int(f[45]) + 4095 & ~4095; c.madvise(ctypes.c_void_p(a), ctypes.c_size_t(4096), 4); "
        'print("made", flush=True); time.sleep(600)'
    )
    # So long an argument that its second page holds nothing else.
    padding = "$(head -c 9000 /dev/zero | tr '\\0' x)"
    with started(matrix_guest, code, padding) as pid:
        assert matrix_guest.guest.process(pid).cmdline is None


def test_threads_have_names_and_numbers_of_their_own(matrix_guest: RunningGuest) -> None:
    threads = [
        p for p in matrix_guest.guest.processes(threads=True) if p.comm.startswith("worker-")
    ]
    assert len(threads) == 20
    assert {p.threads for p in threads} == {21}
    assert len({p.pids for p in threads}) == 20
