"""The life of a VM as its user sees it: states, memory, registers, resets, and clear refusals."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvisor.addresses import GuestPhysical
from dvisor.errors import (
    EngineError,
    GuestMemoryError,
    HostError,
    NotFoundError,
    StateError,
    UsageError,
)
from dvisor.machine import machines, open_engine
from dvisor.machine.console import Console
from dvisor.machine.control import Control
from dvisor.machine.engine import Engine
from dvisor.machine.inventory import past_machines
from dvisor.machine.launch import launch
from dvisor.machine.places import runtime_directory
from dvisor.machine.states import State
from dvisor.machine.supervisor_console import CLIENT_BACKLOG_BYTES
from tests.vm.machines import (
    BOOT_TIMEOUT_S,
    READY,
    Place,
    eventually,
    shell,
    started,
    tiny_spec,
)

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        place = Place()
        for key, value in place.environment.items():
            patch.setenv(key, value)
        yield place
        place.close()


@pytest.fixture(scope="module")
def vm(place: Place) -> Iterator[str]:
    """One running guest with two vCPUs; tests leave it running."""
    started(tiny_spec("shared", vcpus=2))
    yield "shared"
    with contextlib.suppress(NotFoundError), Control("shared") as control:
        control.quit(force=True)


@pytest.fixture
def control(vm: str) -> Iterator[Control]:
    with Control(vm) as control:
        yield control
        assert control.info().state is State.RUNNING
        assert control.info().holds == 0


def last_words(name: str) -> tuple[State | None, str]:
    (found,) = [machine for machine in past_machines() if machine.name == name]
    return found.state, found.note


def test_a_vm_comes_up_and_goes_down_without_a_trace(place: Place) -> None:
    started(tiny_spec("brief"))
    assert ("brief", State.RUNNING) in [(machine.name, machine.state) for machine in machines()]
    with Control("brief") as control:
        control.quit()
    assert "brief" not in [machine.name for machine in machines()]
    assert "brief" not in place.entries()
    assert last_words("brief") == (State.SHUTDOWN, "ended by 'dvisor down'")


def test_the_guests_own_poweroff_ends_the_vm(place: Place) -> None:
    started(tiny_spec("off"))
    with shell("off") as console:
        console.send("poweroff -f")
    eventually(lambda: "off" not in place.entries(), "the end of the VM")
    assert last_words("off") == (State.SHUTDOWN, "QEMU reported guest-shutdown")


def test_a_command_on_the_console_returns_text_and_status(vm: str) -> None:
    with shell(vm) as console:
        assert console.run("echo one; echo two >&2", 30) == ("one\ntwo\n", 0)
        assert console.run('printf "it\'s"; (exit 3)', 30) == ("it's", 3)


def test_a_text_that_does_not_come_is_an_error_with_the_last_words(vm: str) -> None:
    with shell(vm) as console:
        console.send("echo last words")
        with pytest.raises(EngineError, match=r"did not show 'no such text'.*last words"):
            console.read_until("no such text", 1.0)


def test_two_consoles_see_the_same_output(vm: str) -> None:
    with shell(vm) as one, Console(vm) as other:
        one.run("echo for-both", 30)
        assert "for-both" in other.read_until("for-both", 30)


def test_the_engine_keeps_the_protocol(vm: str) -> None:
    with open_engine(vm) as engine:
        assert isinstance(engine, Engine)
        assert engine.live
        assert engine.knows_resets


def test_an_engine_whose_vm_has_ended_says_so(place: Place) -> None:
    started(tiny_spec("ended"))
    with open_engine("ended") as engine:
        assert engine.epoch() >= 0
        with Control("ended") as control:
            control.quit(force=True)
        with pytest.raises(EngineError, match="has ended"):
            engine.epoch()


def test_guest_memory_is_what_the_guest_wrote(vm: str) -> None:
    mark = b"dvisor-mark-" + os.urandom(8).hex().encode()
    with shell(vm) as console, open_engine(vm) as engine:
        typed = mark.decode().replace("-mark-", "-'mark'-")
        console.run(f"echo {typed} > /tmp/mark", 30)
        assert sum(engine.read(gpa, size).count(mark) for gpa, size in engine.populated()) > 0


def test_ram_outside_the_populated_runs_is_zero(vm: str) -> None:
    with open_engine(vm) as engine, engine.stopped():
        runs = list(engine.populated())
        assert sum(size for _, size in runs) < sum(block.size for block in engine.ram())
        first, size = runs[0]
        gap = GuestPhysical(first + size)
        assert engine.read(gap, 4096) == bytes(4096)


def test_a_read_beyond_ram_is_refused(vm: str) -> None:
    with open_engine(vm) as engine:
        end = engine.ram()[-1].end
        assert len(engine.read(GuestPhysical(end - 8), 8)) == 8
        with pytest.raises(GuestMemoryError):
            engine.read(GuestPhysical(end - 8), 9)


def test_ram_above_4_gib_is_where_the_guest_has_it(place: Place) -> None:
    started(tiny_spec("big", memory_bytes=3 << 30))
    try:
        with shell("big") as console, open_engine("big") as engine:
            low, high = engine.ram()
            iomem = console.run("grep 'System RAM' /proc/iomem", 30).text.splitlines()
            first, last = (int(text, 16) for text in iomem[-1].split(" : ")[0].split("-"))
            assert (low.gpa, low.end) == (0, 2 << 30)
            assert (high.gpa, high.end) == (first, last + 1)
    finally:
        with Control("big") as control:
            control.quit(force=True)


def test_registers_are_those_of_a_running_kernel(vm: str) -> None:
    with open_engine(vm) as engine:
        registers = engine.registers()
    assert [cpu.index for cpu in registers] == [0, 1]
    assert all(cpu.paging and cpu.idt_base >> 47 for cpu in registers)


def test_a_paused_guest_does_not_move(control: Control, vm: str) -> None:
    with shell(vm) as console, open_engine(vm) as engine:
        console.send("while :; do :; done &")
        control.pause()
        before = engine.registers()
        assert engine.registers() == before
        control.resume()
        eventually(lambda: engine.registers() != before, "a move of the guest")
        console.run("kill $!", 30)


def test_wrong_time_calls_say_the_state_and_the_way_out(control: Control) -> None:
    with pytest.raises(StateError, match="cannot resume VM shared: it is running; 'dvisor pause"):
        control.resume()
    control.pause()
    with pytest.raises(StateError, match="cannot pause VM shared: it is paused; 'dvisor resume"):
        control.pause()
    control.resume()
    with pytest.raises(StateError, match="holds nothing"):
        control.release()


def test_stopped_nests_and_restores(control: Control, vm: str) -> None:
    with open_engine(vm) as engine:
        with engine.stopped(), engine.stopped():
            assert control.info().state is State.PAUSED
        assert control.info().state is State.RUNNING
        control.pause()
        with engine.stopped():
            pass
        assert control.info().state is State.PAUSED
        control.resume()


def test_the_guest_runs_again_only_after_the_last_reader(control: Control, vm: str) -> None:
    with open_engine(vm) as one, open_engine(vm) as other, other.stopped():
        with one.stopped():
            assert control.info().holds == 2
        assert control.info().state is State.PAUSED


def test_a_pause_during_a_hold_outlasts_it(control: Control, vm: str) -> None:
    with open_engine(vm) as engine:
        with engine.stopped():
            control.pause()
        assert control.info().state is State.PAUSED
        with engine.stopped():
            control.resume()
            assert control.info().state is State.PAUSED
        assert control.info().state is State.RUNNING


def test_a_reader_that_dies_lets_the_guest_go(control: Control, vm: str) -> None:
    program = (
        f"import dvisor.machine as m, time\nwith m.open_engine({vm!r}).stopped():\n"
        "    print('held', flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        assert control.info().state is State.PAUSED
        reader.send_signal(signal.SIGKILL)
    eventually(lambda: control.info().state is State.RUNNING, "the release of the hold")


def test_a_reset_changes_the_epoch_and_boots_again(control: Control, vm: str) -> None:
    with open_engine(vm) as engine, Console(vm) as console:
        before = engine.epoch()
        control.reset()
        assert engine.epoch() != before
        console.read_until(READY, BOOT_TIMEOUT_S)


def test_the_guests_own_reboot_changes_the_epoch(control: Control, vm: str) -> None:
    with open_engine(vm) as engine, shell(vm) as console:
        before = engine.epoch()
        console.send("reboot -f")
        eventually(lambda: engine.epoch() != before, "a new epoch")
        console.read_until(READY, BOOT_TIMEOUT_S)


def test_a_paused_guest_stays_paused_through_a_reset(control: Control, vm: str) -> None:
    with Console(vm) as console:
        control.pause()
        control.reset()
        assert control.info().state is State.PAUSED
        control.resume()
        console.read_until(READY, BOOT_TIMEOUT_S)


def test_changes_are_told_to_subscribers(control: Control, vm: str) -> None:
    with Control(vm) as watcher:
        watcher.subscribe()
        assert watcher.next_change(30).state is State.RUNNING
        control.pause()
        control.resume()
        changes = [watcher.next_change(30) for _ in range(2)]
    assert [(change.event, change.state) for change in changes] == [
        ("STOP", State.PAUSED),
        ("RESUME", State.RUNNING),
    ]


def test_clients_cannot_write_ram_or_epoch(control: Control) -> None:
    _, ram_fd, epoch_fd = control.info_with_descriptors()
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(ram_fd, 4096)
        with pytest.raises(PermissionError):
            mmap.mmap(epoch_fd, 4096)
        with pytest.raises(OSError) as caught:
            os.write(epoch_fd, b"x")
        assert caught.value.errno == errno.EPERM
    finally:
        os.close(ram_fd)
        os.close(epoch_fd)


def test_a_taken_name_is_refused_and_harms_nobody(control: Control, vm: str) -> None:
    with pytest.raises(StateError, match="a VM named shared runs already: 'dvisor down shared'"):
        launch(tiny_spec(vm))


def test_an_absent_vm_is_said_to_be_absent(place: Place) -> None:
    with pytest.raises(NotFoundError, match="no VM named nobody is running"):
        open_engine("nobody")


def test_qemus_own_words_come_with_its_failure(place: Place) -> None:
    with pytest.raises(
        EngineError, match=r"^QEMU exited with status 1: .*no-such-device.*is not a valid device"
    ):
        launch(tiny_spec("bad", qemu_args=("-device", "no-such-device")))
    assert "bad" not in place.entries()
    state, reason = last_words("bad")
    assert state is State.CRASHED
    assert "is not a valid device" in reason


def test_a_qemu_that_is_not_there_is_named(place: Place) -> None:
    with pytest.raises(HostError, match=r"cannot run QEMU \(/no/qemu\): No such file"):
        launch(tiny_spec("bad", qemu_argv_prefix=("/no/qemu",)))
    assert "cannot run QEMU" in last_words("bad")[1]


def test_a_missing_kernel_is_named_before_anything_starts(place: Place) -> None:
    with pytest.raises(UsageError, match="cannot read the kernel /no/vmlinuz: No such file"):
        launch(tiny_spec("bad", vmlinuz="/no/vmlinuz"))
    assert "bad" not in place.entries()


def test_a_kernel_that_is_none_is_refused_in_qemus_words(place: Place, tmp_path: Path) -> None:
    fake = tmp_path / "vmlinuz"
    fake.write_bytes(b"no kernel" * 1000)
    with pytest.raises(EngineError, match=r"^QEMU exited with status 1: .*kernel"):
        launch(tiny_spec("bad", vmlinuz=str(fake)))


def test_a_guest_that_never_says_the_word_is_taken_down(place: Place) -> None:
    with pytest.raises(EngineError, match="did not show 'never'"):
        launch(tiny_spec("mute"), wait_for="never", wait_timeout_s=0.5)
    eventually(lambda: "mute" not in place.entries(), "the end of the VM")


def raw_client(vm: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(runtime_directory(vm) / "control.sock"))
    client.settimeout(30)
    return client


@pytest.mark.parametrize("said", [b"\n", b"{}\n", b"\xff\xfe\n", b"[" * 5000 + b"\n"])
def test_nonsense_costs_only_its_sender(control: Control, vm: str, said: bytes) -> None:
    with raw_client(vm) as client:
        client.sendall(said)
        answer = client.makefile("rb").read()
        assert b'"kind":"UsageError"' in answer


def test_an_endless_line_is_cut_off(control: Control, vm: str) -> None:
    with raw_client(vm) as client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(1000):
            client.sendall(b"x" * 4096)
        pytest.fail("4 MB without a newline were taken")


def test_too_many_connections_do_not_shut_out_those_who_have_one(control: Control, vm: str) -> None:
    with contextlib.ExitStack() as crowd:
        for _ in range(200):
            crowd.enter_context(raw_client(vm))
        assert control.info().state is State.RUNNING
        with Control(vm) as late, pytest.raises(HostError, match="clients already"):
            late.info()
    eventually(lambda: _answers(vm), "an answer to a new client")


def _answers(vm: str) -> bool:
    try:
        with Control(vm) as control:
            return control.info().state is State.RUNNING
    except HostError:
        return False


def test_a_console_that_nobody_reads_is_cut_off_and_the_guest_goes_on(vm: str) -> None:
    size = CLIENT_BACKLOG_BYTES * 3 // 2
    with Control(vm) as idle, shell(vm) as console:
        stuck, _ = idle.attach_console(replay=False)
        with stuck:
            assert console.run(f"head -c {size} /dev/zero | tr '\\0' x", 300).status == 0
            received = 0
            while data := stuck.recv(1 << 20):
                received += len(data)
    assert received < size
