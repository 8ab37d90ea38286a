"""``dvisor read``: bytes of a guest's memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from dvisor.addresses import MASK64
from dvisor.cli import output
from dvisor.cli.target import Json, Named, Stopped, opened

Address = Annotated[
    str, typer.Argument(help="0x..., a symbol, or symbol+0x10.", show_default=False)
]
Size = Annotated[str, typer.Argument(help="Bytes to read: 64 or 0x40.", show_default=False)]
Physical = Annotated[bool, typer.Option("--phys", help="A guest physical address.")]
Pid = Annotated[int | None, typer.Option("--pid", help="An address of this process.")]
Hex = Annotated[bool, typer.Option("--hex", help="Hexadecimal digits only.")]
Raw = Annotated[bool, typer.Option("--raw", help="The bytes themselves, for a file or a pipe.")]


def register(app: typer.Typer) -> None:
    @app.command("read")
    def read_(
        target: Named,
        address: Address,
        size: Size = "64",
        phys: Physical = False,
        pid: Pid = None,
        hex_: Hex = False,
        raw: Raw = False,
        json: Json = False,
        stopped: Stopped = False,
    ) -> None:
        """Print memory of the kernel, of a process, or by physical address.

        Example: dvisor read web1 init_task+0x10 32
        """
        from dvisor.errors import UsageError
        from dvisor.guest.symbols import number

        if hex_ + raw + json > 1:
            raise UsageError("choose one of --hex, --raw and --json")
        with opened(target, stopped) as vm:
            dump = vm.guest.read(address, number(size), pid=pid, physical=phys)
        if raw:
            sys.stdout.buffer.write(dump.data)
        elif hex_:
            typer.echo(dump.data.hex())
        elif json:
            space = "physical" if phys else "kernel" if pid is None else f"pid {pid}"
            output.json(
                {
                    "vm": vm.name,
                    "kind": "read",
                    "space": space,
                    "address": dump.address,
                    "hex": dump.data.hex(),
                }
            )
        else:
            for line in lines(dump.address, dump.data):
                typer.echo(line)


def lines(address: int, data: bytes) -> Iterator[str]:
    """As ``hexdump -C`` prints: address, bytes, and what of them is ASCII."""
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        left, right = part[:8].hex(" "), part[8:].hex(" ")
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{(address + start) & MASK64:016x}  {left:<23}  {right:<23}  |{shown}|"
