"""How sockets and modules are written, against what the kernel itself prints."""

from __future__ import annotations

import pytest

from dvisor.cli.sockets import end, owners, protocol, waits
from dvisor.guest.modules import Module, Region, taint_letters
from dvisor.guest.sock import Owner, Socket
from dvisor.guest.sockets_unix import socket_name


def a_socket(**fields: object) -> Socket:
    known = {"family": "inet", "type": "stream", "protocol": "tcp", "state": "LISTEN"}
    return Socket(**{**known, "netns": 1, "address": 2, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"/run/a.sock\0", "/run/a.sock"),
        (b"/run/not terminated", "/run/not terminated"),
        (b"\0abstract\0two", "@abstract@two"),
        (b"\0", "@"),
        (b"", ""),
        (b"/tmp/\xff\0", "/tmp/\\xff"),
    ],
)
def test_a_unix_address_is_written_as_proc_writes_it(raw: bytes, name: str) -> None:
    assert socket_name(raw) == name


@pytest.mark.parametrize(
    ("family", "address", "port", "text"),
    [
        ("inet", "10.0.0.1", 80, "10.0.0.1:80"),
        ("inet6", "::1", 80, "[::1]:80"),
        ("inet6", "::", 0, "-"),
        ("unix", "@a:b", 0, "@a:b"),
        ("netlink", "", 12, "12"),
    ],
)
def test_an_end_of_a_connection_is_written_unambiguously(
    family: str, address: str, port: int, text: str
) -> None:
    assert end(family, address, port) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "tcp"),
        ({"family": "inet6"}, "tcp6"),
        ({"family": "inet6", "type": "raw", "protocol": "icmpv6"}, "raw:icmpv6"),
        ({"family": "unix", "type": "seqpacket", "protocol": "unix"}, "unix:seqpacket"),
        ({"family": "packet", "protocol": "all"}, "packet:all"),
    ],
)
def test_a_protocol_names_its_family(fields: dict[str, object], text: str) -> None:
    assert protocol(a_socket(**fields)) == text


def test_only_listeners_and_bound_unconnected_sockets_wait() -> None:
    assert waits(a_socket())
    assert waits(a_socket(type="dgram", protocol="udp", state="CLOSE"))
    assert not waits(a_socket(type="dgram", protocol="udp", state="CLOSE", listed=False))
    assert not waits(a_socket(type="dgram", protocol="udp", state="ESTABLISHED"))
    assert not waits(a_socket(state="TIME_WAIT"))


def test_many_owners_are_counted_not_spelled_out() -> None:
    crowd = tuple(Owner(pid, 3, "worker") for pid in range(10, 15))
    assert owners(a_socket(owners=crowd)).endswith("worker(12, fd 3) and 2 more")
    assert owners(a_socket()) == "-"


def test_taints_are_the_letters_of_their_bits() -> None:
    assert taint_letters(1 << 0 | 1 << 12 | 1 << 13) == "POE"
    assert taint_letters(0) == ""
    assert taint_letters(1 << 63) == ""  # a bit that no kernel has


def test_a_module_holds_its_regions_and_not_what_is_after_them() -> None:
    module = Module(
        name="m",
        size_bytes=0x3000,
        state="live",
        refcount=0,
        used_by=(),
        permanent=False,
        base=0x1000,
        regions=(Region("text", 0x1000, 0x1000), Region("data", 0x8000, 0x2000)),
        taints="",
        version="",
        srcversion="",
        build_id="",
        listed=True,
        address=0x8100,
    )
    inside = (0x1000, 0x1FFF, 0x9FFF)
    outside = (0xFFF, 0x2000, 0xA000)
    assert [module.holds(address) for address in inside + outside] == [True] * 3 + [False] * 3
