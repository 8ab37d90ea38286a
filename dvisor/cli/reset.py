"""``dvisor reset``: press a guest's reset button."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor reset web1")
    def reset(name: Annotated[str, typer.Argument(help="The VM's name.")]) -> None:
        """Press a guest's reset button: it boots anew, and what it had not written is lost."""
        from dvisor.machine.control import Control

        with Control(name) as control:
            control.reset()
        typer.echo(f"{name} was reset")
