"""A VM's directory and its lock: one owner at a time, and remains go."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dvisor.errors import HostError, StateError, UsageError
from dvisor.machine import registry
from dvisor.machine.janitor import Janitor
from dvisor.machine.places import runtime_directory, runtime_root


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVISOR_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def remains_of_a_dead_vm(name: str) -> Path:
    program = (
        "import os, sys\nfrom dvisor.machine import registry\n"
        "claim = registry.claim(sys.argv[1])\n(claim.directory / 'control.sock').touch()\n"
        "os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, name], check=False)
    return runtime_directory(name)


def test_a_claimed_name_lives_and_a_released_one_does_not(root: Path) -> None:
    with registry.claimed("web1") as directory:
        assert directory == root / "web1"
        assert directory.stat().st_mode & 0o777 == 0o700
        assert registry.live_names() == ["web1"]
    assert registry.live_names() == []
    assert list(root.iterdir()) == []


def test_a_name_can_be_claimed_once() -> None:
    with registry.claimed("web1"), pytest.raises(StateError, match="web1 runs already"):
        registry.claim("web1")


def test_the_dead_do_not_live_and_are_taken_away() -> None:
    directory = remains_of_a_dead_vm("web1")
    assert (directory / "control.sock").exists()
    assert registry.live_names() == []
    assert not directory.exists()


def test_a_new_owner_does_not_meet_the_remains_of_the_old() -> None:
    remains_of_a_dead_vm("web1")
    with registry.claimed("web1") as directory:
        assert [entry.name for entry in directory.iterdir()] == ["lock"]


def test_half_made_and_half_removed_directories_are_swept(root: Path) -> None:
    (runtime_root() / "web1").mkdir()
    (root / ".gone-web2-1").mkdir()
    (root / ".gone-web2-1" / "lock").touch()
    assert registry.live_names() == []
    assert list(root.iterdir()) == []


def test_many_claimants_and_sweepers_leave_one_owner() -> None:
    winners, start = [], threading.Barrier(8)

    def strive(number: int) -> None:
        start.wait()
        if number % 2:
            for _ in range(50):
                registry.live_names()
            return
        try:
            winners.append(registry.claim("web1"))
        except StateError:
            return

    threads = [threading.Thread(target=strive, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = winners
    assert registry.live_names() == ["web1"]
    winner.release()
    assert registry.live_names() == []


def test_a_janitor_spares_the_next_vm_of_the_same_name(root: Path) -> None:
    claim = registry.claim("web1")
    janitor = Janitor(claim.directory)
    os.close(janitor._write_fd)  # as if the supervisor had died, with its lock held by the next
    os.waitpid(janitor.pid, 0)
    assert registry.live_names() == ["web1"]
    claim.release()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".gone-a", "a" * 33, "a\n", "ä"])
def test_a_name_that_could_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a VM"):
        registry.claim(name)


def test_a_directory_that_others_can_write_to_is_refused(root: Path) -> None:
    runtime_root().chmod(0o777)
    with pytest.raises(HostError, match="only you can write to"):
        registry.claim("web1")


def test_a_path_too_long_for_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVISOR_RUNTIME_DIR", f"{runtime_root()}/{'x' * 100}")
    with pytest.raises(HostError, match="too long a path"):
        registry.claim("web1")


def test_a_session_without_a_runtime_directory_gets_a_private_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uid = 123456789
    monkeypatch.delenv("DVISOR_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    place = Path(f"/tmp/dvisor-{uid}")
    place.symlink_to("/var")
    try:
        with pytest.raises(HostError, match="take over your VMs"):
            runtime_root()
    finally:
        place.unlink()
