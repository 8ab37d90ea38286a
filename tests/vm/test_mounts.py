"""Mounts from beneath against the guest's own /proc/PID/mountinfo."""

from __future__ import annotations

from typing import Any

import pytest

from dvisor.errors import NotFoundError, StateError
from dvisor.guest.mounts import Mount
from tests.vm.guests import RunningGuest
from tests.vm.proc import ask, unescaped

pytestmark = pytest.mark.vm

_PROC = """
for pid in processes():
    try:
        found[pid] = text(f"/proc/{pid}/mountinfo")
    except OSError:
        pass
seen = {}
found = {pid: lines for pid, lines in found.items() if seen.setdefault(lines, pid) == pid}
"""


def row(mount: Mount) -> tuple[Any, ...]:
    return (
        mount.id,
        mount.parent,
        mount.device,
        mount.root,
        mount.mountpoint,
        ",".join(mount.options),
        " ".join(mount.propagation),
        mount.fstype,
        mount.source,
        mount.super_options[0],
    )


def parsed(line: str) -> tuple[Any, ...]:
    left, _, right = line.partition(" - ")
    number, parent, device, root, mountpoint, options, *propagation = left.split(" ")
    fstype, source, super_options = right.split(" ")
    return (
        int(number),
        int(parent),
        device,
        unescaped(root),
        unescaped(mountpoint),
        options,
        " ".join(propagation),
        unescaped(fstype),
        unescaped(source),
        super_options.split(",")[0],
    )


def test_mounts_of_every_namespace_are_as_the_guest_itself_says(
    matrix_guest: RunningGuest,
) -> None:
    told = ask(matrix_guest, _PROC)
    assert len(told) >= 2, "the container's mount namespace is missing"
    for pid, lines in told.items():
        listing = matrix_guest.guest.mounts(int(pid))
        assert listing.complete, listing.problems
        assert [row(mount) for mount in listing] == [parsed(line) for line in lines.splitlines()]


def test_the_container_has_a_mount_of_its_own(matrix_guest: RunningGuest) -> None:
    pid = next(f.pid for f in matrix_guest.guest.files() if f.path == "/mnt/only inside")
    inner = {m.mountpoint: m for m in matrix_guest.guest.mounts(pid)}
    assert (inner["/mnt"].fstype, inner["/mnt"].source) == ("tmpfs", "inside")
    assert "/mnt" not in {m.mountpoint for m in matrix_guest.guest.mounts()}


def test_a_process_that_is_not_there_and_one_that_has_exited_are_told(
    matrix_guest: RunningGuest,
) -> None:
    zombie = next(t.pid for t in matrix_guest.guest.tasks() if t.state == "Z")
    with pytest.raises(StateError, match="has exited"):
        matrix_guest.guest.mounts(zombie)
    with pytest.raises(NotFoundError):
        matrix_guest.guest.mounts(4_000_000)
