"""``dvisor up``: start a VM."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dvisor.cli import output


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor up debian --name web1 --memory 2GiB --kernel 7.2")
    def up(
        config: Annotated[
            str, typer.Argument(help="A vm.toml, or a built-in example: tiny, debian.")
        ],
        name: Annotated[str | None, typer.Option(help="The VM's name.")] = None,
        kernel: Annotated[
            str | None, typer.Option(help="The image's kernel: 6.1, 6.12, 7.2 or rt.")
        ] = None,
        memory: Annotated[str | None, typer.Option(help="RAM, as 512MiB or 2GiB.")] = None,
        vcpus: Annotated[int | None, typer.Option(help="How many vCPUs.")] = None,
        accel: Annotated[str | None, typer.Option(help="auto, kvm or tcg.")] = None,
        cpu: Annotated[str | None, typer.Option(help="QEMU's name of a CPU model.")] = None,
        append: Annotated[
            str | None, typer.Option(help="Added to the kernel's command line.")
        ] = None,
        traps: Annotated[
            bool, typer.Option("--traps", help="Load dvisor's library into QEMU (TCG).")
        ] = False,
        wait_for: Annotated[
            str | None,
            typer.Option(help="Return when the guest has printed this text on its console."),
        ] = None,
        wait_timeout: Annotated[
            float, typer.Option(help="Seconds to wait for it; the VM ends when it does not come.")
        ] = 120.0,
        json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    ) -> None:
        """Start a VM and return when its guest runs. It lives on when this command has ended.

        Interrupted before that (Ctrl-C, a closed terminal), nothing of the VM stays.
        """
        from dvisor import api
        from dvisor.machine.config import load_config, override

        started = time.monotonic()
        wanted = override(
            load_config(config),
            name=name,
            kernel=kernel,
            memory=memory,
            vcpus=vcpus,
            accel=accel,
            cpu=cpu,
            append=append,
            traps=traps or None,
        )
        machine = api.up(
            wanted,
            progress=lambda text: typer.echo(f"{wanted.name}: {text}", err=True),
            wait_for=wait_for,
            wait_timeout_s=wait_timeout,
        )
        info = machine.info
        if json:
            output.json(info)
            return
        typer.echo(
            f"{info.name} runs: {info.vcpus} vCPU, {info.memory_bytes >> 20} MiB, {info.accel}, "
            f"after {time.monotonic() - started:.1f} s"
        )
        typer.echo(f"Now: dvisor ps {info.name}; dvisor console {info.name}")
