"""Which side does a system call of a concealed process: local, proxied, or both.

``decide`` knows the process only by what is passed in: pure, total (every number gets a verdict),
and by the table, not by code for single calls. Calls that the table does not know fail closed
(ENOSYS, from which programs fall back); objects that no rule names fail open, to the guest.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from dvisor.policy.paths import MAX_PATH, beneath, normalise, own_descriptor
from dvisor.policy.rules import Rules, SocketAddress
from dvisor.policy.syscalls import (
    By,
    Case,
    Decider,
    Disposition,
    SystemCall,
    Where,
    document,
    table,
)
from dvisor.verdicts import Both, Local, Moved, Proxied, Refused, Side, Verdict

AT_FDCWD = -100
X32 = 0x4000_0000  # __X32_SYSCALL_BIT, arch/x86/include/uapi/asm/unistd.h


class Descriptor(msgspec.Struct, frozen=True):
    """An open descriptor. ``path``: of a directory, where known, absolute and within the root.

    ``fresh``: a socket that was neither bound nor connected, which may still change its side.
    """

    side: Side
    path: str | None = None
    fresh: bool = False


class Process(msgspec.Struct, frozen=True):
    """What is known of the process that calls. Descriptors that are not listed are local."""

    descriptors: Mapping[int, Descriptor] = {}
    cwd: str = "/"
    root: str = "/"
    pid: int | None = None


class Message(msgspec.Struct, frozen=True):
    """What of a msghdr decides: where it goes to, and the descriptors that SCM_RIGHTS passes."""

    address: SocketAddress | None = None
    rights: tuple[int, ...] = ()


Value: TypeAlias = int | str | SocketAddress | Message | Sequence[int] | Sequence[Message] | None
"""An argument as read: a number, a path's text, an address, a message, descriptors of a set."""


class _Found(msgspec.Struct, frozen=True):
    """One object that decides: its side, and its path or the socket that would have to move."""

    side: Side
    path: str | None = None
    move: int | None = None
    passed: bool = False  # a descriptor in SCM_RIGHTS


def decide(number: int, arguments: Mapping[str, Value], process: Process, rules: Rules) -> Verdict:
    """The verdict on one call; ``arguments`` by the table's names. What lacks counts as absent.

    The call's number and its arguments may be as the registers hold them: of the number, and of
    descriptors, families and commands, only the low 32 bits count, as for Linux (movslq %eax in
    arch/x86/entry/entry_64.S; ``int`` in the definitions).
    """
    number = _low_half(number)
    call = table().get(number)
    if call is None:
        return _unknown(number)
    for case in call.cases:
        if not case.if_proxied and _holds(case, arguments):
            return _plain(call, case.disposition, case.why)
    if call.disposition.where is not Where.DEPENDS:
        return _plain(call, call.disposition, call.why)
    try:
        found = _objects(call, arguments, process, rules)
    except _TooLongError:
        return Refused(errno.ENAMETOOLONG, f"{call.name}: the path has no end within {MAX_PATH}")
    return _merged(call, arguments, found)


class _TooLongError(Exception):
    """A path that Linux would refuse as well."""


def _unknown(number: int) -> Verdict:
    if number >= 0 and number & X32:
        return Refused(errno.ENOSYS, "x32 calls are not proxied: programs fall back from ENOSYS")
    return Refused(errno.ENOSYS, f"system call {number} is newer than the table, or none")


def _plain(call: SystemCall, to: Disposition, why: str) -> Verdict:
    if to.where is Where.REFUSED and to.errno:
        return _refused(call, to.errno, why)
    if to.where is Where.BOTH:
        return Both(call.follow)
    return Proxied(follow=call.follow) if to.where is Where.PROXIED else Local(call.follow)


def _refused(call: SystemCall, name: str, why: str) -> Refused:
    # Where the row gives no reason of its own, its family's holds.
    families = document().families
    reason = why or next(each.about for each in families if each.title == call.family)
    return Refused(getattr(errno, name), f"{call.name}: {reason}")


def _merged(call: SystemCall, arguments: Mapping[str, Value], found: list[_Found]) -> Verdict:
    """One verdict from the sides of all objects that decide."""
    sides = {each.side for each in found if not each.passed}
    moves = {(each.move, each.side) for each in found if each.move is not None}
    if len(moves) == 1 and {each.side for each in found[1:]} == {side for _, side in moves}:
        ((number, side),) = moves
        return Moved(number, side)
    if len(sides) == 1 and any(each.passed and each.side not in sides for each in found):
        return _refused(call, "EBADF", "SCM_RIGHTS of a descriptor of the other side")
    if len(sides) > 1 or Side.BOTH in sides:
        if call.mixed == "both":
            return Both(call.follow)
        if call.mixed:
            return _refused(call, call.mixed, f"its objects are on different sides. {call.why}")
        # Of both sides is only an epoll instance: the guest knows what it cannot do with one.
        return Local(call.follow)
    if sides != {Side.PROXIED}:
        return Local(call.follow)
    return _proxied(call, arguments, tuple(each.path for each in found if each.path))


def _proxied(call: SystemCall, arguments: Mapping[str, Value], paths: tuple[str, ...]) -> Verdict:
    if call.if_proxied:
        return _refused(call, call.if_proxied, f"not done on proxied objects. {call.why}")
    for case in call.cases:
        if case.if_proxied and _holds(case, arguments):
            return _plain(call, case.disposition, case.why)
    if call.commands:
        commands = document().commands[call.commands]
        key = tuple(_number(arguments, name) & 0xFFFF_FFFF for name in commands.selector)
        row = commands.rows.get(key)
        name = row.errno if row else commands.unknown_errno
        if name:
            what = row.name if row else f"the command {key} is not in the table"
            return _refused(call, name, f"{what}: {row.why if row else commands.why}")
    return Proxied(paths, call.follow)


# -- the objects that decide ---------------------------------------------------------------------


def _objects(
    call: SystemCall, arguments: Mapping[str, Value], process: Process, rules: Rules
) -> list[_Found]:
    found: list[_Found] = []
    for decider in call.disposition.deciders:
        value = arguments.get(decider.argument)
        if decider.by is By.CWD:
            found.append(_path(".", process.cwd, process, rules))
        elif decider.by is By.FAMILY:
            found.append(_Found(rules.side_of_family(_int(value))))
        elif decider.by is By.DESCRIPTOR:
            found.append(_Found(_side(_int(value), process)))
        elif decider.by is By.DESCRIPTOR_SET:
            members = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
            # Negative entries of a pollfd array are passed over, as Linux does.
            numbers = [each for each in members if isinstance(each, int) and each >= 0]
            found += [_Found(_side(each, process)) for each in numbers]
        elif decider.by is By.SOCKET_ADDRESS:
            found += _socket(decider, arguments, process, rules)
        else:
            found.append(_named(decider, arguments, process, rules))
    return found


def _named(
    decider: Decider, arguments: Mapping[str, Value], process: Process, rules: Rules
) -> _Found:
    """What a path names, from a directory's descriptor where the call has one."""
    value = arguments.get(decider.argument)
    path = value if isinstance(value, str) else ""
    if len(path.encode("utf-8", "surrogateescape")) >= MAX_PATH:
        raise _TooLongError
    base = _number(arguments, decider.base) if decider.base else AT_FDCWD
    if path.startswith("/") or base == AT_FDCWD:
        if not path:
            # The directory itself with AT_EMPTY_PATH; else ENOENT, which both sides say.
            return _path(".", process.cwd, process, rules) if decider.base else _Found(Side.LOCAL)
        return _path(path, process.cwd, process, rules)
    directory = process.descriptors.get(base)
    if directory is None or directory.path is None or not path:
        # A directory of which no path is known has been opened before the process was enrolled.
        return _Found(_side(base, process))
    return _path(path, directory.path, process, rules)


def _path(path: str, base: str, process: Process, rules: Rules) -> _Found:
    inside = normalise(path, base)
    number = own_descriptor(inside, process.pid)
    if number is not None and number in process.descriptors:
        return _Found(process.descriptors[number].side, inside)
    whole = beneath(process.root, inside)
    return _Found(rules.side_of_path(whole), whole)


def _socket(
    decider: Decider, arguments: Mapping[str, Value], process: Process, rules: Rules
) -> list[_Found]:
    """The socket, the addresses that it is to reach, and the descriptors that it passes on."""
    number = _number(arguments, decider.base or "")
    side = _side(number, process)
    found = [_Found(side)]
    known = process.descriptors.get(number)
    for message in _messages(arguments.get(decider.argument)):
        found += [_Found(_side(each, process), passed=True) for each in message.rights]
        # A socket from before the enrolment stays in the guest; AF_UNSPEC only disconnects.
        if message.address is None or message.address.family == 0 or known is None:
            continue
        wanted = rules.side_of_address(_absolute(message.address, process))
        moves = wanted is not side and known.fresh
        found.append(_Found(wanted, move=number if moves else None))
    return found


def _messages(value: Value) -> list[Message]:
    if isinstance(value, SocketAddress):
        return [Message(value)]
    if isinstance(value, Message):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [each for each in value if isinstance(each, Message)]
    return []


def _absolute(address: SocketAddress, process: Process) -> SocketAddress:
    """The path of a UNIX socket made absolute; abstract and unnamed ones as they are."""
    if address.family != 1 or not address.host or address.host.startswith("@"):
        return address
    path = beneath(process.root, normalise(address.host, process.cwd))
    return SocketAddress(address.family, path)


def _side(number: int, process: Process) -> Side:
    """A number that is not known is the guest's, whose kernel says EBADF if it is not open."""
    descriptor = process.descriptors.get(number)
    return descriptor.side if descriptor else Side.LOCAL


def _number(arguments: Mapping[str, Value], name: str) -> int:
    return _int(arguments.get(name))


def _holds(case: Case, arguments: Mapping[str, Value]) -> bool:
    value = arguments.get(case.argument)
    return isinstance(value, int) and value & case.mask == case.value


def _int(value: Value) -> int:
    return _low_half(value) if isinstance(value, int) else -1


def _low_half(register: int) -> int:
    """A register as a C ``int``: compilers leave anything in its upper half."""
    return ((register & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000
