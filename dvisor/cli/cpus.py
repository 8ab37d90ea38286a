"""``dvisor cpus``: what each CPU runs, and what waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Stopped, Target, opened

if TYPE_CHECKING:
    from dvisor.guest.cpus import Cpu
    from dvisor.guest.runqueue import QueuedTask

Queues = Annotated[bool, typer.Option("--queues", "-q", help="Also the tasks on each run queue.")]


def register(app: typer.Typer) -> None:
    @app.command("cpus")
    def cpus_(
        target: Target = None, queues: Queues = False, json: Json = False, stopped: Stopped = False
    ) -> None:
        """Show each CPU's current task, its run queue's counts, and where it is in the code.

        Example: dvisor cpus web1 --queues --stopped
        """
        with opened(target, stopped) as vm:
            found = vm.guest.cpus()
            columns: list[output.Column[Cpu]] = [
                (">CPU", lambda c: c.number),
                (">PID", lambda c: c.pid),
                ("COMM", lambda c: c.comm),
                ("MODE", _mode),
                ("AT", lambda c: _place(c) if c.position else None),
                (">RUNNING", lambda c: c.queue.nr_running),
                (">FAIR", lambda c: c.queue.fair),
                (">RT", lambda c: c.queue.rt),
                (">DEADLINE", lambda c: c.queue.deadline),
                (">SWITCHES", lambda c: c.queue.switches),
            ]
            output.emit(vm.name, "cpus", found, columns, json)
            if queues and not json:
                _print_queues([(cpu, task) for cpu in found for task in cpu.queue.tasks])


def _mode(cpu: Cpu) -> str | None:
    if cpu.position is None:
        return "idle" if cpu.idle else None
    return "halted" if cpu.position.halted else cpu.position.mode


def _place(cpu: Cpu) -> str:
    assert cpu.position is not None
    return cpu.position.symbol or f"{cpu.position.rip:#x}"


def _print_queues(rows: list[tuple[Cpu, QueuedTask]]) -> None:
    columns: list[output.Column[tuple[Cpu, QueuedTask]]] = [
        (">CPU", lambda row: row[0].number),
        (">PID", lambda row: row[1].pid),
        ("COMM", lambda row: row[1].comm),
        ("CLASS", lambda row: row[1].scheduling_class),
        ("POLICY", lambda row: row[1].policy),
        (">PRIO", lambda row: row[1].prio),
        (">GROUPS", lambda row: row[1].groups),
        ("STATE", lambda row: _state(row[1])),
    ]
    typer.echo()
    output.table(rows, columns)


def _state(task: QueuedTask) -> str:
    if task.current:
        return "runs"
    return "delayed dequeue" if task.delayed else "waits"
