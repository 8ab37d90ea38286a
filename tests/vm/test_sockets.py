"""Sockets from beneath against the guest's own /proc/net, in every network namespace."""

from __future__ import annotations

import json
import re
import socket
import struct
from typing import Any

import pytest

from dvisor.guest.sock import STATES, Socket
from dvisor.guest.sockets_link import ETHER_TYPES, NETLINK_PROTOCOLS
from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

_PROC = """
import glob, json, os, re
tables, owners = {}, []
for path in glob.glob("/proc/[0-9]*"):
    try:
        namespace = re.search("[0-9]+", os.readlink(path + "/ns/net"))[0]
        if namespace not in tables:
            tables[namespace] = {
                name: open(f"{path}/net/{name}", "rb").read().decode("utf-8", "backslashreplace")
                for name in os.listdir(path + "/net")
                if re.fullmatch("(tcp|udp|udplite|raw)6?|unix|netlink|packet", name)
            }
        for fd in os.listdir(path + "/fd"):
            link = os.readlink(f"{path}/fd/{fd}")
            if link.startswith("socket:"):
                owners.append([int(path[6:]), int(fd), int(link[8:-1])])
    except (FileNotFoundError, ProcessLookupError):
        pass
print(json.dumps([tables, owners]))
"""
_UNIX_TYPES = {"stream": 1, "dgram": 2, "seqpacket": 5}
Row = tuple[object, ...]


def inside(guest: RunningGuest) -> tuple[set[Row], set[Row]]:
    """(sockets, owners) as the guest's /proc says."""
    tables, owners = json.loads(guest.python(_PROC))
    rows: set[Row] = set()
    for namespace, files in tables.items():
        for name, text in files.items():
            for line in text.splitlines()[1:]:
                rows.add((int(namespace), name, *_parsed(name, line)))
    return rows, {tuple(owner) for owner in owners}


def _parsed(name: str, line: str) -> Row:
    if name == "unix":
        found = re.match(r"\S+: \S+ \S+ (\S+) (\S+) (\S+) +(\d+)(?: (.*))?$", line)
        assert found
        flags, kind, state, inode, path = found.groups()
        return int(flags, 16) != 0, int(kind, 16), int(state, 16), int(inode), path or ""
    fields = line.split()
    if name == "netlink":
        protocol = int(fields[1])
        return NETLINK_PROTOCOLS.get(protocol, str(protocol)), int(fields[2]), int(fields[9])
    if name == "packet":
        ether_type = int(fields[3], 16)
        shown = ETHER_TYPES.get(ether_type, f"{ether_type:#06x}")
        return shown, int(fields[4]), int(fields[7]), int(fields[8])
    (local, port), (remote, remote_port) = _end(fields[1]), _end(fields[2])
    tx_queue, rx_queue = (int(part, 16) for part in fields[4].split(":"))
    inode = int(fields[9])
    if name.startswith("raw"):
        port = 0  # /proc prints the protocol there
    uid = int(fields[7]) if inode else None  # of an orphan 6.1 prints 0, 7.2 who made it
    state = STATES[int(fields[3], 16)]
    return local, port, remote, remote_port, state, rx_queue, tx_queue, uid, inode


def _end(text: str) -> tuple[str, int]:
    address, port = text.split(":")
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    raw = struct.pack(f"<{len(words)}I", *words)
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw), int(port, 16)


def beneath(guest: RunningGuest) -> tuple[set[Row], set[Row]]:
    """The same by dvisor."""
    with guest.stopped():
        found = guest.guest.sockets()
    assert found.complete, found.problems
    rows = {(s.netns, *row) for s in found if s.listed for row in [_row(s)]}
    return rows, {(o.pid, o.fd, s.inode) for s in found for o in s.owners}


def _row(s: Socket) -> Row:
    if s.family == "unix":
        connected = s.state == "ESTABLISHED"
        state = (3 if connected else 1) if s.inode else (2 if connected else 4)  # SS_*
        return "unix", s.state == "LISTEN", _UNIX_TYPES[s.type], state, s.inode, s.local
    if s.family == "netlink":
        return "netlink", s.protocol, s.local_port, s.inode
    if s.family == "packet":
        return "packet", s.protocol, s.interface, s.uid, s.inode
    table = ("raw" if s.type == "raw" else s.protocol) + "6" * (s.family == "inet6")
    ends = (s.local, s.local_port, s.remote, s.remote_port)
    uid = s.uid if s.inode else None
    return table, *ends, s.state, s.rx_queue, s.tx_queue, uid, s.inode


def test_every_socket_and_owner_is_as_the_guest_itself_says(matrix_guest: RunningGuest) -> None:
    before = inside(matrix_guest)
    seen = beneath(matrix_guest)
    after = inside(matrix_guest)
    for earlier, now, later in zip(before, seen, after, strict=True):
        assert earlier & later <= now, earlier & later - now
        assert now <= earlier | later, now - (earlier | later)
    tables = {row[1] for row in seen[0]}
    assert tables >= {"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "unix", "netlink"}
    assert len({row[0] for row in seen[0]}) > 1, "the container's network namespace is missing"
    states = {row[6] for row in seen[0] if str(row[1]).startswith("tcp")}
    assert states >= {"LISTEN", "ESTABLISHED", "FIN_WAIT2", "CLOSE_WAIT", "SYN_SENT"}


def test_the_container_listens_in_its_own_namespace(matrix_guest: RunningGuest) -> None:
    found = [s for s in matrix_guest.guest.sockets() if s.local_port == 4242]
    assert [(s.family, s.state, s.local) for s in found] == [("inet", "LISTEN", "127.0.0.1")]
    pid = found[0].owners[0].pid
    assert str(found[0].netns) in matrix_guest.shell(f"readlink /proc/{pid}/ns/net")
    assert str(found[0].netns) not in matrix_guest.shell("readlink /proc/1/ns/net")


def test_a_bound_socket_that_no_table_lists_is_found_by_its_descriptor(
    matrix_guest: RunningGuest,
) -> None:
    workload = next(t.pid for t in matrix_guest.guest.tasks() if t.comm == "workload")
    unlisted = [
        s
        for s in matrix_guest.guest.sockets()
        if not s.listed and s.protocol == "tcp" and s.local_port
    ]
    assert [s.local for s in unlisted] == ["127.0.0.1"]
    assert workload in {owner.pid for owner in unlisted[0].owners}


def test_both_ends_of_a_unix_pair_name_each_other(matrix_guest: RunningGuest) -> None:
    found: dict[int, Any] = {s.inode: s for s in matrix_guest.guest.sockets() if s.inode}
    pairs = [
        s for s in found.values() if s.family == "unix" and s.peer_inode and s.type == "seqpacket"
    ]
    assert len(pairs) >= 4
    for end in pairs:
        assert found[end.peer_inode].peer_inode == end.inode
