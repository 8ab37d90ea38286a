"""What a policy answers to an event: values without behaviour, which the machine carries out."""

from __future__ import annotations

import enum
import errno as errnos
from typing import TypeAlias

import msgspec


class Side(enum.Enum):
    """Where an object of a concealed process lives. Only an epoll instance may be on both sides."""

    LOCAL = "local"
    PROXIED = "proxied"
    BOTH = "both"


class Local(msgspec.Struct, frozen=True):
    """The guest's kernel does the call. ``follow``: the proxy is told if it succeeds."""

    follow: bool = False


class Proxied(msgspec.Struct, frozen=True):
    """The proxy does the call. ``paths``: absolute, in the order of the arguments that decided."""

    paths: tuple[str, ...] = ()
    follow: bool = False


class Both(msgspec.Struct, frozen=True):
    """Each side does the call for its own objects; answers are merged, or the guest's is given."""

    follow: bool = False


class Moved(msgspec.Struct, frozen=True):
    """The socket is made anew on ``side`` under its number, then the call is done there."""

    descriptor: int
    side: Side


class Refused(msgspec.Struct, frozen=True):
    """The call returns ``-errno`` and does nothing. ``reason`` is for the operator only."""

    errno: int
    reason: str

    @property
    def name(self) -> str:
        """The errno's; of 95, which has two, the one that Linux's sources use."""
        same = self.errno == errnos.EOPNOTSUPP
        return "EOPNOTSUPP" if same else errnos.errorcode.get(self.errno, str(self.errno))


Verdict: TypeAlias = Local | Proxied | Both | Moved | Refused
