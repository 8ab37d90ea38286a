"""``dvisor dmesg``: the guest's kernel log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Target, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dvisor.guest.dmesg import LogRecord

POLL_S = 0.25

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with new messages.")]
Raw = Annotated[bool, typer.Option("--raw", "-r", help="With <level>, as dmesg -r prints it.")]
Level = Annotated[
    str | None,
    typer.Option("--level", "-l", help="Only this urgent or more: emerg, alert, ... or 0 to 7."),
]


def register(app: typer.Typer) -> None:
    @app.command("dmesg")
    def dmesg_(
        target: Target = None,
        follow: Follow = False,
        raw: Raw = False,
        level: Level = None,
        json: Json = False,
    ) -> None:
        """Print the kernel's messages, as they stand in its own memory.

        Example: dvisor dmesg web1 --level warn --follow
        """
        least = _level(level)
        with opened(target) as vm:
            listing = vm.guest.dmesg()
            following = listing[-1].seq + 1 if listing else 0
            listing[:] = [record for record in listing if record.level <= least]
            if json and not follow:
                output.emit(vm.name, "dmesg", listing, [], True)
                return
            _print(listing, raw, json)
            for problem in listing.problems:
                output.warn(problem)
            while follow:
                time.sleep(POLL_S)
                more = vm.guest.dmesg(since=following)
                following = more[-1].seq + 1 if more else following
                _print([record for record in more if record.level <= least], raw, json)


def _level(text: str | None) -> int:
    from dvisor.errors import UsageError
    from dvisor.guest.dmesg import LEVELS

    if text is None:
        return len(LEVELS) - 1
    if text in LEVELS:
        return LEVELS.index(text)
    if text.isdecimal() and int(text) < len(LEVELS):
        return int(text)
    raise UsageError(f"no level {text!r}; there are: {', '.join(LEVELS)}")


def _print(records: list[LogRecord], raw: bool, json: bool) -> None:
    if json:
        import msgspec

        for record in records:
            sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
    else:
        for line in lines(records, raw):
            sys.stdout.write(line + "\n")
    sys.stdout.flush()


def lines(records: list[LogRecord], raw: bool = False) -> Iterator[str]:
    """As dmesg(1) prints them, a prefix before each line of a message."""
    for record in records:
        seconds, rest = divmod(record.time_ns, 1_000_000_000)
        prefix = f"<{record.facility << 3 | record.level}>" if raw else ""
        for line in record.text.split("\n"):
            yield f"{prefix}[{seconds:5}.{rest // 1000:06}] {output.printable(line)}"
