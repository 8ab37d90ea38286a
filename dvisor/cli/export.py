"""``dvisor export``: a guest for other people's tools."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Target, opened
from dvisor.errors import DvisorError

if TYPE_CHECKING:
    from dvisor.api import Vm
    from dvisor.machine.corefile_write import VirtualMapping

app = typer.Typer(no_args_is_help=True, help="Give a guest to drgn, gdb or volatility3.")

_Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write.", dir_okay=False)]


def register(parent: typer.Typer) -> None:
    """Add the command to the root."""
    parent.add_typer(app, name="export")


@app.command(epilog="Example: dvisor export isf web1 -o symbols/web1.json.xz")
def isf(out: _Out, target: Target = None) -> None:
    """Write volatility3's symbol file (ISF) of the guest's kernel, from the guest's own memory.

    Give volatility3 its directory: vol -s symbols -f web1.core linux.pslist
    """
    from dvisor.guest import isf as symbol_file

    with opened(target) as vm:
        symbol_file.write(vm.guest.kernel, out)
    typer.echo(f"{out}: {out.stat().st_size >> 10} KiB. Now: vol -s {out.parent} -f CORE ...")


@app.command(epilog="Example: dvisor export core web1 -o web1.core")
def core(
    out: _Out,
    target: Target = None,
    stopped: Annotated[
        bool,
        typer.Option(
            "--stopped/--live",
            help="Stop the VM while writing, for an exact picture; or let it run on.",
        ),
    ] = True,
) -> None:
    """Write the guest's memory and registers as an ELF core file, for drgn, gdb and volatility3."""
    with opened(target) as vm, _bar() as progress:
        export_core(vm, out, stop=stopped, progress=progress)
    typer.echo(f"{out}: {out.stat().st_blocks >> 1} KiB on disk, {out.stat().st_size >> 10} long")


def export_core(
    vm: Vm, path: Path, *, stop: bool = True, progress: Callable[[int, int], None] | None = None
) -> None:
    """The guest's memory in ``path``, with what drgn (VMCOREINFO) and gdb (virtual addresses)
    need; without both, and a warning, where no Linux is found in it."""
    from dvisor.guest.drgn_bridge import vmcoreinfo
    from dvisor.machine.corefile_write import write_core

    note, mappings = None, []
    try:
        note = vmcoreinfo(vm.guest.kernel)
        mappings = _mappings(vm)
    except DvisorError as error:
        output.warn(f"only memory and registers are written: {error}")
    write_core(vm.engine, path, vmcoreinfo=note, mappings=mappings, stop=stop, progress=progress)


def _mappings(vm: Vm) -> list[VirtualMapping]:
    """The image before the direct map, which holds the image's memory a second time."""
    from dvisor.addresses import GuestPhysical, GuestVirtual
    from dvisor.machine.corefile_write import VirtualMapping

    return [
        VirtualMapping(GuestVirtual(run.virtual), GuestPhysical(run.physical), run.size)
        for run in reversed(vm.guest.kernel.memory.linear)
    ]


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, if a person looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
