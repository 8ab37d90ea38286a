"""``dvisor resume``: let a paused guest run."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor resume web1")
    def resume(name: Annotated[str, typer.Argument(help="The VM's name.")]) -> None:
        """Let a paused guest run."""
        from dvisor.machine.control import Control

        with Control(name) as control:
            control.resume()
        typer.echo(f"{name} runs")
