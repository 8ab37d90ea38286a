"""``dvisor pause``: stop a guest until it is resumed."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor pause web1")
    def pause(name: Annotated[str, typer.Argument(help="The VM's name.")]) -> None:
        """Stop a guest until 'dvisor resume'; its memory and registers can be read meanwhile."""
        from dvisor.machine.control import Control

        with Control(name) as control:
            control.pause()
        typer.echo(f"{name} is paused")
