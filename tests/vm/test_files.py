"""Open files from beneath against the guest's own /proc/PID/fd and fdinfo."""

from __future__ import annotations

from typing import Any

import pytest

from dvisor.guest.files import OpenFile
from tests.vm.guests import RunningGuest
from tests.vm.proc import ask, assert_between, started

pytestmark = pytest.mark.vm

_PROC = """
for pid in processes():
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            info = dict(re.findall("(?m)^(pos|flags):.([0-9]+)", text(f"/proc/{pid}/fdinfo/{fd}")))
            path = f"/proc/{pid}/fd/{fd}"
            s = os.stat(path)
            device = f"{os.major(s.st_dev)}:{os.minor(s.st_dev)}"
            found[f"{pid} {fd}"] = [
                link(path), int(info["pos"]), int(info["flags"], 8) & ~0o2000000,
                s.st_ino, device, s.st_mode >> 12, s.st_size,
            ]
    except (FileNotFoundError, ProcessLookupError):
        pass
"""
_TYPES = {1: "pipe", 2: "chr", 4: "dir", 6: "blk", 8: "file", 10: "link", 12: "socket"}


def inside(guest: RunningGuest) -> dict[str, tuple[Any, ...]]:
    """By "pid fd", as /proc says."""
    rows = {}
    for key, (path, position, flags, inode, device, kind, size) in ask(guest, _PROC).items():
        name = "anon" if path.startswith("anon_inode:") else _TYPES[kind]
        # A directory's size in /proc is made up when it is asked for; pseudo files have none.
        sized = size if name == "file" and path.startswith("/tmp/") else None
        rows[key] = (path, position, flags, inode, device, name, sized)
    return rows


def row(file: OpenFile) -> tuple[Any, ...]:
    sized = file.size_bytes if file.kind == "file" and file.path.startswith("/tmp/") else None
    flags = file.flags & ~0o2000000  # O_CLOEXEC belongs to the descriptor, as fdinfo has it
    return file.path, file.position, flags, file.inode, file.device, file.kind, sized


def workload_files(guest: RunningGuest) -> dict[str, OpenFile]:
    pid = next(t.pid for t in guest.guest.tasks() if t.comm == "workload")
    return {file.path: file for file in guest.guest.files(pid)}


def test_every_open_file_is_as_the_guest_itself_says(matrix_guest: RunningGuest) -> None:
    before = inside(matrix_guest)
    with matrix_guest.stopped():
        listing = matrix_guest.guest.files()
    after = inside(matrix_guest)
    assert listing.complete, listing.problems
    assert_between(before, {f"{f.pid} {f.fd}": row(f) for f in listing}, after)
    assert {f.kind for f in listing} >= {"file", "dir", "chr", "pipe", "socket", "anon"}
    assert len(listing) > 300


def test_deleted_files_are_told_from_files_with_a_deceiving_name(
    matrix_guest: RunningGuest,
) -> None:
    files = workload_files(matrix_guest)
    gone = {path for path, file in files.items() if file.deleted}
    assert "/tmp/workload/deleted (deleted)" in gone
    assert "/tmp/workload/deleted again (deleted) (deleted)" in gone
    assert "/tmp/workload/removed (deleted)" in gone
    assert "/memfd:a memory file (deleted)" in gone
    assert not files["/tmp/workload/plain"].deleted


def test_odd_names_come_through(matrix_guest: RunningGuest) -> None:
    files = workload_files(matrix_guest)
    for name in ("with space", "new\nline", "back\\slash", "ümlaut", "x" * 255):
        assert files[f"/tmp/workload/{name}"].position == 5


def test_access_tells_how_a_file_was_opened(matrix_guest: RunningGuest) -> None:
    files = workload_files(matrix_guest)
    assert files["/etc/passwd"].access == "r"
    assert files["/dev/null"].access == "w"
    assert files["/dev/null"].represents == "1:3"
    assert files["/tmp/workload/plain"].access == "rw"
    assert files["/tmp/workload"].access == ""


def test_descriptors_that_were_duplicated_share_one_file(matrix_guest: RunningGuest) -> None:
    pid = next(t.pid for t in matrix_guest.guest.tasks() if t.comm == "workload")
    shared = [f for f in matrix_guest.guest.files(pid) if f.path == "/etc/passwd"]
    assert len(shared) == 2
    assert len({f.address for f in shared}) == 1


def test_files_lead_to_their_mounts(matrix_guest: RunningGuest) -> None:
    mounts = {mount.address: mount for mount in matrix_guest.guest.mounts()}
    passwd = workload_files(matrix_guest)["/etc/passwd"]
    assert mounts[passwd.mount].mountpoint == "/"
    assert mounts[passwd.mount].device == passwd.device


def test_a_file_in_a_container_has_a_path_there(matrix_guest: RunningGuest) -> None:
    paths = {file.path for file in matrix_guest.guest.files()}
    assert "/mnt/only inside" in paths
    assert "only inside" not in matrix_guest.shell("ls /mnt")


def test_a_thread_cannot_hide_files_in_a_table_of_its_own(matrix_guest: RunningGuest) -> None:
    code = (
        "import ctypes, threading, time\n"
        "def run():\n"
        "    assert ctypes.CDLL(None).unshare(0x400) == 0\n"
        '    file = open("/tmp/hidden", "w")\n'
        '    print("made", flush=True)\n'
        "    time.sleep(600)\n"
        "threading.Thread(target=run).start()\n"
    )
    with started(matrix_guest, code) as pid:
        assert "/tmp/hidden" not in matrix_guest.shell(f"ls -l /proc/{pid}/fd")
        found = [f for f in matrix_guest.guest.files() if f.path == "/tmp/hidden"]
        assert len(found) == 1
        assert matrix_guest.guest.task(found[0].pid).tgid == pid != found[0].pid
