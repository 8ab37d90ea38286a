"""The one table of system calls, typed: ``table()[0].name == "read"``.

The knowledge is in ``syscalls.toml``; it is read once, strictly, and never changes.
``python -m dvisor.policy.syscalls --c`` prints the C header, ``--page`` docs/syscalls.md.
"""

from __future__ import annotations

import argparse
import enum
import sys
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

import msgspec

from dvisor.errors import NotFoundError
from dvisor.policy.prototype import Argument


class Where(enum.Enum):
    """Where a call goes; DEPENDS: as its deciders say."""

    LOCAL = "local"
    PROXIED = "proxied"
    BOTH = "both"
    DEPENDS = "depends"
    REFUSED = "refused"


class By(enum.Enum):
    """What a decider is."""

    DESCRIPTOR = "descriptor"
    PATH = "path"
    SOCKET_ADDRESS = "socket and address"
    DESCRIPTOR_SET = "set of descriptors"
    FAMILY = "family"
    CWD = "working directory"


class Waits(enum.Enum):
    """What a signal's handler does to a call that sleeps (signal(7)); NEVER: it is not long."""

    NEVER = "never"
    RESTARTS = "restarts"
    INTERRUPTS = "interrupts"


class Decider(msgspec.Struct, frozen=True):
    """An argument that decides. ``base``: the descriptor of a path or of an address."""

    by: By
    argument: str = ""
    base: str | None = None


class Disposition(msgspec.Struct, frozen=True):
    """Where to: ``errno`` (a name) if REFUSED, ``deciders`` if DEPENDS."""

    where: Where
    errno: str | None = None
    deciders: tuple[Decider, ...] = ()


class Case(msgspec.Struct, frozen=True):
    """An exception: if ``argument & mask == value`` the call goes elsewhere."""

    argument: str
    mask: int
    value: int
    disposition: Disposition
    if_proxied: bool  # only where the call would be proxied
    why: str


class SystemCall(msgspec.Struct, frozen=True):
    """One row. ``gives``: the kind of result; ``fills``: the array of which it is the length."""

    number: int
    name: str
    family: str
    arguments: tuple[Argument, ...]
    gives: str
    disposition: Disposition
    fills: str | None = None
    waits: Waits = Waits.NEVER
    mixed: str | None = None  # deciders on different sides: an errno's name, or "both"
    if_proxied: str | None = None  # the errno's name that refuses a proxied object
    follow: bool = False
    cases: tuple[Case, ...] = ()
    commands: str | None = None
    new: bool = False
    gone: bool = False
    why: str = ""

    def argument(self, name: str) -> Argument:
        """NotFoundError if the call has none of that name."""
        for each in self.arguments:
            if each.name == name:
                return each
        raise NotFoundError(f"{self.name} has no argument {name}")


class Command(msgspec.Struct, frozen=True):
    """A sub-command of fcntl, ioctl, prctl or a socket option. ``errno``: it is refused."""

    name: str
    key: tuple[int, ...]
    value: Argument | None
    gives: str = "value"
    errno: str | None = None
    why: str = ""


class Commands(msgspec.Struct, frozen=True):
    """Sub-commands by the values of the ``selector`` arguments, which explain ``argument``."""

    selector: tuple[str, ...]
    argument: str
    unknown_errno: str | None
    why: str
    rows: Mapping[tuple[int, ...], Command]


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bound, and where it comes from."""

    value: int
    why: str


class TypeSize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A type's bytes on x86-64, and its name in the host's headers and in the kernel's BTF.

    ``variable``: the size is the most; ``nested``: it holds pointers to more data.
    """

    size: int
    c: str | None = None
    headers: list[str] = []
    btf: str = ""
    variable: bool = False
    nested: bool = False
    why: str = ""


class Family(msgspec.Struct, frozen=True):
    """Calls that belong together, and what is to be said of them all."""

    title: str
    about: str
    calls: tuple[SystemCall, ...]


class Document(msgspec.Struct, frozen=True):
    """All of ``syscalls.toml``."""

    limits: Mapping[str, Limit]
    types: Mapping[str, TypeSize]
    families: tuple[Family, ...]
    commands: Mapping[str, Commands]


@cache
def document() -> Document:
    """The whole table. UsageError if the file is not as it must be."""
    from dvisor.policy import rows

    text = resources.files(__package__).joinpath("syscalls.toml").read_text()
    return rows.load(text)


@cache
def table() -> Mapping[int, SystemCall]:
    """All system calls by number, in that order."""
    calls = [call for family in document().families for call in family.calls]
    by_number = {call.number: call for call in sorted(calls, key=lambda call: call.number)}
    return MappingProxyType(by_number)


@cache
def by_name() -> Mapping[str, SystemCall]:
    """All system calls by the kernel's name of them."""
    return MappingProxyType({call.name: call for call in table().values()})


def system_call(name: str) -> SystemCall:
    """The call of that name. NotFoundError."""
    call = by_name().get(name)
    if call is None:
        raise NotFoundError(f"x86-64 has no system call {name!r} (names as in syscall_64.tbl)")
    return call


def main(arguments: list[str] | None = None) -> None:
    """Print what is made from the table."""
    from dvisor.policy import header, page

    parser = argparse.ArgumentParser(prog="python -m dvisor.policy.syscalls")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--c", dest="make", action="store_const", const=header.text)
    what.add_argument("--page", dest="make", action="store_const", const=page.text)
    sys.stdout.write(parser.parse_args(arguments).make(document()))


if __name__ == "__main__":
    main()
