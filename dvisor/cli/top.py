"""``dvisor top``: what the guest's CPUs do, as a live screen."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dvisor.api import Vm
from dvisor.cli import output
from dvisor.cli.target import Json, Target, opened
from dvisor.errors import StateError, UsageError
from dvisor.guest.usage import TaskUsage, Usage, between, read_usage


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor top debian --interval 0.5")
    def top(
        target: Target = None,
        interval: Annotated[float, typer.Option(help="Seconds between two pictures.")] = 1.0,
        count: Annotated[int, typer.Option(help="Pictures to show; 0: until Ctrl-C.")] = 0,
        json: Json = False,
    ) -> None:
        """Processes by the CPU time that the guest's scheduler gave them, from beneath.

        Where the output is no terminal, or with --json, each picture is printed once, in full.
        """
        if not interval >= 0.05:
            raise UsageError("--interval must be at least 0.05 s")
        with opened(target) as vm:
            if json or not Console().is_terminal:
                for usage in _pictures(vm, interval, count or 1):
                    _print(vm.name, usage, json)
                return
            with Live(screen=True, auto_refresh=False) as live:
                for usage in _pictures(vm, interval, count or None):
                    live.update(_screen(vm.name, usage, live.console.height), refresh=True)


def _pictures(vm: Vm, interval: float, count: int | None) -> Iterable[Usage]:
    before = vm.guest.view(read_usage)
    shown = 0
    while count is None or shown < count:
        time.sleep(interval)
        try:
            now = vm.guest.view(read_usage)
        except StateError:  # the guest was reset: begin anew once its kernel is up
            continue
        yield between(before, now)
        before, shown = now, shown + 1


_COLUMNS: list[output.Column[TaskUsage]] = [
    (">PID", lambda row: row.pid),
    (">UID", lambda row: row.uid),
    ("S", lambda row: row.state),
    (">%CPU", lambda row: f"{row.cpu_percent:.1f}"),
    (">TIME", lambda row: f"{row.cpu_ns / 1e9:.2f}"),
    ("COMMAND", lambda row: row.comm),
]


def _print(name: str, usage: Usage, as_json: bool) -> None:
    if as_json:
        output.emit(name, "usage", usage.tasks, _COLUMNS, True)
        return
    typer.echo(_summary(name, usage))
    output.table(usage.tasks, _COLUMNS)


def _summary(name: str, usage: Usage) -> str:
    states = dict.fromkeys("RSDZ", 0)
    for task in usage.tasks:
        states[task.state] = states.get(task.state, 0) + 1
    return (
        f"{name}: {len(usage.tasks)} processes, {states['R']} running, {states['D']} waiting, "
        f"{states['Z']} zombies; {usage.cpus} CPUs {usage.cpu_percent:.0f} % busy; "
        f"read in {usage.read_ms:.1f} ms"
    )


def _screen(name: str, usage: Usage, height: int) -> Group:
    grid = Table(box=None, header_style="reverse", pad_edge=False, expand=True)
    for heading, _ in _COLUMNS:
        grid.add_column(
            heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left"
        )
    for row in usage.tasks[: max(1, height - 4)]:
        grid.add_row(*(escape(output.printable(cell(row))) for _, cell in _COLUMNS))
    return Group(Text(_summary(name, usage), style="bold"), grid, Text("Ctrl-C ends", style="dim"))
