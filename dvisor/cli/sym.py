"""``dvisor sym``: names to addresses, addresses to names, and what a structure looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Named, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dvisor.guest.structures import Structure
    from dvisor.guest.symbols import Symbol

Wanted = Annotated[
    list[str] | None,
    typer.Argument(help="Names, patterns (tcp_*) or addresses (0x...).", show_default=False),
]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", help="Print this structure, with the offset and size of each member."),
]


def register(app: typer.Typer) -> None:
    @app.command("sym")
    def sym_(target: Named, wanted: Wanted = None, types: Types = None, json: Json = False) -> None:
        """Look up kernel symbols and structures, modules' too, in the guest itself.

        Example: dvisor sym web1 init_task "tcp_v4_*" 0xffffffff81000000 --type task_struct
        """
        from dvisor.errors import UsageError
        from dvisor.guest.listing import Listing

        if not wanted and not types:
            raise UsageError("name a symbol, an address or --type STRUCTURE")
        with opened(target) as vm:
            found: Listing[Symbol] = Listing()
            for one in wanted or ():
                symbols = vm.guest.symbols(one)
                found.extend(symbols)
                for problem in symbols.problems:
                    found.problem(problem)
            structures = [vm.guest.structure(name) for name in types or ()]
        if json and not wanted:
            output.emit(vm.name, "structures", structures, [], True)
        elif json and types:
            raise UsageError("with --json ask either for symbols or for structures")
        elif wanted:
            output.emit(vm.name, "symbols", found, _COLUMNS, json)
        if not json:
            for structure in structures:
                for line in lines(structure):
                    typer.echo(output.printable(line))


_COLUMNS: list[output.Column[Symbol]] = [
    ("ADDRESS", lambda s: f"{s.address:#018x}"),
    ("TYPE", lambda s: s.type),
    (">SIZE", lambda s: s.size_bytes or None),
    ("NAME", lambda s: f"{s.name}+{s.offset:#x}" if s.offset else s.name),
    ("MODULE", lambda s: s.module or None),
]


def lines(structure: Structure) -> Iterator[str]:
    """The structure in C, a comment with offset and size at each member (as pahole prints)."""
    rows: list[tuple[str, str]] = []
    closing: list[str] = []
    depths = [member.depth for member in structure.members[1:]] + [0]
    for member, following in zip(structure.members, depths, strict=True):
        indent = "    " * (member.depth + 1)
        bits = f":{member.bits}" if member.bits else ""
        code = f"{indent}{member.declaration}{bits};"
        if following > member.depth:
            head, _, tail = code.rpartition("{...}")
            code = head + "{"
            closing.append(f"{indent}}}{tail}")
        at = f"{member.offset}:{member.bit_offset}" if member.bits else str(member.offset)
        rows.append((code, f"/* {at:>6} {member.size_bytes:>6} */"))
        rows += [(closing.pop(), "") for _ in range(member.depth - following) if closing]
    width = min(max((len(code) for code, _ in rows), default=0), 72)
    yield f"{structure.name} {{"
    for code, comment in rows:
        yield f"{code:<{width}} {comment}".rstrip()
    yield f"}}; /* {structure.size_bytes} bytes */"
