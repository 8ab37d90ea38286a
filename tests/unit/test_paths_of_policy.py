"""Paths and rules of a policy, by text alone."""

from __future__ import annotations

import pytest

from dvisor.errors import UsageError
from dvisor.policy.paths import beneath, normalise, own_descriptor
from dvisor.policy.rules import PathRule, Rules, SocketAddress, SocketRule
from dvisor.verdicts import Side

LOCAL, PROXIED = Side.LOCAL, Side.PROXIED


@pytest.mark.parametrize(
    ("path", "base", "expected"),
    [
        ("/var/log/syslog", "/", "/var/log/syslog"),
        ("//var//./log/", "/", "/var/log"),
        ("../log/x", "/var/spool", "/var/log/x"),
        ("../../../..", "/a/b", "/"),
        ("", "/a", "/a"),
        ("a/../..", "/x/y", "/x"),
        ("...", "/", "/..."),
    ],
)
def test_a_path_is_made_absolute(path: str, base: str, expected: str) -> None:
    assert normalise(path, base) == expected


def test_a_changed_root_comes_before_the_path() -> None:
    assert beneath("/srv/jail", normalise("/../etc/passwd")) == "/srv/jail/etc/passwd"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/proc/self/fd/7", 7),
        ("/proc/thread-self/fd/0", 0),
        ("/proc/42/fd/7", 7),
        ("/proc/43/fd/7", None),
        ("/dev/fd/3", 3),
        ("/dev/stderr", 2),
        ("/proc/self/fd", None),
        ("/proc/self/fd/7/x", None),
    ],
)
def test_a_path_that_names_an_own_descriptor_is_known(path: str, expected: int | None) -> None:
    assert own_descriptor(path, pid=42) == expected


RULES = Rules(
    paths=(
        PathRule(PROXIED, prefix="/var/log"),
        PathRule(LOCAL, prefix="/var/log/journal"),
        PathRule(PROXIED, pattern="/etc/*.secret"),
        PathRule(PROXIED, pattern="/srv/**/key?"),
    ),
    sockets=(
        SocketRule(PROXIED, "inet"),
        SocketRule(LOCAL, "inet", address="127.0.0.0/8"),
        SocketRule(PROXIED, "inet", address="127.0.0.0/8", port=514),
        SocketRule(PROXIED, "unix", address="/run/hidden/*"),
    ),
)


@pytest.mark.parametrize(
    ("path", "side"),
    [
        ("/var/log", PROXIED),
        ("/var/log/a/b", PROXIED),
        ("/var/logs", LOCAL),
        ("/var/log/journal/x", LOCAL),
        ("/etc/a.secret", PROXIED),
        ("/etc/a/b.secret", LOCAL),
        ("/srv/a/b/key1", PROXIED),
        ("/srv/a/b/key12", LOCAL),
        ("/", LOCAL),
    ],
)
def test_the_rule_that_says_most_decides_a_path(path: str, side: Side) -> None:
    assert RULES.side_of_path(path) is side


@pytest.mark.parametrize(
    ("address", "side"),
    [
        (SocketAddress(2, "192.0.2.1", 80), PROXIED),
        (SocketAddress(2, "127.0.0.1", 80), LOCAL),
        (SocketAddress(2, "127.0.0.1", 514), PROXIED),
        (SocketAddress(10, "::ffff:192.0.2.1", 80), PROXIED),
        (SocketAddress(10, "2001:db8::1", 80), LOCAL),
        (SocketAddress(2, "no address", 80), PROXIED),
        (SocketAddress(1, "/run/hidden/x"), PROXIED),
        (SocketAddress(1, "/run/other"), LOCAL),
        (SocketAddress(99, "x"), LOCAL),
    ],
)
def test_the_smallest_network_decides_an_address(address: SocketAddress, side: Side) -> None:
    assert RULES.side_of_address(address) is side


def test_a_family_s_rule_makes_the_socket() -> None:
    assert RULES.side_of_family(2) is PROXIED
    assert RULES.side_of_family(1) is LOCAL


def test_a_prefix_of_the_root_holds_for_all() -> None:
    assert Rules(paths=(PathRule(PROXIED, prefix="/"),)).side_of_path("/x") is PROXIED


def test_of_equal_rules_the_later_wins() -> None:
    rules = Rules(paths=(PathRule(PROXIED, prefix="/a"), PathRule(LOCAL, prefix="/a/")))
    assert rules.side_of_path("/a/b") is LOCAL


def test_rules_that_say_nothing_or_nonsense_are_refused() -> None:
    for keys in ({}, {"prefix": "a"}, {"prefix": "/a", "pattern": "/b"}):
        with pytest.raises(UsageError, match="path rule"):
            PathRule(PROXIED, **keys)
    with pytest.raises(UsageError, match="local or proxied"):
        PathRule(Side.BOTH, prefix="/a")
    with pytest.raises(UsageError, match="inet"):
        SocketRule(PROXIED, "ipx")
    with pytest.raises(UsageError, match="socket rule"):
        SocketRule(PROXIED, "inet", address="300.0.0.0/8")
