"""``dvisor modules``: what was loaded into the kernel, hidden or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Stopped, Target, opened

if TYPE_CHECKING:
    from dvisor.guest.modules import Module


def register(app: typer.Typer) -> None:
    @app.command("modules")
    def modules_(target: Target = None, json: Json = False, stopped: Stopped = False) -> None:
        """List kernel modules, also one that left the list behind /proc/modules to hide.

        Example: dvisor modules web1
        """
        with opened(target, stopped) as vm:
            columns: list[output.Column[Module]] = [
                ("NAME", lambda m: m.name),
                (">SIZE", lambda m: m.size_bytes),
                (">REFS", lambda m: m.refcount if m.refcount >= 0 else None),
                ("STATE", lambda m: m.state if m.listed else f"{m.state}, HIDDEN"),
                ("BASE", lambda m: f"{m.base:#x}"),
                ("TAINTS", lambda m: m.taints or None),
                ("USED BY", lambda m: ",".join(m.used_by) or None),
                ("VERSION", lambda m: m.version or None),
            ]
            output.emit(vm.name, "modules", vm.guest.modules(), columns, json)
