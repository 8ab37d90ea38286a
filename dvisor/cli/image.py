"""``dvisor image``: build, list and remove guest images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from dvisor.cli import output

if TYPE_CHECKING:
    from dvisor.images import GuestImage

app = typer.Typer(no_args_is_help=True, help="Build, list and remove guest images.")

_MIB = 1 << 20
_Kernel = Annotated[
    str | None, typer.Option("--kernel", "-k", help="6.1, 6.12, 7.2 or rt; all: each of them.")
]


def register(parent: typer.Typer) -> None:
    """Add the command to the root."""
    parent.add_typer(app, name="image")


@app.command(epilog="Example: dvisor image build debian --kernel 6.1")
def build(
    name: Annotated[str, typer.Argument(help="tiny or debian.")], kernel: _Kernel = None
) -> None:
    """Build an image from Debian packages, unless it is in the cache already."""
    from dvisor import images

    wanted = {None: [images.DEFAULT_KERNEL], "all": list(images.recipes().kernels)}
    for key in wanted.get(kernel) or [str(kernel)]:
        image = images.build(name, key, progress=images.progress_on_stderr())
        directory = image.vmlinuz.parent
        typer.echo(f"{image.name} {image.kernel} ({image.kernel_release}): {directory}")


@app.command(epilog="Example: dvisor image ls --json")
def ls(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """List the images in the cache."""
    from dvisor import images

    found = images.ls()
    if as_json:
        output.json(
            [
                {**msgspec.to_builtins(image, enc_hook=str), "current": images.is_current(image)}
                for image in found
            ]
        )
    elif found:
        output.table(found, columns(images.is_current))
    else:
        typer.echo("no images; build one: dvisor image build tiny")


def columns(is_current: Callable[[GuestImage], bool]) -> list[output.Column[GuestImage]]:
    """What is shown of an image."""
    return [
        ("NAME", lambda image: image.name),
        ("KERNEL", lambda image: image.kernel),
        ("RELEASE", lambda image: image.kernel_release),
        (">MIB", lambda image: image.size_bytes // _MIB),
        ("CURRENT", lambda image: "yes" if is_current(image) else "no (older recipe)"),
    ]


@app.command(epilog="Example: dvisor image rm debian --kernel 6.1")
def rm(
    name: Annotated[str | None, typer.Argument(help="Which image; none with --all.")] = None,
    kernel: _Kernel = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All images, and the private tool roots too.")
    ] = False,
) -> None:
    """Remove images, and the parts that no other image is made of."""
    from dvisor import images
    from dvisor.errors import UsageError

    if (name is None) != everything:
        raise UsageError("name one image (dvisor image rm tiny), or give --all")
    freed_bytes = images.rm(name, kernel, tools=everything)
    typer.echo(f"{freed_bytes // _MIB} MiB freed")
