"""From the text of ``syscalls.toml`` to typed rows; anything amiss is a UsageError."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import msgspec

from dvisor.errors import UsageError
from dvisor.policy.prototype import NUMBERS, Argument, Direction, argument, arguments
from dvisor.policy.syscalls import (
    By,
    Case,
    Command,
    Commands,
    Decider,
    Disposition,
    Document,
    Family,
    Limit,
    SystemCall,
    TypeSize,
    Waits,
    Where,
)

RESULTS = ("zero", "fd", "count", "offset", "address", "pid", "id", "value", "none")


class _When(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    argument: str
    mask: int
    value: int = msgspec.field(name="is")
    to: str
    why: str
    of: str = ""


class _Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nr: int
    args: str
    gives: str = ""
    to: str = ""
    waits: Waits = Waits.NEVER
    mixed: str | None = None
    if_proxied: str | None = None
    follow: bool = False
    when: list[_When] = []
    commands: str | None = None
    new: bool = False
    gone: bool = False
    why: str = ""


class _Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    about: str
    calls: dict[str, _Call]
    to: str = ""
    gives: str = "zero"


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nr: int
    value: str
    level: int | None = None
    to: str = "as the call"
    gives: str = "value"
    why: str = ""


class _Commands(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    selector: list[str]
    argument: str
    unknown: str
    why: str
    rows: dict[str, _Command]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limits: dict[str, Limit]
    types: dict[str, TypeSize]
    family: list[_Family]
    commands: dict[str, _Commands]


def load(text: str) -> Document:
    """The document of that text. UsageError names the row that is wrong."""
    try:
        read = msgspec.toml.decode(text, type=_File)
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"syscalls.toml: {error}") from error
    reader = _Reader(read)
    families = tuple(reader.family(each) for each in read.family)
    calls = [call for family in families for call in family.calls]
    for what in ("number", "name"):
        kept = [getattr(call, what) for call in calls]
        if twice := {each for each in kept if kept.count(each) > 1}:
            raise UsageError(f"syscalls.toml: more than one row has the {what} {twice}")
    commands = {name: reader.commands(each) for name, each in read.commands.items()}
    return Document(read.limits, read.types, families, commands)


class _Reader:
    def __init__(self, read: _File) -> None:
        self.sizes = {name: each.size for name, each in read.types.items()}
        self.limits = {name: each.value for name, each in read.limits.items()}
        self.command_names = set(read.commands)

    def family(self, family: _Family) -> Family:
        calls = tuple(self._named(name, row, family) for name, row in family.calls.items())
        return Family(family.title, family.about, calls)

    def _named(self, name: str, row: _Call, family: _Family) -> SystemCall:
        try:
            return self._call(name, row, family)
        except UsageError as error:
            raise UsageError(f"syscalls.toml: {name}: {error}") from error

    def _call(self, name: str, row: _Call, family: _Family) -> SystemCall:
        parsed = {each.name: each for each in arguments(row.args, self.sizes, self.limits)}
        gives, fills = _result(row.gives or family.gives, parsed)
        where = disposition(row.to or family.to, parsed)
        if row.if_proxied:
            _errno(row.if_proxied)
        if row.commands and row.commands not in self.command_names:
            raise UsageError(f"there are no commands {row.commands}")
        fields: dict[str, Any] = {
            "fills": fills,
            "waits": row.waits,
            "mixed": _mixed(row.mixed, where),
            "if_proxied": row.if_proxied,
            "follow": row.follow,
            "cases": tuple(_case(when, parsed) for when in row.when),
            "commands": row.commands,
            "new": row.new,
            "gone": row.gone,
            "why": row.why,
        }
        taken = tuple(parsed.values())
        return SystemCall(row.nr, name, family.title, taken, gives, where, **fields)

    def commands(self, read: _Commands) -> Commands:
        rows = [self._command(name, each) for name, each in read.rows.items()]
        keys = [row.key for row in rows]
        if len(set(keys)) < len(keys) or {len(key) for key in keys} != {len(read.selector)}:
            raise UsageError(f"syscalls.toml: commands by {read.selector}: a key twice, or in part")
        selector = tuple(read.selector)
        unknown = _command_errno(read.unknown)
        return Commands(selector, read.argument, unknown, read.why, {row.key: row for row in rows})

    def _command(self, name: str, row: _Command) -> Command:
        key = (row.nr,) if row.level is None else (row.level, row.nr)
        value = self._value(row.value) if row.value else None
        if row.gives not in RESULTS:
            raise UsageError(f"syscalls.toml: {name}: gives = {row.gives!r}")
        return Command(name, key, value, row.gives, _command_errno(row.to), row.why)

    def _value(self, text: str) -> Argument:
        """A command's argument: as in a prototype, nameless; options go both ways."""
        kind, bracket, length = text.partition("[")
        if not bracket and " " not in kind and kind in self.sizes and kind not in NUMBERS - {"int"}:
            return Argument("value", kind, Direction.INOUT, element_bytes=self.sizes[kind])
        if bracket and " " not in kind and kind in self.sizes:
            kind = f"inout {kind}"
        return argument(f"{kind} value{bracket}{length}", self.sizes, self.limits)


def disposition(text: str, parsed: Mapping[str, Argument]) -> Disposition:
    """What the words of ``to`` mean. UsageError."""
    words = text.split(maxsplit=1)
    if words[:1] == ["by"] and len(words) > 1:
        deciders = tuple(_decider(each.strip(), parsed) for each in words[1].split(","))
        return Disposition(Where.DEPENDS, deciders=deciders)
    if words[:1] == ["refused"] and len(words) > 1:
        return Disposition(Where.REFUSED, _errno(words[1]))
    if text not in ("local", "proxied", "both"):
        raise UsageError(f"to = {text!r}: local, proxied, both, by ARGUMENT or refused ERRNO")
    return Disposition(Where(text))


def _decider(text: str, parsed: Mapping[str, Argument]) -> Decider:
    if text == "cwd":
        return Decider(By.CWD)
    base, slash, path = text.partition("/")
    socket, at, address = text.partition("@")
    names = [base, path] if slash else [socket, address] if at else [text]
    if missing := [name for name in names if name not in parsed]:
        raise UsageError(f"to = by {text}: no argument {missing[0]}")
    kinds = [parsed[name].kind for name in names]
    if slash and kinds[0] in ("dirfd", "fd") and kinds[1] == "path":
        return Decider(By.PATH, path, base)
    if at and kinds[0] == "fd" and kinds[1] in ("sockaddr", "msghdr", "mmsghdr"):
        return Decider(By.SOCKET_ADDRESS, address, socket)
    simple = {"fd": By.DESCRIPTOR, "dirfd": By.DESCRIPTOR, "path": By.PATH}
    simple |= {"pollfd": By.DESCRIPTOR_SET, "bits": By.DESCRIPTOR_SET}
    if text == "family":
        return Decider(By.FAMILY, text)
    if len(names) > 1 or kinds[0] not in simple:
        raise UsageError(f"to = by {text}: a {kinds[-1]} cannot decide")
    return Decider(simple[kinds[0]], text)


def _result(text: str, parsed: Mapping[str, Argument]) -> tuple[str, str | None]:
    kind, _, fills = text.partition(" ")
    if kind not in RESULTS:
        raise UsageError(f"gives = {text!r}: one of {', '.join(RESULTS)}")
    if fills and (fills not in parsed or parsed[fills].direction is not Direction.OUT):
        raise UsageError(f"gives = {text!r}: {fills} is no array that is written")
    return kind, fills or None


def _mixed(text: str | None, where: Disposition) -> str | None:
    several = len(where.deciders) > 1 or any(
        each.by in (By.DESCRIPTOR_SET, By.SOCKET_ADDRESS) for each in where.deciders
    )
    if several and not text:
        raise UsageError("several objects decide: say in `mixed` what if they disagree")
    if text and text != "both":
        _errno(text)
        if not several:
            raise UsageError(f"mixed = {text!r}: only one object decides")
    return text


def _case(when: _When, parsed: Mapping[str, Argument]) -> Case:
    if when.argument not in parsed or when.of not in ("", "proxied"):
        raise UsageError(f"when: no argument {when.argument}, or of = {when.of!r}")
    where = disposition(when.to, parsed)
    return Case(when.argument, when.mask, when.value, where, when.of == "proxied", when.why)


def _command_errno(text: str) -> str | None:
    if text.startswith("refused "):
        return _errno(text.removeprefix("refused "))
    if text not in ("as the call", "local"):
        raise UsageError(f"to = {text!r}: as the call, local, or refused ERRNO")
    return None


def _errno(name: str) -> str:
    if not hasattr(errno, name):
        raise UsageError(f"there is no errno {name}")
    return name
