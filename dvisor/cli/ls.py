"""``dvisor ls``: which VMs run, and how past ones ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvisor.cli import output

if TYPE_CHECKING:
    from dvisor.machine.inventory import MachineInfo


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor ls --all")
    def ls(
        everything: Annotated[
            bool, typer.Option("--all", "-a", help="Also VMs that have ended, and why.")
        ] = False,
        json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    ) -> None:
        """List the VMs of this user that run now."""
        from dvisor.machine.inventory import machines, past_machines

        found = machines() + (past_machines() if everything else [])
        if json:
            output.json([_document(machine) for machine in found])
        elif found:
            output.table(found, _COLUMNS)
        else:
            typer.echo("No VM runs. Start one: dvisor up debian")


def _document(machine: MachineInfo) -> dict[str, Any]:
    return {
        "name": machine.name,
        "state": machine.state,
        "note": machine.note,
        "info": machine.info,
        "last": machine.record,
    }


def _memory(machine: MachineInfo) -> str | None:
    return f"{machine.info.memory_bytes >> 20} MiB" if machine.info else None


def _age(machine: MachineInfo) -> str | None:
    if machine.info:
        return _duration(time.time() - machine.info.started_at)
    if machine.record and machine.record.ended_at is not None:
        return f"ended {_duration(time.time() - machine.record.ended_at)} ago"
    return None


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


_COLUMNS: list[output.Column[MachineInfo]] = [
    ("NAME", lambda machine: machine.name),
    ("STATE", lambda machine: machine.state or "no answer"),
    ("ACCEL", lambda machine: machine.info.accel if machine.info else None),
    (">VCPUS", lambda machine: machine.info.vcpus if machine.info else None),
    (">MEMORY", _memory),
    (">QEMU", lambda machine: machine.info.qemu_pid if machine.info else None),
    ("TIME", _age),
    ("NOTE", lambda machine: machine.note or None),
]
