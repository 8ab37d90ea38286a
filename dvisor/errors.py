"""Every error that dvisor raises on purpose, named by what the caller can do about it.

One root, so that ``except dvisor.DvisorError`` is enough. The command line prints the message
alone and exits with the class's ``exit_code``; a traceback is therefore always a bug of ours.
"""

from __future__ import annotations


class DvisorError(Exception):
    """Root of all errors that dvisor raises on purpose."""

    exit_code = 1


class UsageError(DvisorError):
    """What the user wrote (an option, a file, a name) cannot be used: correct it."""

    exit_code = 2


class NotFoundError(DvisorError):
    """The thing named (VM, image, task, symbol, type) does not exist here."""

    exit_code = 3


class StateError(DvisorError):
    """The call came at a wrong time: the machine or the guest is not in a state that allows it."""

    exit_code = 4


class HostError(DvisorError):
    """This host lacks something (a program, a permission, disk space): the message says what."""

    exit_code = 5


class EngineError(DvisorError):
    """The VMM failed, went away, or answered what its documentation does not allow."""

    exit_code = 6


class UnsupportedError(DvisorError):
    """This engine, kernel or build does not offer what was asked: the message names what lacks."""

    exit_code = 7


class GuestDataError(DvisorError):
    """The guest's memory does not hold what it should: damaged, hostile, or changing while read."""

    exit_code = 8


class GuestMemoryError(GuestDataError):
    """A guest address that nothing is mapped at, or that lies outside the guest's RAM."""

    def __init__(self, message: str, address: int) -> None:
        super().__init__(message)
        self.address = address


class AttachError(DvisorError):
    """No guest could be opened. ``tried``: each attempt and what was seen; ``todo``: the remedy."""

    exit_code = 9

    def __init__(self, target: str, tried: list[tuple[str, str]], todo: str) -> None:
        self.target = target
        self.tried = tried
        self.todo = todo
        lines = [f"cannot attach to {target}"]
        lines += [f"  tried {what}: {seen}" for what, seen in tried]
        lines.append(f"  to do: {todo}")
        super().__init__("\n".join(lines))
