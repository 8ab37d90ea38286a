"""A guest that is reset while we look: every answer is of one boot only.

Boots are told apart by where their kernel chose to be (KASLR), and by the address of its RAM.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dvisor.errors import DvisorError, GuestDataError, StateError
from dvisor.guest.guest import Guest
from dvisor.guest.kernel import Kernel
from dvisor.guest.tasks import read_tasks
from dvisor.machine.control import Control
from dvisor.machine.engine import Engine
from dvisor.machine.foreign import open_qemu
from dvisor.machine.vm_engine import VmEngine
from tests.vm.machines import BOOT_TIMEOUT_S, READY, Place, eventually, started, tiny_spec
from tests.vm.plain_qemu import Truth, linux, plain_qemu

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

RESETS = 3


@dataclass(frozen=True)
class Boot:
    """What is chosen anew at each boot."""

    image: int
    direct_map: int


@dataclass(frozen=True)
class Answer:
    """A task list, and what the kernel that it is of was found to be."""

    epoch: int
    boot: Boot
    ram_end: int
    tasks: list[int]
    """Addresses of the tasks."""


def identify(kernel: Kernel) -> Answer:
    boot = Boot(kernel.image.virtual, kernel.memory.linear[0].virtual)
    ram_end = kernel.engine.ram()[-1].end
    addresses = [task.address for task in read_tasks(kernel)]
    return Answer(kernel.epoch, boot, ram_end, addresses)


@dataclass
class Looker:
    """Asks without a pause, in a thread of its own, what runs in the guest."""

    engine: Engine
    answers: list[Answer] = field(default_factory=list)
    refusals: list[DvisorError] = field(default_factory=list)
    failure: BaseException | None = None

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        end = threading.Event()
        thread = threading.Thread(target=self._look, args=(end,))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _look(self, end: threading.Event) -> None:
        guest = Guest(self.engine)
        try:
            while not end.is_set():
                try:
                    self.answers.append(guest.view(identify))
                except DvisorError as error:
                    self.refusals.append(error)
        except BaseException as error:
            self.failure = error

    def wait_for_answers(self, at_least: int) -> None:
        wanted = len(self.answers) + at_least
        eventually(lambda: self.failure or len(self.answers) >= wanted, "an answer", 60)


def check(looker: Looker, boots: list[Boot]) -> None:
    """Each answer is of the boot that its epoch saw, whole, and every boot was seen."""
    if looker.failure is not None:
        raise looker.failure
    seen: dict[int, set[Boot]] = {}
    for answer in looker.answers:
        seen.setdefault(answer.epoch, set()).add(answer.boot)
        for address in answer.tasks:
            assert 0 <= address - answer.boot.direct_map < answer.ram_end
    assert all(len(found) == 1 for found in seen.values()), seen
    in_order = [next(iter(seen[epoch])) for epoch in sorted(seen)]
    assert in_order == boots
    assert all(isinstance(error, StateError | GuestDataError) for error in looker.refusals)
    assert any(isinstance(error, StateError) for error in looker.refusals)


def reset_often(
    looker: Looker, reset: Callable[[], None], wait_for_boot: Callable[[], None], look: Engine
) -> list[Boot]:
    """Reset several times while it looks; returns the boots that there were."""
    boots = [Guest(look).view(identify).boot]
    with looker.looking():
        looker.wait_for_answers(20)
        for _ in range(RESETS):
            reset()
            wait_for_boot()
            boots.append(Guest(look).view(identify).boot)
            looker.wait_for_answers(20)
    assert len(set(boots)) == len(boots), "KASLR chose the same places twice"
    return boots


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    for key, value in place.environment.items():
        monkeypatch.setenv(key, value)
    yield place
    place.close()


def test_answers_about_a_vm_of_ours_never_mix_two_boots(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        handle = started(tiny_spec("reset", vcpus=2))
        stack.callback(quit_vm, "reset")
        console = stack.enter_context(handle.console())
        control = stack.enter_context(handle.control())
        engine, look = stack.enter_context(handle.engine()), stack.enter_context(handle.engine())
        looker = Looker(engine)

        def wait_for_boot() -> None:
            console.read_until(READY, BOOT_TIMEOUT_S)

        boots = reset_often(looker, control.reset, wait_for_boot, look)
        check(looker, boots)


def quit_vm(name: str) -> None:
    with contextlib.suppress(DvisorError), Control(name) as control:
        control.quit(force=True)


def test_right_after_a_reset_there_is_no_kernel_and_no_answer(place: Place) -> None:
    """While firmware runs, the old kernel is in RAM still, whole."""
    started(tiny_spec("paused"))
    try:
        with Control("paused") as control, VmEngine("paused") as engine:
            guest = Guest(engine)
            assert guest.tasks()
            control.pause()
            control.reset()
            with pytest.raises(StateError):
                guest.tasks()
            with pytest.raises(StateError):
                Guest(engine).tasks()
    finally:
        quit_vm("paused")


def booted(console: Path, times: int) -> bool:
    return console.read_text(errors="replace").count(READY) >= times


def test_answers_about_any_qemu_never_mix_two_boots(tmp_path: Path) -> None:
    sockets = [
        option
        for name in ("qmp", "qmp2", "qmp3")
        for option in ("-qmp", f"unix:{name},server=on,wait=off")
    ]
    options = ["-m", "256M", "-smp", "2", *linux(), *sockets]
    with contextlib.ExitStack() as stack:
        qemu = stack.enter_context(plain_qemu(tmp_path, *options, ready=READY))
        truth = stack.enter_context(contextlib.closing(Truth(tmp_path / "qmp3")))
        engine = stack.enter_context(contextlib.closing(open_qemu(tmp_path / "qmp")))
        look = stack.enter_context(contextlib.closing(open_qemu(tmp_path / "qmp2")))
        boots_so_far = 1

        def wait_for_boot() -> None:
            nonlocal boots_so_far
            boots_so_far += 1
            eventually(lambda: booted(qemu.console, boots_so_far), "a boot", BOOT_TIMEOUT_S)

        looker = Looker(engine)
        boots = reset_often(looker, lambda: truth.do("system_reset"), wait_for_boot, look)
        check(looker, boots)


def test_without_a_monitor_a_guest_opened_after_a_reset_is_the_new_one(tmp_path: Path) -> None:
    """By its RAM alone a reset cannot be told, and ``knows_resets`` says so: a guest that is open
    may answer from the old kernel's memory until its banner is overwritten."""
    options = ["-m", "256M", *linux(), "-qmp", "unix:qmp,server=on,wait=off"]
    with (
        plain_qemu(tmp_path, *options, ready=READY) as qemu,
        contextlib.closing(Truth(tmp_path / "qmp")) as truth,
        contextlib.closing(open_qemu(qemu.pid)) as engine,
    ):
        assert not engine.knows_resets
        guest = Guest(engine)
        before = guest.view(identify)
        truth.do("system_reset")
        eventually(lambda: booted(qemu.console, 2), "a boot", BOOT_TIMEOUT_S)
        assert Guest(engine).view(identify).boot != before.boot
