"""``dvisor mounts``: what is mounted where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Stopped, Target, opened

if TYPE_CHECKING:
    from dvisor.guest.mounts import Mount

Pid = Annotated[int, typer.Option("--pid", help="In this process's mount namespace.")]


def register(app: typer.Typer) -> None:
    @app.command("mounts")
    def mounts_(
        target: Target = None, pid: Pid = 1, json: Json = False, stopped: Stopped = False
    ) -> None:
        """List mounts as a process sees them; by default the first process.

        Example: dvisor mounts web1 --pid 812
        """
        with opened(target, stopped) as vm:
            columns: list[output.Column[Mount]] = [
                (">ID", lambda m: m.id),
                (">PARENT", lambda m: m.parent),
                ("DEVICE", lambda m: m.device),
                ("MOUNTPOINT", lambda m: m.mountpoint),
                ("TYPE", lambda m: m.fstype),
                ("SOURCE", lambda m: m.source or None),
                ("ROOT", lambda m: m.root),
                ("OPTIONS", lambda m: ",".join(m.options)),
                ("PROPAGATION", lambda m: " ".join(m.propagation) or None),
            ]
            output.emit(vm.name, "mounts", vm.guest.mounts(pid), columns, json)
