"""``dvisor files``: what processes hold open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Stopped, Target, opened

if TYPE_CHECKING:
    from dvisor.guest.files import OpenFile

Pid = Annotated[int | None, typer.Option("--pid", help="Only of this process or thread.")]
Kind = Annotated[
    str | None,
    typer.Option("--kind", help="Only file, dir, link, chr, blk, pipe, socket or anon."),
]
Deleted = Annotated[bool, typer.Option("--deleted", help="Only what was deleted while open.")]


def register(app: typer.Typer) -> None:
    @app.command("files")
    def files_(
        target: Target = None,
        pid: Pid = None,
        kind: Kind = None,
        deleted: Deleted = False,
        json: Json = False,
        stopped: Stopped = False,
    ) -> None:
        """List open files of all processes, with paths as the guest's own root would see them.

        Example: dvisor files web1 --deleted
        """
        with opened(target, stopped) as vm:
            found = vm.guest.files(pid)
            found[:] = [
                file
                for file in found
                if (kind is None or file.kind == kind) and (not deleted or file.deleted)
            ]
            columns: list[output.Column[OpenFile]] = [
                (">PID", lambda f: f.pid),
                ("COMM", lambda f: f.comm),
                (">FD", lambda f: f.fd),
                ("ACCESS", lambda f: f.access or "path"),
                ("KIND", lambda f: f.kind),
                (">POSITION", lambda f: f.position),
                (">SIZE", lambda f: f.size_bytes),
                (">INODE", lambda f: f.inode),
                ("PATH", lambda f: f.path or None),
            ]
            output.emit(vm.name, "files", found, columns, json)
