"""Stopping, resuming and resetting a guest, driven by what QEMU reports, not by what was asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from dvisor.errors import DvisorError, EngineError, StateError
from dvisor.machine.epoch import EpochPage
from dvisor.machine.messages import Change
from dvisor.machine.states import LIVE, TRANSITIONS, Lifecycle, State

EVENT_TIMEOUT_S = 20.0
_log = logging.getLogger(__name__)

# QEMU's events (qapi/run-state.json) that say which state follows.
_STATE_AFTER = {
    "STOP": State.PAUSED,
    "RESUME": State.RUNNING,
    "GUEST_PANICKED": State.PANICKED,
    "SHUTDOWN": State.STOPPING,
}


class Command(Protocol):
    """A QMP command by name, as ``Vmm.command``."""

    def __call__(self, name: str) -> Awaitable[Any]: ...


class RunControl:
    """The one place that stops and resumes the guest.

    Two kinds of stop meet here: a *pause* lasts until somebody resumes; a *hold* belongs to a
    reader and is counted, and when the last is released the guest runs again if it ran before.
    """

    def __init__(self, lifecycle: Lifecycle, epoch: EpochPage, command: Command) -> None:
        self.lifecycle = lifecycle
        self.epoch = epoch
        self.holds = 0
        self.shutdown_reason = ""
        self.subscribers: set[Callable[[Change], None]] = set()
        self._command = command
        self._resume_after_holds = False
        self._stop_asked = False
        self._one_at_a_time = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def state(self) -> State:
        return self.lifecycle.state

    def on_event(self, event: dict[str, Any]) -> None:
        """Take in one QMP event."""
        name = str(event.get("event", ""))
        if name == "RESET":
            self.epoch.advance()
        if name == "SHUTDOWN":
            self.shutdown_reason = str(event.get("data", {}).get("reason", ""))
        after = _STATE_AFTER.get(name)
        if after is State.PAUSED and self.state is State.PANICKED:
            after = None  # the stop that a panic brings with it
        if after is State.PAUSED and self.state is State.RUNNING and not self._stop_asked:
            self.epoch.advance()  # it may be a loadvm, which QEMU reports by nothing else
            self._asking = asyncio.create_task(self._ask_why())
        if after is not None and after is not self.state:
            if after in TRANSITIONS[self.state]:
                self.lifecycle.move(after)
            elif self.state is not State.STOPPING:
                _log.warning("event %s does not fit state %s", name, self.state)
        self._tell(name)

    def move(self, state: State) -> None:
        """Go to a state that QEMU does not report."""
        if self.lifecycle.move(state):
            self._tell("")

    def _tell(self, event: str) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        change = Change(event, self.state, self.epoch.value)
        for subscriber in tuple(self.subscribers):
            subscriber(change)

    async def pause(self) -> None:
        """Stop the guest until ``resume``."""
        async with self._one_at_a_time:
            if self.holds and self._resume_after_holds:
                self._resume_after_holds = False
                return
            self.lifecycle.require("pause", State.RUNNING)
            await self._stop()

    async def resume(self) -> None:
        """Let a paused guest run; if readers hold it, as soon as they let go."""
        async with self._one_at_a_time:
            self.lifecycle.require("resume", State.PAUSED)
            if self.holds:
                self._resume_after_holds = True
            else:
                await self._cont()

    async def start(self) -> None:
        """Let the guest run for the first time."""
        self.lifecycle.require("start", State.STARTING)
        await self._cont()

    async def reset(self) -> None:
        """Press the reset button. A paused guest stays paused; a panicked one runs again."""
        async with self._one_at_a_time:
            self.lifecycle.require("reset", *LIVE)
            before = self.epoch.value
            await self._command("system_reset")
            await self._until(lambda: self.epoch.value != before, "reset the guest")
            if self.state in {State.PANICKED, State.BROKEN}:
                await self._cont()

    async def hold(self) -> None:
        """Stop the guest for a reader."""
        async with self._one_at_a_time:
            self.lifecycle.require("hold", *LIVE)
            if not self.holds:
                self._resume_after_holds = False
            if self.state is State.RUNNING:
                await self._stop()
                self._resume_after_holds = True
            self.holds += 1

    async def release(self, holds: int = 1) -> None:
        """Take back ``holds`` holds."""
        async with self._one_at_a_time:
            if holds > self.holds:
                raise StateError("there is no hold to release")
            self.holds -= holds
            if not self.holds and self._resume_after_holds and self.state is State.PAUSED:
                await self._cont()

    async def _ask_why(self) -> None:
        """QEMU stopped the guest by itself."""
        with contextlib.suppress(DvisorError):
            status = await self._command("query-status")
            if status["status"] == "internal-error" and self.state is State.PAUSED:
                self.move(State.BROKEN)

    async def _stop(self) -> None:
        self._stop_asked = True
        try:
            await self._command("stop")
            await self._until(lambda: self.state is not State.RUNNING, "stop the guest")
        finally:
            self._stop_asked = False

    async def _cont(self) -> None:
        await self._command("cont")
        await self._until(lambda: self.state is State.RUNNING, "let the guest run")

    async def _until(self, reached: Callable[[], bool], doing: str) -> None:
        try:
            async with asyncio.timeout(EVENT_TIMEOUT_S):
                while not reached():
                    if self.state not in LIVE and self.state is not State.STARTING:
                        raise StateError(f"could not {doing}: VM is {self.state}")
                    await self._changed.wait()
        except TimeoutError as error:
            raise EngineError(
                f"could not {doing}: QEMU did not report it within {EVENT_TIMEOUT_S:.0f} s"
            ) from error
