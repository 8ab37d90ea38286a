"""The table as a page of the documentation: docs/syscalls.md."""

from __future__ import annotations

from collections.abc import Iterator

from dvisor.policy.prototype import Argument, Direction
from dvisor.policy.syscalls import (
    By,
    Commands,
    Decider,
    Disposition,
    Document,
    Family,
    SystemCall,
    Waits,
    Where,
)

_INTRODUCTION = """\
# System calls

Made from `dvisor/policy/syscalls.toml` by `python -m dvisor.policy.syscalls --page`: do not edit.

What happens to each system call (x86-64, Linux 6.1 to 7.2) that a concealed process makes:
**local**, the guest's kernel does it; **proxied**, the proxy outside of the VM does it; **both**,
each side does it; **by** something, the named arguments decide; **refused**, it returns that errno.
A number that is not listed, or is an x32 one, is refused with ENOSYS.

Arguments: `>` is read from the process, `<` is written to it, `<>` both; `?` may be NULL; in
brackets the length and its limit. A call that *restarts* goes on after a signal whose handler has
SA_RESTART; one that *interrupts* returns EINTR after any handler. *Followed*: the proxy is told of
it, because it changes what it keeps for the process. *new*: not yet in 6.1; *gone*: no more in 7.2.
"""
_ARROWS = {Direction.IN: ">", Direction.OUT: "<", Direction.INOUT: "<>", Direction.VALUE: ""}


def text(document: Document) -> str:
    """The whole page, in Markdown."""
    lines = [_INTRODUCTION]
    for family in document.families:
        lines += _family(family)
    lines += ["", "# Sub-commands", "", "Of proxied descriptors; the guest decides for its own."]
    for name, commands in document.commands.items():
        lines += _commands(name, commands)
    lines += ["", "# Limits", "", "| name | value | source |", "|---|---|---|"]
    lines += [f"| {name} | {each.value} | {each.why} |" for name, each in document.limits.items()]
    return "\n".join(lines) + "\n"


def _family(family: Family) -> Iterator[str]:
    yield from ("", f"## {family.title}", "", family.about, "")
    yield "| nr | name | arguments | gives | goes | notes |"
    yield "|---|---|---|---|---|---|"
    yield from map(_row, sorted(family.calls, key=lambda call: call.number))


def _row(call: SystemCall) -> str:
    taken = ", ".join(_argument(each) for each in call.arguments)
    gives = f"{call.gives} of {call.fills}" if call.fills else call.gives
    cells = (str(call.number), f"`{call.name}`", f"`{taken}`" if taken else "", gives)
    return "| " + " | ".join((*cells, _goes(call), "; ".join(_notes(call)))) + " |"


def _argument(argument: Argument) -> str:
    arrow = _ARROWS[argument.direction]
    mark = "?" if argument.nullable else ""
    return f"{arrow}{argument.kind}{mark} {argument.name}{_length(argument)}"


def _length(argument: Argument) -> str:
    length = argument.length
    if length is None:
        return ""
    if length.by is None:
        return f"[{length.limit}]"
    return f"[{'*' * length.pointed}{length.by} <= {length.limit}]"


def _goes(call: SystemCall) -> str:
    parts = [_where(call.disposition)]
    if call.mixed:
        parts.append("if on both sides: " + ("both" if call.mixed == "both" else call.mixed))
    if call.if_proxied:
        parts.append(f"if proxied: {call.if_proxied}")
    return "; ".join(parts)


def _where(disposition: Disposition) -> str:
    if disposition.where is Where.DEPENDS:
        return "by " + ", ".join(_decider(each) for each in disposition.deciders)
    if disposition.where is Where.REFUSED:
        return f"refused: {disposition.errno}"
    return str(disposition.where.value)


def _decider(decider: Decider) -> str:
    if decider.by is By.CWD:
        return "the working directory"
    joint = "@" if decider.by is By.SOCKET_ADDRESS else "/"
    base = "" if decider.base is None else f"{decider.base}{joint}"
    return f"{base}{decider.argument}"


def _notes(call: SystemCall) -> Iterator[str]:
    flags = (("new", call.new), ("gone", call.gone), ("followed", call.follow))
    yield from (name for name, holds in flags if holds)
    if call.waits is not Waits.NEVER:
        yield call.waits.value
    if call.commands:
        yield f"[commands](#{call.commands})"
    for case in call.cases:
        when = f"if {case.argument} & {case.mask:#x} is {case.value:#x}"
        yield f"{when}: {_where(case.disposition)} ({case.why})"
    if call.why:
        yield call.why


def _commands(name: str, commands: Commands) -> Iterator[str]:
    other = f"refused: {commands.unknown_errno}" if commands.unknown_errno else "local"
    yield from ("", f"## {name}", "", f"Any other: {other} ({commands.why}).", "")
    yield f"| {', '.join(commands.selector)} | name | {commands.argument} | goes | notes |"
    yield "|---|---|---|---|---|"
    for row in commands.rows.values():
        key = ", ".join(map(str, row.key))
        value = f"`{_value(row.value)}`" if row.value else ""
        goes = f"refused: {row.errno}" if row.errno else "as the call"
        yield f"| {key} | {row.name} | {value} | {goes} | {row.why} |"


def _value(argument: Argument) -> str:
    return f"{_ARROWS[argument.direction]}{argument.kind}{_length(argument)}"
