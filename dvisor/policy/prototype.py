"""The prototypes of the system call table: text such as ``in iovec vec[vlen <= 1024 else EINVAL]``.

The grammar is told at the top of ``syscalls.toml``. What it does not know is a UsageError.
"""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Mapping

import msgspec

from dvisor.errors import UsageError

_QUANTITIES = ("int", "long", "mode", "offset", "size", "u64", "uint", "word")
_NAMES = ("address", "dev", "dirfd", "fd", "flags", "gid", "id", "pid", "signal", "uid")
NUMBERS = frozenset({*_QUANTITIES, *_NAMES})
TEXTS = frozenset({"path", "string", "strings"})
_ARGUMENT = re.compile(
    r"(?:(?P<direction>in|out|inout) )?(?P<kind>\w+)(?P<nullable>\?)? (?P<name>\w+)"
    r"(?:\[(?P<length>[^\]]+)\])?"
)
_LENGTH = re.compile(
    r"(?P<star>\*)?(?P<by>\w+)(?: <= (?P<limit>\w+))?(?: else (?P<beyond>short|E[A-Z0-9]+))?"
)


class Direction(enum.Enum):
    """Which way a pointer's data go; VALUE: no pointer, or one that is never followed."""

    VALUE = "value"
    IN = "in"
    OUT = "out"
    INOUT = "inout"


class Length(msgspec.Struct, frozen=True):
    """How many elements: fixed (``by`` is None), or as an argument says, and at most ``limit``."""

    limit: int
    by: str | None = None
    pointed: bool = False  # the argument points to the number
    beyond: str = "EINVAL"  # "short": only `limit` elements are moved; else this errno


class Argument(msgspec.Struct, frozen=True):
    """One argument. ``element_bytes`` is 0 for numbers; ``kind`` a number's kind or a type."""

    name: str
    kind: str
    direction: Direction = Direction.VALUE
    nullable: bool = False
    element_bytes: int = 0
    length: Length | None = None


def arguments(
    prototype: str, sizes: Mapping[str, int], limits: Mapping[str, int]
) -> tuple[Argument, ...]:
    """The arguments in order; ``sizes`` by type, ``limits`` by name. UsageError."""
    parsed = [
        argument(text.strip(), sizes, limits) for text in prototype.split(",") if text.strip()
    ]
    names = [each.name for each in parsed]
    if len(set(names)) < len(names) or len(names) > 6:
        raise UsageError(f"{prototype!r}: at most six arguments, of different names")
    for each in parsed:
        if each.length and each.length.by and each.length.by not in names:
            raise UsageError(
                f"{prototype!r}: {each.name} is as long as {each.length.by}, no argument"
            )
    return tuple(parsed)


def argument(text: str, sizes: Mapping[str, int], limits: Mapping[str, int]) -> Argument:
    """One argument of a prototype. UsageError says what is wrong with it."""
    match = _ARGUMENT.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is no argument: [in|out|inout] TYPE[?] NAME[LENGTH]")
    kind = match["kind"]
    nullable = match["nullable"] is not None
    length = _length(match["length"], limits) if match["length"] else None
    if kind in TEXTS and not match["direction"]:
        bound = length or Length(limit=limits["PATH_MAX"], beyond="ENAMETOOLONG")
        return Argument(match["name"], kind, Direction.IN, nullable, 1, bound)
    if not match["direction"]:
        if kind not in NUMBERS or length or nullable:
            raise UsageError(f"{text!r}: a number is one of {', '.join(sorted(NUMBERS))}")
        return Argument(match["name"], kind)
    if kind not in sizes:
        raise UsageError(f"{text!r}: there is no type {kind}")
    return Argument(
        match["name"], kind, Direction(match["direction"]), nullable, sizes[kind], length
    )


def _length(text: str, limits: Mapping[str, int]) -> Length:
    match = _LENGTH.fullmatch(text)
    if not match:
        raise UsageError(
            f"[{text}] is no length: NUMBER, ARGUMENT or *ARGUMENT [<= LIMIT else ERRNO]"
        )
    beyond = match["beyond"] or "EINVAL"
    if beyond != "short" and not hasattr(errno, beyond):
        raise UsageError(f"[{text}]: there is no errno {beyond}")
    fixed = _number(match["by"], limits)
    if fixed is not None and not match["star"]:
        return Length(limit=fixed, beyond=beyond)
    limit = _number(match["limit"] or "", limits)
    if limit is None:
        raise UsageError(f"[{text}]: a length that an argument gives has a limit")
    return Length(limit, match["by"], match["star"] is not None, beyond)


def _number(text: str, limits: Mapping[str, int]) -> int | None:
    return int(text) if text.isdecimal() else limits.get(text)
