"""Traps at system call entry, in real guests: what the guest's own programs see of verdicts."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvisor.addresses import PAGE_SIZE
from dvisor.errors import EngineError, StateError, UnsupportedError
from dvisor.machine import native
from dvisor.machine.native import REGION
from dvisor.machine.traps import Event, OnLoss, Traps, When
from dvisor.machine.traps_memory import SharedMemory
from tests.vm.guests import running_guest
from tests.vm.machines import eventually, started, tiny_spec
from tests.vm.trapped import (
    GETPPID,
    TrappedGuest,
    deciding,
    peer,
    trapped_guest,
    trapped_spec,
)

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not native.LIBRARY.exists() and "DVISOR_REQUIRE_VM" not in os.environ,
        reason="the native library is not built (`make native` builds it)",
    ),
]

GETPID, UNAME, SCHED_YIELD, UMASK, PAUSE = 39, 63, 24, 95, 34
CASES = [("6.12", "max", 2), ("6.1", "Haswell", 1), ("7.2", "max", 1), ("rt", "Haswell", 2)]
_names = (f"v{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}cpu")
def guest(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    own_directories: None,
) -> Iterator[TrappedGuest]:
    kernel, cpu, vcpus = request.param
    scratch = tmp_path_factory.mktemp("traps")
    spec = trapped_spec(f"traps-{os.getpid()}", scratch, kernel, cpu, vcpus)
    with trapped_guest(spec) as found:
        yield found


@pytest.fixture
def name(guest: TrappedGuest) -> Iterator[str]:
    """A victim of the test's own."""
    name = next(_names)
    pid = guest.start(name)
    yield name
    guest.console.run(f"kill -9 {pid}", 30)


def pid_of(guest: TrappedGuest, name: str) -> int:
    return guest.tell(name, "getpid")


def test_answered_call_is_what_the_process_sees(guest: TrappedGuest, name: str) -> None:
    pid = pid_of(guest, name)
    with guest.traps() as traps:
        guest.enroll(traps, pid)
        traps.trap([GETPPID])
        with deciding(traps, lambda event: traps.answer(event, 4242)) as events:
            assert guest.tell(name, "getppid") == 4242
            assert guest.tell(name, "getpid") == pid
            assert guest.tell(name, "uname") == len("Linux")
        assert [event.number for event in events] == [GETPPID]
        assert traps.counters()["answered"] >= 1
    assert guest.tell(name, "getppid") != 4242


def test_errors_are_answered_too(guest: TrappedGuest, name: str) -> None:
    with guest.traps() as traps:
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])
        with deciding(traps, lambda event: traps.answer(event, -13)):
            assert guest.tell(name, "errno") == -13


def test_registers_and_flags_are_as_after_a_real_call(guest: TrappedGuest, name: str) -> None:
    assert guest.tell(name, "disturbed") == 0
    with guest.traps() as traps:
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])
        with deciding(traps, lambda event: traps.answer(event, 1)) as events:
            assert guest.tell(name, "disturbed") == 0
        assert events[0].arguments[:2] == (0x8888888888888888, 0x9999999999999999)


def test_other_processes_are_not_affected(guest: TrappedGuest, name: str) -> None:
    other = next(_names)
    guest.start(other)
    expected = guest.tell(other, "getppid")
    with guest.traps() as traps:
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])
        with deciding(traps, lambda event: traps.answer(event, 4242)) as events:
            assert guest.tell(other, "getppid") == expected
            assert guest.tell(name, "getppid") == 4242
            assert guest.tell(other, "getppid") == expected
        assert len(events) == 1


def test_substituted_call_then_the_original(guest: TrappedGuest, name: str) -> None:
    expected = guest.tell(name, "getppid")

    def decide(event: Event) -> None:
        if event.when is When.ENTRY:
            traps.substitute(event, SCHED_YIELD)
        else:
            assert event.result == 0
            assert event.number == GETPPID
            traps.let_through(event)

    with guest.traps() as traps:
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])
        before = traps.counters()
        with deciding(traps, decide) as events:
            assert guest.tell(name, "getppid") == expected
            assert guest.tell(name, "disturbed") == 0
        assert [event.when for event in events] == [When.ENTRY, When.RETURNED] * 2
        after = traps.counters()
    assert after["returned"] - before["returned"] == 2
    assert after["substituted"] - before["substituted"] == 2


def test_substitutes_follow_one_another_with_their_arguments(
    guest: TrappedGuest, name: str
) -> None:
    """umask(0o57), then umask(the mask from before): the second returns what the first set."""

    def decide(event: Event) -> None:
        if event.when is When.ENTRY:
            traps.substitute(event, UMASK, [0o57])
        elif event.result != 0o57:
            traps.substitute(event, UMASK, [event.result])
        else:
            traps.answer(event, event.result)

    with guest.traps() as traps:
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])
        with deciding(traps, decide) as events:
            assert guest.tell(name, "getppid") == 0o57
            assert guest.tell(name, "disturbed") == 0
        assert len(events) == 6


def test_a_signal_ends_a_substitute(guest: TrappedGuest, name: str) -> None:
    pid = pid_of(guest, name)

    def decide(event: Event) -> None:
        if event.when is When.ENTRY:
            traps.substitute(event, PAUSE)
        else:
            traps.answer(event, -event.result)

    with guest.traps() as traps:
        guest.enroll(traps, pid)
        traps.trap([GETPPID])
        with deciding(traps, decide) as events:
            guest.shell(f"(echo getppid > /{name}.in &)")
            eventually(lambda: events, "the call")
            # Stopped and continued, pause() is restarted by the kernel; by a handler it is ended.
            guest.shell(f"sleep 0.3; kill -STOP {pid}; sleep 0.3; kill -CONT {pid}; sleep 0.3")
            assert len(events) == 1
            guest.shell(f"kill -USR1 {pid}")
            assert guest.shell(f"read -r line < /{name}.out; echo $line").split()[-1] == "4"
        assert traps.counters()["restarted"] >= 1
    assert guest.tell(name, "handled") == 1


def test_threads_on_all_vcpus_are_answered(guest: TrappedGuest, name: str) -> None:
    with guest.traps(verdict_timeout_ms=1000) as traps:
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])
        with deciding(traps, lambda event: traps.answer(event, 77)) as events:
            assert guest.tell(name, "threads 4 500 77") == 0
        assert len(events) == 2000
        assert len({event.fs_base for event in events}) == 4


def test_threads_are_substituted_and_come_back_each_to_its_own(
    guest: TrappedGuest, name: str
) -> None:
    expected = guest.tell(name, "getppid")

    def decide(event: Event) -> None:
        if event.when is When.ENTRY:
            traps.substitute(event, SCHED_YIELD)
        else:
            traps.let_through(event)

    with guest.traps(verdict_timeout_ms=1000) as traps:
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])
        with deciding(traps, decide) as events:
            assert guest.tell(name, f"threads 4 200 {expected}") == 0
        assert len(events) == 1600


def test_enrolment_reaches_a_process_that_never_leaves_its_vcpu(
    guest: TrappedGuest, name: str
) -> None:
    """Its page table is not loaded again after that: the flag must be set from outside."""
    pid = pid_of(guest, name)
    with guest.traps() as traps:
        traps.trap([GETPPID])
        traps.count([GETPPID])
        with deciding(traps, traps.let_through) as events:
            guest.shell(f"(echo 'threads 1 3000000 0' > /{name}.in &)")
            space = guest.enroll(traps, pid)
            eventually(lambda: len(events) > 3, "a trap")
            traps.withdraw(space.cr3, isolated=space.isolated)
            assert traps.enrolled() == set()
        assert traps.calls()[GETPPID] > 3
        guest.shell(f"read -r line < /{name}.out", 120)


_PEER = """
import sys, time
from dvisor.machine.control import Control
from dvisor.machine.traps import OnLoss, Traps
name, cr3, isolated, on_loss = sys.argv[1:]
traps = Traps(Control(name).traps_memory(), on_loss=OnLoss(int(on_loss)))
traps.enroll(int(cr3), isolated=isolated == "True")
traps.trap([110])
print("up", flush=True)
while event := traps.next_event(60):
    print("event", flush=True)
    time.sleep(60)  # it is killed while the vCPU waits
"""


@pytest.mark.parametrize("on_loss", OnLoss)
def test_killed_peer_leaves_the_stated_verdict(
    guest: TrappedGuest, name: str, on_loss: OnLoss
) -> None:
    real = guest.tell(name, "getppid")
    space = guest.address_space(pid_of(guest, name))
    options = [guest.handle.name, str(space.cr3), str(space.isolated), str(int(on_loss))]
    child = subprocess.Popen([sys.executable, "-c", _PEER, *options], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        guest.shell(f"(echo errno > /{name}.in &)")
        assert child.stdout.readline() == b"event\n"
        child.send_signal(signal.SIGKILL)
    expected = -5 if on_loss is OnLoss.EIO else real
    assert int(guest.shell(f"read -r line < /{name}.out; echo $line").split()[-1]) == expected
    assert guest.tell(name, "errno") == expected
    with guest.traps() as traps:
        assert traps.counters()["peer_lost"] + traps.counters()["timeouts"] >= 2


def test_verdict_that_comes_too_late_changes_nothing(guest: TrappedGuest, name: str) -> None:
    real = guest.tell(name, "getppid")
    with guest.traps(verdict_timeout_ms=1) as traps:
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])

        def decide(event: Event) -> None:
            time.sleep(0.02)
            traps.answer(event, 4242)

        with deciding(traps, decide):
            assert guest.tell(name, "getppid") == real
            assert guest.tell(name, "getppid") == real
        assert traps.counters()["timeouts"] >= 2


def test_second_peer_is_refused(guest: TrappedGuest) -> None:
    with guest.traps(), pytest.raises(StateError, match="decides on this VM's traps"):  # noqa: SIM117
        with guest.traps():
            pass


def test_full_table_is_an_error_and_those_in_it_stay(guest: TrappedGuest, name: str) -> None:
    with guest.traps() as traps:
        words = traps._memory.words("enrolled")
        for index in range(2, len(words)):  # an isolated process takes two places
            words[index] = 1 << 44 | index * PAGE_SIZE
        guest.enroll(traps, pid_of(guest, name))
        traps.trap([GETPPID])
        with pytest.raises(StateError, match="no more fit"):
            traps.enroll(0x7000_0000, isolated=True)
        with deciding(traps, lambda event: traps.answer(event, 4242)):
            assert guest.tell(name, "getppid") == 4242


def test_rubbish_in_the_shared_memory_does_not_end_qemu(guest: TrappedGuest) -> None:
    """All of it, at random, while an enrolled process makes calls; then all goes on as before."""
    victim = next(_names)
    pid = guest.start(victim)
    source = random.Random(7)
    with guest.handle.control() as control:
        fd = control.traps_memory()
    memory = SharedMemory(fd)
    first = REGION["counters"].offset
    spared = bytes(memory._mapping[:first])
    with guest.traps() as traps:
        space = guest.enroll(traps, pid)
        page = space.cr3 | (PAGE_SIZE if space.isolated else 0)
        guest.shell(f"(echo 'threads 2 2000 0' > /{victim}.in &)")
        for _ in range(300):
            memory._mapping[:] = source.randbytes(REGION.size)
            # What a clever enemy would write: valid enough to be believed.
            memory["header.peer_heartbeat_ns"] = time.monotonic_ns()
            for word in range(8):
                memory.words("trapped")[word] = (1 << 64) - 1 if word == 1 else 0
            memory.words("enrolled")[0] = page
            memory["header.enrolled_used"] = source.choice([1, 1024, 0xFFFF_FFFF])
            memory["header.verdict_timeout_ms"] = source.choice([0, 1, 2])
            for index in range(2):
                slot = memory.slot(index)
                slot["kind"] = source.choice([1, 2, 7, 0xFFFF_FFFF])
                slot["verdict"] = slot["request"]
    memory._mapping[:] = bytes(REGION.size)
    memory._mapping[:first] = spared
    memory["header.peer_pid"] = 0
    memory["header.peer_heartbeat_ns"] = 0
    memory.close()
    os.close(fd)
    guest.console.run(f"kill -9 {pid}", 60)
    after = next(_names)
    second = guest.start(after)
    with guest.traps() as traps:
        guest.enroll(traps, second)
        traps.trap([GETPPID])
        with deciding(traps, lambda event: traps.answer(event, 4242)):
            assert guest.tell(after, "getppid") == 4242


_PROGRAM = """
import os
os.mkfifo("/run/go")
os.mkfifo("/run/told")
print(os.getpid(), flush=True)
open("/run/go").read()
told = [os.getppid(), os.getpid(), os.uname().sysname]
open("/run/told", "w").write(repr(told))
"""


def test_python_in_debian_is_told_another_parent(tmp_path: Path) -> None:
    with running_guest("6.12", "max", 1, tmp_path, workload=False, traps=True) as guest:
        guest.shell(f"(python3 -c '{_PROGRAM}' >/run/pid &)")
        pid = int(guest.shell("until [ -s /run/pid ]; do sleep 0.1; done; cat /run/pid"))
        kernel = guest.guest.kernel
        pgd = kernel.memory.u64(guest.guest.task(pid).mm + kernel.offset("mm_struct", "pgd"))
        with peer(guest.name) as traps:
            traps.enroll(kernel.memory.physical(pgd))
            traps.trap([GETPPID])
            with deciding(traps, lambda event: traps.answer(event, 4242)):
                told = guest.shell("echo > /run/go; cat /run/told")
    assert told == f"[4242, {pid}, 'Linux']"


def test_after_a_reset_the_new_kernel_is_trapped() -> None:
    """Its entry and its way out lie elsewhere (KASLR)."""
    with tempfile.TemporaryDirectory() as scratch:
        spec = trapped_spec("reset", Path(scratch), "6.12", "max", 1)
        with trapped_guest(spec) as guest:
            with guest.handle.control() as control:
                control.reset()
            guest.console.read_until("dvisor: ready", 120)
            guest.console.wait_for_shell(60)
            guest.shell("stty -echo cols 500")
            pid = guest.start("r")
            with guest.traps() as traps:
                guest.enroll(traps, pid)
                traps.trap([GETPPID])
                with deciding(traps, lambda event: traps.answer(event, 4242)):
                    assert guest.tell("r", "getppid") == 4242


def test_vm_without_traps_says_so() -> None:
    handle = started(tiny_spec("no-traps"))
    with handle.control() as control:
        with pytest.raises(UnsupportedError, match="without traps"):
            control.traps_memory()
        control.quit(force=True)


def test_end_of_qemu_is_an_error_of_the_peer() -> None:
    handle = started(tiny_spec("ends", traps=True))
    with peer(handle.name) as traps:
        with handle.control() as control:
            os.kill(control.info().qemu_pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="QEMU"):
            traps.next_event(30)


def test_traps_are_closed_once_and_for_all(guest: TrappedGuest) -> None:
    with guest.traps() as traps:
        assert isinstance(traps, Traps)
        assert traps.ready
    traps.close()
    with pytest.raises(StateError, match="closed"):
        traps.next_event(0)
