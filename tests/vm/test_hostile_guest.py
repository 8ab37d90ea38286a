"""A live guest whose memory is overwritten while we look, as a hostile guest may do.

The guest may crash; dvisor may answer or refuse, and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dvisor.addresses import PAGE_SIZE, GuestPhysical
from dvisor.errors import DvisorError
from dvisor.guest.guest import Guest
from dvisor.machine.vm_engine import VmEngine
from tests.frozen import WORKLOAD, footprint, survey, views
from tests.vm.machines import Place, shell, started, tiny_spec

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    for key, value in place.environment.items():
        monkeypatch.setenv(key, value)
    yield place
    place.close()


class Vandal:
    """Writes what ``choose`` tells (gpa, data) into the RAM of a VM, beside it, all the time."""

    def __init__(self, engine: VmEngine, choose: Callable[[], tuple[int, bytes]]) -> None:
        self.choose = choose
        self.writes = 0
        self._blocks = engine.ram()
        self._fd = os.open(ram_file(engine), os.O_RDWR)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        end = threading.Event()
        thread = threading.Thread(target=self._work, args=(end,))
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            os.close(self._fd)

    def _work(self, end: threading.Event) -> None:
        while not end.wait(0.001):
            gpa, data = self.choose()
            for block in self._blocks:
                if block.gpa <= gpa < block.end:
                    os.pwrite(self._fd, data, block.offset + gpa - block.gpa)
                    self.writes += 1


def ram_file(engine: VmEngine) -> Path:
    """QEMU's own descriptor of the RAM: unlike ours it can be opened for writing, by root."""
    for link in Path(f"/proc/{engine.info.qemu_pid}/fd").iterdir():
        target = link.readlink().name if link.is_symlink() else ""
        if link.stat().st_size == engine.info.memory_bytes and "deleted" in target:
            return link
    raise AssertionError("QEMU has no descriptor of the RAM")


def physical_footprint(guest: Guest) -> list[int]:
    """Guest physical addresses of what the views read."""
    kernel = guest.kernel
    ram_end = guest.engine.ram()[-1].end
    found = []
    for address in footprint(guest):
        with contextlib.suppress(DvisorError):
            found.append(address if address < ram_end else kernel.memory.physical(address))
    return found


@pytest.mark.parametrize("size", [8, PAGE_SIZE], ids=["words", "pages"])
def test_views_of_memory_that_is_being_overwritten_answer_or_refuse(
    place: Place, size: int
) -> None:
    handle = started(tiny_spec("hostile", vcpus=2))
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(handle.control())
        stack.callback(control.quit, force=True)
        with shell("hostile") as console:
            console.run(WORKLOAD, 120)
        engine = stack.enter_context(handle.engine())
        with engine.stopped():
            places = physical_footprint(Guest(engine))
        chance = random.Random(size)
        vandal = Vandal(engine, lambda: (chance.choice(places) & -size, chance.randbytes(size)))
        guest, calls, outcomes = Guest(engine), views(tables=False), list[Any]()
        end = time.monotonic() + 10
        with vandal.at_work():
            for turn in itertools.count():
                outcomes += survey(guest, calls).values()
                if turn % 4 == 3:
                    guest = Guest(engine)  # attach to what is left
                if time.monotonic() > end:
                    break
        assert vandal.writes > 100
        felt = [
            outcome
            for outcome in outcomes
            if isinstance(outcome, DvisorError) or getattr(outcome, "problems", None)
        ]
        assert felt, "the damage was not felt"


def test_a_pointer_that_flickers_loses_no_task_in_silence(place: Place) -> None:
    """The link of the task list leads into nowhere, or to itself, half of the time."""
    handle = started(tiny_spec("flicker"))
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(handle.control())
        stack.callback(control.quit, force=True)
        engine = stack.enter_context(handle.engine())
        stack.enter_context(engine.stopped())
        guest = Guest(engine)
        sound = guest.tasks()
        kernel = guest.kernel
        link = sound[len(sound) // 2].address + kernel.offset("task_struct", "tasks.next")
        at = kernel.memory.physical(link)
        good = engine.read(GuestPhysical(at), 8)
        values = itertools.cycle([good, link.to_bytes(8, "little"), good, b"\xff" * 8])
        with Vandal(engine, lambda: (at, next(values))).at_work():
            answers = [guest.tasks() for _ in range(1000)]
        assert any(answer.complete for answer in answers)
        for answer in answers:
            assert answer == sound or not answer.complete
            assert [task for task in answer if task not in sound] == []
