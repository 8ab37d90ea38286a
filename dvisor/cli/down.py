"""``dvisor down``: end VMs."""

from __future__ import annotations

from typing import Annotated

import typer

from dvisor.errors import DvisorError


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor down web1 web2 --timeout 30")
    def down(
        names: Annotated[list[str], typer.Argument(help="Names of VMs.", metavar="NAME...")],
        force: Annotated[
            bool, typer.Option("--force", "-f", help="Pull the plug; do not ask the guest.")
        ] = False,
        timeout: Annotated[
            float | None,
            typer.Option(help="Seconds that the guest gets to power down before it is killed."),
        ] = None,
    ) -> None:
        """End VMs: by their own power-down if they can, else by force. Nothing of them stays."""
        from dvisor.machine.control import Control

        failed: list[DvisorError] = []
        for name in names:
            try:
                with Control(name) as control:
                    control.quit(force=force, timeout_s=timeout)
                typer.echo(f"{name} has ended")
            except DvisorError as error:
                if len(names) == 1:
                    raise
                typer.echo(f"dvisor: {error}", err=True)
                failed.append(error)
        if failed:
            raise typer.Exit(failed[0].exit_code)
