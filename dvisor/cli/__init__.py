"""The command line: one file per verb, a client of the public API only."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from typer.models import CommandInfo, TyperInfo

from dvisor.errors import DvisorError

VERBS = (
    ("Machines", ("up", "ls", "down", "console", "logs", "pause", "resume", "reset", "attach")),
    (
        "Guest",
        (
            "ps",
            "files",
            "sockets",
            "modules",
            "maps",
            "mounts",
            "dmesg",
            "cpus",
            "stack",
            "info",
            "sym",
            "read",
            "top",
        ),
    ),
    ("Bridges", ("export", "shell")),
    ("Set-up", ("image", "demo")),
)
"""Each verb is the module of that name; its ``register(app)`` adds the command."""

_HELP = """See, from beneath, what runs in a Linux guest: no agent, no symbol files, no set-up.

Start with: dvisor up debian; dvisor ps debian
"""


def application(only: str | None = None) -> typer.Typer:
    """The command with all its verbs; or with that one alone, which starts in half the time."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for panel, verbs in VERBS:
        for verb in verbs:
            if only in {None, verb}:
                importlib.import_module(f"dvisor.cli.{verb}").register(app)
        _into_panel(app.registered_commands, panel)
        _into_panel(app.registered_groups, panel)
    return app


def _into_panel(added: Iterable[CommandInfo | TyperInfo], panel: str) -> None:
    """Those that have no panel yet come under this heading of ``dvisor --help``."""
    for info in added:
        if not isinstance(info.rich_help_panel, str):
            info.rich_help_panel = panel


def _print_version(wanted: bool) -> None:
    if wanted:
        from dvisor import __version__

        typer.echo(f"dvisor {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """What stands before the verb."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 to 9 by kind of error (dvisor.errors), 130 interrupted."""
    try:
        first = sys.argv[1] if len(sys.argv) > 1 else ""
        known = any(first in verbs for _, verbs in VERBS)
        application(first if known else None)(standalone_mode=True)
    except DvisorError as error:
        sys.stderr.write(f"dvisor: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        sys.exit(130)
    except BrokenPipeError:  # `dvisor ps | head`: keep the interpreter's exit quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
