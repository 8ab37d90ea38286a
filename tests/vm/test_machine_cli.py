"""The verbs of a VM's life as a person types them."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.machines import READY, Place, eventually, tiny_spec

pytestmark = pytest.mark.vm

DVISOR = [sys.executable, "-c", "from dvisor.cli import main; main()"]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        place = Place()
        for key, value in place.environment.items():
            patch.setenv(key, value)
        yield place
        place.close()


@pytest.fixture(scope="module")
def vm(place: Place) -> str:
    spec = tiny_spec()
    config = place.path / "web1.toml"
    config.write_text(
        f'vmlinuz = "{spec.vmlinuz}"\ninitrd = "{spec.initrd}"\nappend = "quiet"\n'
        'memory = "256MiB"\naccel = "tcg"\npowerdown_timeout_s = 0\n'
    )
    up = dvisor("up", str(config), "--wait-for", READY, "--json")
    assert json.loads(up.stdout)["state"] == "running"
    return "web1"


def dvisor(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*DVISOR, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{words}: {done.stdout}{done.stderr}"
    return done


def test_ls_shows_the_vm_to_people_and_to_programs(vm: str) -> None:
    (line,) = dvisor("ls").stdout.splitlines()[1:]
    assert line.split()[:6] == ["web1", "running", "tcg", "1", "256", "MiB"]
    (found,) = json.loads(dvisor("ls", "--json").stdout)
    assert (found["name"], found["state"]) == ("web1", "running")


def test_pause_and_resume_show_in_ls(vm: str) -> None:
    dvisor("pause", vm)
    assert dvisor("ls").stdout.splitlines()[1].split()[1] == "paused"
    again = dvisor("pause", vm, status=4)
    assert again.stderr == (
        "dvisor: cannot pause VM web1: it is paused; 'dvisor resume web1' lets it run again\n"
    )
    dvisor("resume", vm)
    assert dvisor("ls").stdout.splitlines()[1].split()[1] == "running"


def test_logs_hold_what_the_guest_said(vm: str) -> None:
    assert READY in dvisor("logs", vm).stdout
    assert "-nodefaults" in dvisor("logs", vm, "--source", "vmm").stdout


def test_a_person_at_the_console_leaves_it_by_the_escape_key(vm: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with subprocess.Popen([*DVISOR, "console", vm], stdin=theirs, stdout=theirs) as console:
        eventually(lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON, "a raw terminal")
        seen = answer(ours, b"echo an''swer\n", b"answer")
        assert b"answer" in seen
        os.write(ours, b"\x1d")
        assert console.wait(60) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_console_that_is_terminated_restores_the_terminal(vm: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with subprocess.Popen([*DVISOR, "console", vm], stdin=theirs, stdout=theirs) as console:
        eventually(lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON, "a raw terminal")
        console.terminate()
        assert console.wait(60) == 128 + 15
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def answer(terminal: int, typed: bytes, wanted: bytes) -> bytes:
    """What the terminal shows until ``wanted`` is in it; types again until it is."""
    seen, give_up = b"", time.monotonic() + 60
    while wanted not in seen and time.monotonic() < give_up:
        os.write(terminal, typed)
        while select.select([terminal], [], [], 1.0)[0]:
            seen += os.read(terminal, 4096)
    return seen


def test_wrong_configurations_say_what_to_correct(place: Place, tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text('image = "tiny"\nmemroy = "1GiB"\n')
    assert f"{config}, line 2: unknown key 'memroy'" in dvisor("up", str(config), status=2).stderr
    assert "no built-in example" in dvisor("up", "no-such", status=3).stderr
    assert "no VM named nobody" in dvisor("down", "nobody", status=3).stderr


def test_down_ends_it_and_the_log_stays(vm: str, place: Place) -> None:
    follower = subprocess.Popen([*DVISOR, "logs", "-f", vm], stdout=subprocess.PIPE)
    dvisor("down", vm)
    said, _ = follower.communicate(timeout=60)
    assert READY.encode() in said
    assert place.is_empty()
    assert dvisor("ls").stdout == "No VM runs. Start one: dvisor up debian\n"
    assert "ended by 'dvisor down'" in dvisor("ls", "--all").stdout
    assert READY in dvisor("logs", vm).stdout
