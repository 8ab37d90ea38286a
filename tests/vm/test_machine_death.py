"""Whatever is killed, and whenever: no process, socket or RAM stays, and `ls` tells the truth."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from dvisor.machine import machines
from dvisor.machine.control import Control
from dvisor.machine.inventory import past_machines
from dvisor.machine.launch import launch
from dvisor.machine.messages import Info
from dvisor.machine.states import State
from tests.vm.machines import Place, eventually, launch_in_child, started, tiny_spec

pytestmark = pytest.mark.vm

STAGES = ("command", "supervisor", "janitor", "QEMU", "running")


def random_moment_in(place: Place, stage: str) -> None:
    """Wait until `up` has come to ``stage``, and a little longer."""
    if stage == "running":
        eventually(lambda: [vm.state for vm in machines()] == [State.RUNNING], "the VM's run")
    else:
        count = STAGES.index(stage) + 1
        eventually(lambda: len(place.processes()) >= count, f"a start of the {stage}")
    time.sleep(random.uniform(0, 0.05))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    for key, value in place.environment.items():
        monkeypatch.setenv(key, value)
    yield place
    place.close()


@pytest.fixture
def vm(place: Place) -> Info:
    return launch(tiny_spec()).info


def janitors(place: Place) -> set[int]:
    return {pid for pid, comm in place.processes().items() if comm == "sh"}


def how_it_ended() -> tuple[State | None, str]:
    (found,) = past_machines()
    return found.state, found.note


def test_a_killed_supervisor_leaves_nothing(place: Place, vm: Info) -> None:
    os.kill(vm.supervisor_pid, signal.SIGKILL)
    eventually(place.is_empty, "an empty place, with nobody looking")
    assert machines() == []
    assert how_it_ended() == (State.CRASHED, "its supervisor was killed, and QEMU with it")


def test_a_killed_qemu_leaves_nothing_but_the_reason(place: Place, vm: Info) -> None:
    os.kill(vm.qemu_pid, signal.SIGKILL)
    eventually(place.is_empty, "an empty place")
    assert machines() == []
    assert how_it_ended() == (State.CRASHED, "QEMU was killed by SIGKILL")


def test_a_terminated_supervisor_ends_in_order(place: Place, vm: Info) -> None:
    os.kill(vm.supervisor_pid, signal.SIGTERM)
    eventually(place.is_empty, "an empty place")
    assert how_it_ended() == (State.SHUTDOWN, "its supervisor was told to end (SIGTERM)")


def test_a_killed_janitor_is_replaced_and_the_vm_lives(place: Place, vm: Info) -> None:
    (first,) = janitors(place)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: janitors(place) - {first}, "another janitor")
    assert [machine.state for machine in machines()] == [State.RUNNING]
    os.kill(vm.supervisor_pid, signal.SIGKILL)
    eventually(place.is_empty, "an empty place")


def test_without_a_janitor_ls_takes_the_remains_away(place: Place, vm: Info) -> None:
    (pid,) = janitors(place)
    os.kill(vm.supervisor_pid, signal.SIGSTOP)  # so that it cannot start another
    os.kill(pid, signal.SIGKILL)
    os.kill(vm.supervisor_pid, signal.SIGKILL)
    eventually(lambda: not place.processes(), "the end of all processes")
    assert place.entries() == ["t"]
    assert machines() == []
    assert place.is_empty()


def test_a_name_is_free_again_at_once(place: Place, vm: Info) -> None:
    os.kill(vm.supervisor_pid, signal.SIGKILL)
    eventually(lambda: vm.supervisor_pid not in place.processes(), "the end of the supervisor")
    again = launch(tiny_spec()).info
    eventually(lambda: len(place.processes()) == 3, "three processes: the new VM's")
    assert [machine.state for machine in machines()] == [State.RUNNING]
    assert again.supervisor_pid in place.processes()
    with Control("t") as control:
        control.quit(force=True)
    assert place.is_empty()


def test_a_supervisor_that_hangs_is_shown_and_can_be_killed(place: Place, vm: Info) -> None:
    os.kill(vm.supervisor_pid, signal.SIGSTOP)
    (found,) = machines()
    assert found.state is None
    assert "does not answer" in found.note
    with Control("t") as control:
        control.quit(force=True)
    eventually(place.is_empty, "an empty place")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_up_that_is_ended_at_any_moment_leaves_nothing(
    place: Place, number: signal.Signals, stage: str
) -> None:
    with launch_in_child(tiny_spec(cmdline="console=null"), stderr=subprocess.DEVNULL) as up:
        random_moment_in(place, stage)
        up.send_signal(number)
        assert up.wait(60) != 0
    eventually(place.is_empty, "an empty place")
    assert machines() == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_terminal_that_is_closed_during_up_leaves_nothing(place: Place, stage: str) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        os.close(os.open(os.ttyname(theirs), os.O_RDWR))  # the controlling terminal from now on

    spec = tiny_spec(cmdline="console=null")
    with launch_in_child(
        spec, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal
    ) as up:
        os.close(theirs)
        random_moment_in(place, stage)
        os.close(ours)
        assert up.wait(60) != 0
    eventually(place.is_empty, "an empty place")


def test_a_vm_outlives_the_command_and_the_terminal_that_started_it(place: Place) -> None:
    with launch_in_child(tiny_spec(), start_new_session=True, stdout=subprocess.DEVNULL) as up:
        assert up.wait(180) == 0
    assert [machine.state for machine in machines()] == [State.RUNNING]
    with Control("t") as control:
        control.quit(force=True)
    assert place.is_empty()


def test_a_readers_mapping_outlives_the_vm_harmlessly(place: Place) -> None:
    with started(tiny_spec()).engine() as engine:
        gpa, _ = next(engine.populated())
        with Control("t") as control:
            control.quit(force=True)
        assert len(engine.read(gpa, 4096)) == 4096
    assert place.is_empty()
