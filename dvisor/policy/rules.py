"""Rules that say on which side the objects of a concealed process live.

The rule that says most wins: of paths the one with the longest text before its first wildcard, of
sockets the one for the smallest set of addresses; of equals the later. What no rule names is local:
rules fail open, to the guest, since a service that cannot start protects nobody.
"""

from __future__ import annotations

import ipaddress
import re
from functools import cache, cached_property
from typing import TypeAlias

import msgspec

from dvisor.errors import UsageError
from dvisor.policy.paths import normalise
from dvisor.verdicts import Side

FAMILIES = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16, "packet": 17, "alg": 38, "vsock": 40}
"""Address families by their name in a rule (AF_*, include/linux/socket.h)."""

AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class SocketAddress(msgspec.Struct, frozen=True):
    """An address as text: an IP address, or the path of a UNIX socket (``@`` for abstract ones)."""

    family: int
    host: str = ""
    port: int = 0


class PathRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The side of a folder and all in it (``prefix``), or of what matches ``pattern``.

    In a pattern ``*`` and ``?`` stay within a name, ``**`` crosses them.
    """

    side: Side
    prefix: str = ""
    pattern: str = ""

    def __post_init__(self) -> None:
        text = self.prefix or self.pattern
        if bool(self.prefix) == bool(self.pattern) or not text.startswith("/"):
            raise UsageError(f"path rule {text!r}: either a prefix or a pattern, from / on")
        if self.side is Side.BOTH:
            raise UsageError(f"path rule {text!r}: a path is local or proxied")

    @property
    def literal(self) -> int:
        """Characters that the rule fixes from the start."""
        if self.prefix:
            return len(normalise(self.prefix))
        return len(re.split(r"[*?]", self.pattern, maxsplit=1)[0])

    def matches(self, path: str) -> bool:
        """For a normalised path."""
        if self.pattern:
            return _expression(self.pattern).fullmatch(path) is not None
        prefix = normalise(self.prefix)
        return path == prefix or path.startswith(prefix.rstrip("/") + "/")


class SocketRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The side of a family's sockets; with ``address`` or ``port`` only of those for them.

    ``address``: a network (``10.0.0.0/8``), or a pattern of UNIX socket paths. ``port`` 0: any.
    """

    side: Side
    family: str
    address: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES or self.side is Side.BOTH or not 0 <= self.port < 65536:
            raise UsageError(
                f"socket rule {self.family!r}: a family of {', '.join(FAMILIES)}, local or"
                " proxied, and a port below 65536"
            )
        if self.address and self.family.startswith("inet"):
            _network(self.address)

    def weight(self, address: SocketAddress) -> tuple[int, int] | None:
        """How much the rule says of this address; None if it is for others."""
        if FAMILIES[self.family] != address.family or (self.port and self.port != address.port):
            return None
        exact = int(bool(self.port))
        if not self.address:
            return (-1, exact)
        if self.family == "unix":
            found = _expression(self.address).fullmatch(address.host)
            return (len(re.split(r"[*?]", self.address)[0]), exact) if found else None
        network = _network(self.address)
        try:
            inside = ipaddress.ip_address(address.host) in network
        except ValueError:
            return None
        return (network.prefixlen, exact) if inside else None


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """All rules of one service."""

    paths: tuple[PathRule, ...] = ()
    sockets: tuple[SocketRule, ...] = ()

    @cached_property
    def _by_weight(self) -> tuple[PathRule, ...]:
        numbered = sorted(enumerate(self.paths), key=lambda pair: (pair[1].literal, pair[0]))
        return tuple(rule for _, rule in reversed(numbered))

    def side_of_path(self, path: str) -> Side:
        """The side of a normalised path."""
        return next((rule.side for rule in self._by_weight if rule.matches(path)), Side.LOCAL)

    def side_of_family(self, family: int) -> Side:
        """Where a socket is made, before an address is known: by the rules without any."""
        return self._socket_side([rule for rule in self.sockets if not rule.address], family)

    def _socket_side(self, rules: list[SocketRule], family: int) -> Side:
        plain = [r for r in rules if FAMILIES[r.family] == family and not r.port]
        return plain[-1].side if plain else Side.LOCAL

    def side_of_address(self, address: SocketAddress) -> Side:
        """Where a socket for this address must be."""
        plain = plain_address(address)
        best, side = (-2, 0), self.side_of_family(plain.family)
        for rule in self.sockets:
            weight = rule.weight(plain)
            if weight is not None and weight >= best:
                best, side = weight, rule.side
        return side


def plain_address(address: SocketAddress) -> SocketAddress:
    """An IPv4 address that is written as an IPv6 one (::ffff:10.0.0.1) as what it is."""
    if address.family != AF_INET6:
        return address
    try:
        mapped = ipaddress.IPv6Address(address.host).ipv4_mapped
    except ValueError:
        return address
    return SocketAddress(AF_INET, str(mapped), address.port) if mapped else address


@cache
def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise UsageError(f"socket rule: {error}") from error


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    wild = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts), re.DOTALL)
