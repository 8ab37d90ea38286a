"""Pauses, holds and resets, decided from QEMU's events alone: here a QEMU of twenty lines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.errors import StateError
from dvisor.machine.epoch import EpochPage
from dvisor.machine.run_control import RunControl
from dvisor.machine.states import Lifecycle, State


class FakeQemu:
    """Answers commands at once and reports what follows from them a little later, as QEMU does."""

    def __init__(self) -> None:
        lifecycle = Lifecycle("web1")
        lifecycle.move(State.STARTING)
        self.running = False
        self.status = "prelaunch"
        self.control = RunControl(lifecycle, EpochPage(), self.command)

    async def command(self, name: str) -> Any:
        if name == "query-status":
            return {"status": self.status}
        if name == "cont" and not self.running:
            self.running = True
            self.report("RESUME")
        elif name == "stop" and self.running:
            self.running = False
            self.report("STOP")
        elif name == "system_reset":
            self.report("RESET")
        return {}

    def report(self, event: str, **data: object) -> None:
        message = {"event": event, "data": data}
        asyncio.get_running_loop().call_soon(self.control.on_event, message)


def with_qemu(scene: Callable[[FakeQemu], Awaitable[None]]) -> None:
    async def play() -> None:
        qemu = FakeQemu()
        await qemu.control.start()
        await scene(qemu)

    asyncio.run(play())


def test_a_panic_is_its_own_state_and_a_reset_gets_out_of_it() -> None:
    async def scene(qemu: FakeQemu) -> None:
        qemu.running = False
        qemu.report("GUEST_PANICKED")
        qemu.report("STOP")
        await asyncio.sleep(0.01)
        assert qemu.control.state is State.PANICKED
        with pytest.raises(StateError, match="'dvisor reset web1' starts it anew"):
            await qemu.control.resume()
        await qemu.control.reset()
        assert qemu.control.state is State.RUNNING

    with_qemu(scene)


def test_a_stop_that_nobody_asked_for_is_looked_into() -> None:
    async def scene(qemu: FakeQemu) -> None:
        qemu.running, qemu.status = False, "internal-error"
        qemu.report("STOP")
        await asyncio.sleep(0.01)
        assert qemu.control.state is State.BROKEN

    with_qemu(scene)


def test_a_stop_from_another_client_is_a_pause() -> None:
    async def scene(qemu: FakeQemu) -> None:
        qemu.running, qemu.status = False, "paused"
        before = qemu.control.epoch.value
        qemu.report("STOP")
        await asyncio.sleep(0.01)
        assert qemu.control.state is State.PAUSED
        assert qemu.control.epoch.value != before  # it may have been a loadvm
        await qemu.control.resume()
        assert qemu.running

    with_qemu(scene)


def test_events_after_the_shutdown_change_nothing() -> None:
    async def scene(qemu: FakeQemu) -> None:
        qemu.report("SHUTDOWN", reason="guest-shutdown")
        qemu.report("STOP")
        qemu.report("NO_SUCH_EVENT")
        await asyncio.sleep(0.01)
        assert qemu.control.state is State.STOPPING
        assert qemu.control.shutdown_reason == "guest-shutdown"
        with pytest.raises(StateError, match="it is stopping"):
            await qemu.control.pause()

    with_qemu(scene)


def test_a_reset_advances_the_epoch_before_it_returns() -> None:
    async def scene(qemu: FakeQemu) -> None:
        before = qemu.control.epoch.value
        await qemu.control.reset()
        assert qemu.control.epoch.value == before + 1

    with_qemu(scene)


def test_many_holds_at_the_same_time_are_all_counted() -> None:
    async def scene(qemu: FakeQemu) -> None:
        await asyncio.gather(*(qemu.control.hold() for _ in range(20)))
        assert not qemu.running
        await asyncio.gather(*(qemu.control.release() for _ in range(20)))
        assert qemu.running

    with_qemu(scene)


@given(st.lists(st.sampled_from(["pause", "resume", "hold", "release", "reset"]), max_size=20))
def test_the_guest_runs_just_when_nobody_holds_or_paused_it(calls: list[str]) -> None:
    async def scene(qemu: FakeQemu) -> None:
        paused, holds = False, 0
        for call in calls:
            try:
                await getattr(qemu.control, call)()
            except StateError:
                continue
            paused = {"pause": True, "resume": False}.get(call, paused)
            holds += {"hold": 1, "release": -1}.get(call, 0)
            assert qemu.running == (not paused and not holds)
            assert qemu.control.state is (State.RUNNING if qemu.running else State.PAUSED)
            assert qemu.control.holds == holds

    with_qemu(scene)
