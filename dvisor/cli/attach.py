"""``dvisor attach``: can this target be read, and if not, why not."""

from __future__ import annotations

import time

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Target, opened


def register(app: typer.Typer) -> None:
    @app.command("attach")
    def attach_(target: Target = None, json: Json = False) -> None:
        """Try to open a guest and say what was found; prepares nothing and leaves nothing.

        Example: dvisor attach 4711   (the pid of any QEMU)
        """
        started = time.perf_counter()
        with opened(target) as vm:
            kernel = vm.guest.kernel
            elapsed_ms = (time.perf_counter() - started) * 1000
            release = kernel.banner.decode("ascii", "replace").split()[2]
            found = {
                "target": vm.name,
                "engine": vm.engine.description,
                "kernel": release,
                "knows_resets": vm.engine.knows_resets,
                "elapsed_ms": round(elapsed_ms, 1),
                "evidence": [
                    {"way": e.way, "agrees": e.agrees, "detail": e.detail} for e in kernel.evidence
                ],
            }
            if json:
                output.json(found)
                return
            typer.echo(f"{vm.engine.description}: Linux {release}, found in {elapsed_ms:.0f} ms")
            for evidence in kernel.evidence:
                mark = "ok" if evidence.agrees else "no"
                typer.echo(f"  {mark}  {evidence.way}: {output.printable(evidence.detail)}")
            if not vm.engine.knows_resets:
                output.warn("this engine cannot see guest resets: attach again after one")
            typer.echo(f"Now: dvisor ps {target or vm.name}")
