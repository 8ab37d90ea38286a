"""What every verb that looks into a guest takes: the target, and how it is opened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

from dvisor.api import Vm, attach

Target = Annotated[
    str | None,
    typer.Argument(
        help="A VM's name, a QEMU's pid or QMP socket, a core file, or raw:FILE. "
        "May be left out when just one VM of dvisor's runs.",
        show_default=False,
    ),
]
Named = Annotated[
    str,
    typer.Argument(
        help="A VM's name, a QEMU's pid or QMP socket, a core file, or raw:FILE.",
        show_default=False,
        metavar="TARGET",
    ),
]
"""The same for verbs that take more arguments: these would be mistaken for it."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Stopped = Annotated[
    bool, typer.Option("--stopped", help="Stop the VM while reading, for an exact picture.")
]


@contextlib.contextmanager
def opened(target: str | None, stopped: bool = False) -> Iterator[Vm]:
    """The target, attached; with ``stopped`` no vCPU runs inside the block."""
    with attach(target) as vm, vm.stopped() if stopped else contextlib.nullcontext():
        yield vm
