"""What runs on this host, and what ran: the facts behind ``dvisor ls``."""

from __future__ import annotations

from dataclasses import dataclass

from dvisor.errors import DvisorError
from dvisor.machine import registry
from dvisor.machine.control import Control
from dvisor.machine.messages import Info
from dvisor.machine.record import Record, read_record, recorded_names
from dvisor.machine.states import State

_ANSWER_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """One VM. ``info`` is None where it has ended, or where its supervisor does not answer."""

    name: str
    state: State | None
    note: str = ""
    info: Info | None = None
    record: Record | None = None


def machines() -> list[MachineInfo]:
    """All VMs that live, by name."""
    return [_living(name) for name in registry.live_names()]


def past_machines() -> list[MachineInfo]:
    """All VMs that ended and whose logs are still here, by name."""
    living = set(registry.live_names())
    return [_past(name) for name in recorded_names() if name not in living]


def _living(name: str) -> MachineInfo:
    try:
        with Control(name, _ANSWER_TIMEOUT_S) as control:
            info = control.info()
    except DvisorError as error:
        return MachineInfo(name, None, str(error))
    note = f"held by {info.holds} reader(s)" if info.holds else ""
    return MachineInfo(name, info.state, note, info)


def _past(name: str) -> MachineInfo:
    record = read_record(name)
    if record is None:
        return MachineInfo(name, State.CRASHED, "its record cannot be read")
    state = State.CRASHED if record.ended_at is None else record.state
    return MachineInfo(name, state, record.reason, record=record)
