"""What is kept of a VM after its end: how it ended, next to its logs."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from dvisor.errors import HostError
from dvisor.machine.places import state_directory, state_root
from dvisor.machine.states import State

CONSOLE_LOG = "console.log"
VMM_LOG = "vmm.log"
SUPERVISOR_LOG = "supervisor.log"
KEPT_RECORDS = 32
_RECORD = "last.json"


class Record(msgspec.Struct, frozen=True):
    """The last life of a VM. Written at its start and at its end; times are Unix times."""

    name: str
    state: State
    reason: str
    started_at: float
    ended_at: float | None = None


def write_record(record: Record) -> None:
    """Keep ``record`` in place of the one before, whole or not at all."""
    directory = prepared_state_directory(record.name)
    partial = directory / (_RECORD + ".partial")
    try:
        partial.write_bytes(msgspec.json.encode(record))
        partial.replace(directory / _RECORD)
    except OSError as error:
        raise HostError(f"cannot write to {directory}: {error.strerror}") from error


def read_record(name: str) -> Record | None:
    """The record of the last VM of that name, if there is one that can be read."""
    try:
        return msgspec.json.decode((state_directory(name) / _RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def recorded_names() -> list[str]:
    """The names of all VMs that ran here once."""
    return sorted(entry.parent.name for entry in state_root().glob(f"*/{_RECORD}"))


def forget_old(keep: int = KEPT_RECORDS) -> None:
    """Remove logs and records of all but the ``keep`` VMs that ended last."""
    records = (read_record(name) for name in recorded_names())
    ended = [(last.ended_at, last.name) for last in records if last and last.ended_at is not None]
    for _, name in sorted(ended, reverse=True)[keep:]:
        shutil.rmtree(state_directory(name), ignore_errors=True)


def prepared_state_directory(name: str) -> Path:
    """The state directory of ``name``, made if missing, without what a killed QEMU left in it."""
    directory = state_directory(name)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot make {directory}: {error.strerror}") from error
    return directory


def sweep_scratch(directory: Path) -> None:
    """Remove snapshot files (vl.XXXXXX) of a QEMU that was killed before it could unlink them."""
    for left in directory.glob("vl.??????"):
        left.unlink(missing_ok=True)
