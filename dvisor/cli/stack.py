"""``dvisor stack``: through which kernel functions a task came to where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Named, opened

if TYPE_CHECKING:
    from dvisor.guest.stack import Frame

Pid = Annotated[int, typer.Argument(help="Thread id, as dvisor ps shows it.", show_default=False)]
Live = Annotated[
    bool,
    typer.Option("--live", help="Do not stop the VM for the millisecond; sleeping tasks only."),
]


def register(app: typer.Typer) -> None:
    @app.command("stack")
    def stack_(target: Named, pid: Pid, live: Live = False, json: Json = False) -> None:
        """Print the kernel stack of a task, the innermost function first.

        "?" marks what was only found on the stack: it may be left over from an earlier call.

        Example: dvisor stack web1 1
        """
        with opened(target, stopped=not live) as vm:
            frames = vm.guest.stack(pid)
        if json:
            output.emit(target, "stack", frames, [], True)
            return
        for frame in frames:
            typer.echo(output.printable(line(frame)))
        if not frames:
            typer.echo("nothing: the task is in user mode, or it has exited")
        for problem in frames.problems:
            output.warn(problem)


def line(frame: Frame) -> str:
    """As the kernel prints a frame."""
    doubt = "" if frame.reliable else "? "
    if not frame.symbol:
        name = f"{frame.address:#x}"
    else:
        name = f"{frame.symbol}+{frame.offset:#x}/{frame.size:#x}"
    module = f" [{frame.module}]" if frame.module else ""
    where = "" if frame.stack == "task" else f"  <{frame.stack} stack>"
    return f"{doubt}{name}{module}{where}"
