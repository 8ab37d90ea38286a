"""The states of a VM, and which may follow which: one table, and one error for a wrong call."""

from __future__ import annotations

from enum import StrEnum

from dvisor.errors import StateError


class State(StrEnum):
    """What a VM is doing, as ``dvisor ls`` shows it."""

    CREATED = "created"  # the supervisor owns the name; no QEMU yet
    STARTING = "starting"  # QEMU runs, the guest has not executed anything
    RUNNING = "running"
    PAUSED = "paused"
    PANICKED = "panicked"  # the guest told QEMU so (pvpanic); its vCPUs are stopped
    BROKEN = "broken"  # QEMU cannot run the guest on (a KVM internal error); vCPUs are stopped
    STOPPING = "stopping"  # asked to power down, or being killed
    SHUTDOWN = "shutdown"  # ended as asked for, by the guest or by us
    CRASHED = "crashed"  # QEMU or its supervisor ended and nobody asked for it


_ENDS = {State.STOPPING, State.SHUTDOWN, State.CRASHED}

TRANSITIONS: dict[State, set[State]] = {
    State.CREATED: {State.STARTING} | _ENDS,
    State.STARTING: {State.RUNNING, State.PAUSED} | _ENDS,
    State.RUNNING: {State.PAUSED, State.PANICKED, State.BROKEN} | _ENDS,
    State.PAUSED: {State.RUNNING, State.PANICKED, State.BROKEN} | _ENDS,
    State.PANICKED: {State.RUNNING, State.PAUSED} | _ENDS,
    State.BROKEN: {State.RUNNING, State.PAUSED} | _ENDS,
    State.STOPPING: {State.SHUTDOWN, State.CRASHED},
    State.SHUTDOWN: set(),
    State.CRASHED: set(),
}

LIVE = frozenset({State.RUNNING, State.PAUSED, State.PANICKED, State.BROKEN})
"""The guest has memory and registers worth reading."""

_ADVICE = {
    State.CREATED: "wait until 'dvisor ls' shows it running",
    State.STARTING: "wait until 'dvisor ls' shows it running",
    State.RUNNING: "'dvisor pause {name}' stops it",
    State.PAUSED: "'dvisor resume {name}' lets it run again",
    State.PANICKED: "'dvisor reset {name}' starts it anew",
    State.BROKEN: "'dvisor logs {name}' tells why; 'dvisor reset {name}' starts it anew",
    State.STOPPING: "wait until it has left 'dvisor ls', or use 'dvisor down --force {name}'",
    State.SHUTDOWN: "'dvisor up' starts it again",
    State.CRASHED: "'dvisor logs {name}' tells why; 'dvisor up' starts it again",
}


class Lifecycle:
    """The present state of one VM; moves only along ``TRANSITIONS``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.CREATED

    def move(self, new: State) -> bool:
        """Go to ``new``; False when it is the present state. StateError when the table forbids."""
        if new is self.state:
            return False
        if new not in TRANSITIONS[self.state]:
            raise StateError(f"VM {self.name} cannot go from {self.state} to {new}")
        self.state = new
        return True

    def require(self, doing: str, *allowed: State) -> None:
        """StateError, with what to do, unless the present state is among ``allowed``."""
        if self.state not in allowed:
            advice = _ADVICE[self.state].format(name=self.name)
            raise StateError(f"cannot {doing} VM {self.name}: it is {self.state}; {advice}")
