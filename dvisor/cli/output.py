"""How verbs print: a table for people, one JSON document for programs.

JSON is an envelope, ``{"vm", "kind", "complete", "problems", "items"}``, because a partial answer
must say so to a program too. What a guest says is never printed raw: control characters would
reach the user's terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

T = TypeVar("T")

Column = tuple[str, Callable[[T], object]]
"""A heading (a leading ``>`` aligns right) and what stands under it."""


def printable(value: object) -> str:
    """``value`` as text that cannot control a terminal."""
    text = "-" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def emit(
    vm: str, kind: str, items: Sequence[T], columns: Sequence[Column[T]], as_json: bool
) -> None:
    """Print ``items``, and on stderr (or in the JSON) why some may be missing."""
    problems: list[str] = list(getattr(items, "problems", []))
    if as_json:
        document = {
            "vm": vm,
            "kind": kind,
            "complete": not problems,
            "problems": problems,
            "items": list(items),
        }
        json(document)
        return
    table(items, columns)
    for problem in problems:
        warn(problem)


def json(document: Any) -> None:
    """Print one document, indented."""
    raw = msgspec.json.format(msgspec.json.encode(document), indent=2)
    sys.stdout.write(raw.decode() + "\n")


def table(items: Sequence[T], columns: Sequence[Column[T]]) -> None:
    """A table on a terminal; where the output is no terminal, plain aligned columns, unwrapped."""
    headings = [name.removeprefix(">") for name, _ in columns]
    right = [name.startswith(">") for name, _ in columns]
    rows = [[printable(cell(item)) for _, cell in columns] for item in items]
    if not sys.stdout.isatty():
        _plain([headings, *rows], right)
        return
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for heading, is_right in zip(headings, right, strict=True):
        grid.add_column(heading, justify="right" if is_right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(escape, row))
    Console().print(grid)


def _plain(rows: list[list[str]], right: list[bool]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    for row in rows:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def warn(text: str) -> None:
    """A line on stderr that does not mix with the answer."""
    sys.stderr.write(f"dvisor: warning: {printable(text)}\n")
