"""``dvisor logs``: what a VM has said, also after its end."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from dvisor.cli import output
from dvisor.errors import NotFoundError

_POLL_S = 0.1
_CHUNK = 64 << 10
# Terminal control sequences (ECMA-48 CSI and OSC): a guest must not steer the user's terminal.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|\r")


class Source(StrEnum):
    """Whose words."""

    CONSOLE = "console"
    VMM = "vmm"
    SUPERVISOR = "supervisor"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor logs web1 --source vmm")
    def logs(
        name: Annotated[str, typer.Argument(help="The VM's name; it may have ended.")],
        follow: Annotated[
            bool, typer.Option("--follow", "-f", help="Go on until the VM ends.")
        ] = False,
        source: Annotated[
            Source, typer.Option(help="The guest's console, QEMU, or the supervisor.")
        ] = Source.CONSOLE,
    ) -> None:
        """Print the log of the last VM of that name, and how it ended."""
        from dvisor.machine import record
        from dvisor.machine.places import state_directory
        from dvisor.machine.registry import check_name

        path = state_directory(check_name(name)) / f"{source}.log"
        if not path.exists():
            raise NotFoundError(f"no VM named {name} has run here: see 'dvisor ls --all'")
        for part in _parts(path, name if follow else None):
            _write(part)
        last = record.read_record(name)
        if last and last.ended_at is not None:
            typer.echo(f"dvisor: {name}: {last.state}, {last.reason}", err=True)


def _parts(path: Path, followed: str | None) -> Iterator[bytes]:
    """The file's content, and with ``followed`` what comes until that VM is gone."""
    log = path.open("rb")
    try:
        while True:
            alive = followed is not None and _lives(followed)
            while part := log.read(_CHUNK):
                yield part
            if not alive:
                return
            if _was_replaced(log, path):
                log.close()
                log = path.open("rb")
            else:
                time.sleep(_POLL_S)
    finally:
        log.close()


def _lives(name: str) -> bool:
    from dvisor.machine.places import runtime_directory
    from dvisor.machine.registry import is_live

    directory = runtime_directory(name)
    return directory.exists() and is_live(directory)


def _was_replaced(log: BinaryIO, path: Path) -> bool:
    """The supervisor began a new part of its bounded log."""
    return path.exists() and os.fstat(log.fileno()).st_ino != path.stat().st_ino


def _write(part: bytes) -> None:
    """Raw for a program; for a terminal, without what would control it."""
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    lines = _CONTROL.sub("", part.decode(errors="replace")).split("\n")
    sys.stdout.write("\n".join(output.printable(line.expandtabs()) for line in lines))
    sys.stdout.flush()
