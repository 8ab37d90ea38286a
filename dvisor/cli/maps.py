"""``dvisor maps``: the memory map of a process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Stopped, opened

if TYPE_CHECKING:
    from dvisor.guest.maps import Mapping

Target = Annotated[str, typer.Argument(help="A VM's name, a QEMU's pid or socket, a core file.")]
Pid = Annotated[int, typer.Argument(help="The process, by the number that `dvisor ps` shows.")]


def register(app: typer.Typer) -> None:
    @app.command("maps")
    def maps_(target: Target, pid: Pid, json: Json = False, stopped: Stopped = False) -> None:
        """Show the memory map of a process, as its /proc/PID/maps would.

        Example: dvisor maps web1 812
        """
        with opened(target, stopped) as vm:
            columns: list[output.Column[Mapping]] = [
                (">START", lambda m: f"{m.start:x}"),
                (">END", lambda m: f"{m.end:x}"),
                ("PERM", lambda m: m.permissions),
                (">OFFSET", lambda m: f"{m.offset:x}"),
                ("DEVICE", lambda m: m.device),
                (">INODE", lambda m: m.inode),
                ("PATH", lambda m: m.path or None),
            ]
            output.emit(vm.name, "maps", vm.guest.maps(pid), columns, json)
