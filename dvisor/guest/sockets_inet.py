"""TCP, UDP and raw sockets of IPv4 and IPv6, by the kernel's hash tables.

Established connections stand in ``ehash``, together with two small stand-ins that are no whole
struct sock: inet_timewait_sock and request_sock (a connection being set up). Listeners stand in
``lhash2``. A network namespace may have tables of its own (net.ipv4.tcp_child_ehash_entries,
udp_child_hash_entries); each table is walked once, whoever shares it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from dvisor.errors import GuestDataError
from dvisor.guest.hashtables import Chains
from dvisor.guest.sock import (
    AF_INET,
    AF_INET6,
    FAMILIES,
    TCP_LISTEN,
    TCP_NEW_SYN_RECV,
    TCP_TIME_WAIT,
    Sock,
    Socket,
    SockReader,
    state_name,
)

# IPPROTO_*, include/uapi/linux/in.h
PROTOCOLS = {
    1: "icmp",
    2: "igmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    58: "icmpv6",
    132: "sctp",
    136: "udplite",
    255: "raw",
    262: "mptcp",
}
_RAW_BUCKETS = 256  # RAW_HTABLE_SIZE, include/net/raw.h


class _Ends(NamedTuple):
    """Both ends of a connection, as sock_common has them; of the stand-ins too."""

    family: int
    state: int
    interface: int
    net: int
    local: str
    local_port: int
    remote: str
    remote_port: int


class InetReader:
    """Reads sockets of AF_INET and AF_INET6."""

    def __init__(self, socks: SockReader) -> None:
        self.socks = socks
        self.kernel = kernel = socks.kernel
        self._ends = kernel.record(
            "sock_common",
            "skc_daddr",
            "skc_rcv_saddr",
            "skc_dport",
            "skc_num",
            "skc_family",
            "skc_state",
            "skc_bound_dev_if",
            "skc_net.net",
            "skc_v6_daddr.in6_u.u6_addr8[]?",
            "skc_v6_rcv_saddr.in6_u.u6_addr8[]?",
        )
        self._tcp = kernel.record("tcp_sock", "rcv_nxt", "copied_seq", "write_seq", "snd_una")
        self._udp = kernel.record("udp_sock", "forward_deficit")
        self._link = kernel.offset("sock_common", "skc_nulls_node")

    # -- tables --------------------------------------------------------------------------------

    def all(self) -> Iterator[Socket]:
        """Every socket in the tables of TCP, UDP, UDP-Lite and raw IP."""
        yield from self._tcp_sockets()
        for table in self._tables("ipv4.udp_table", "udp_table", "udplite_table"):
            yield from self._udp_sockets(table)
        for name in ("raw_v4_hashinfo", "raw_v6_hashinfo"):
            info = self.kernel.find_symbol(name)
            if info is not None:
                array = info + self.kernel.offset("raw_hashinfo", "ht")
                yield from self._chains("raw sockets").table(array, _RAW_BUCKETS, 8)

    def _tcp_sockets(self) -> Iterator[Socket]:
        kernel = self.kernel
        info = kernel.record("inet_hashinfo", "ehash", "ehash_mask", "lhash2", "lhash2_mask")
        bucket = kernel.size_of("inet_listen_hashbucket")
        head = kernel.offset("inet_listen_hashbucket", "nulls_head")
        for table in self._tables("ipv4.tcp_death_row.hashinfo", "tcp_hashinfo"):
            try:
                ehash, ehash_mask, lhash, lhash_mask = info.read(table)
            except GuestDataError as error:
                self.socks.problem(f"a table of TCP sockets cannot be read: {error}")
                continue
            listeners = self._chains("TCP listeners")
            yield from listeners.table(lhash + head, lhash_mask + 1, bucket)
            yield from self._chains("TCP connections").table(ehash, ehash_mask + 1, 8)

    def _udp_sockets(self, table: int) -> Iterator[Socket]:
        kernel = self.kernel
        stride = kernel.size_of("udp_hslot")
        head = kernel.offset("udp_hslot", "head")
        try:
            array, mask = kernel.record("udp_table", "hash", "mask").read(table)
        except GuestDataError as error:
            self.socks.problem(f"a table of UDP sockets cannot be read: {error}")
            return
        yield from self._chains("UDP sockets").table(array + head, mask + 1, stride)

    def _tables(self, member: str, *symbols: str) -> list[int]:
        """Addresses of the tables that ``symbols`` name, and of the namespaces' own."""
        kernel = self.kernel
        found = dict.fromkeys(a for a in map(kernel.find_symbol, symbols) if a is not None)
        place = kernel.place("net", member)
        if place is not None:  # a global table only, before namespaces could have their own
            for net in list(self.socks.namespaces):
                try:
                    found[kernel.memory.u64(net + place.offset)] = None
                except GuestDataError as error:
                    self.socks.problem(f"a network namespace cannot be read: {error}")
        return [address for address in found if address]

    def _chains(self, what: str) -> Chains[Socket]:
        return Chains(self.kernel.memory, self._link, self.one, self.socks.problem, what)

    # -- sockets -------------------------------------------------------------------------------

    def one(self, address: int) -> Socket:
        """The socket or stand-in at ``address``; GuestDataError if that cannot be one."""
        ends = self._both_ends(address)
        if ends.state == TCP_TIME_WAIT:
            state = self.kernel.record("inet_timewait_sock", "tw_substate").read(address)[0]
            return self._stand_in(address, ends, state, -1)
        if ends.state == TCP_NEW_SYN_RECV:
            # The listener's uid, as get_openreq4() in net/ipv4/tcp_ipv4.c prints it.
            (listener,) = self.kernel.record("sock_common", "skc_listener").read(address)
            uid = self.socks.sock(listener).uid if listener else -1
            return self._stand_in(address, ends, ends.state, uid)
        return self._whole(address, ends)

    def _stand_in(self, address: int, ends: _Ends, state: int, uid: int) -> Socket:
        return Socket(
            family=FAMILIES.get(ends.family, str(ends.family)),
            type="stream",
            protocol="tcp",
            state=state_name(state),
            local=ends.local,
            local_port=ends.local_port,
            remote=ends.remote,
            remote_port=ends.remote_port,
            uid=uid,
            interface=ends.interface,
            netns=self.socks.netns(ends.net),
            address=address,
        )

    def _whole(self, address: int, ends: _Ends) -> Socket:
        sock = self.socks.sock(address)
        protocol = PROTOCOLS.get(sock.protocol) or str(sock.protocol)
        rx_queue, tx_queue = self._queues(address, sock, protocol)
        is_raw = sock.type == socket.SOCK_RAW  # skc_num is the protocol then
        return self.socks.plain(
            address,
            sock,
            protocol,
            rx_queue,
            tx_queue,
            local=ends.local,
            local_port=0 if is_raw else ends.local_port,
            remote=ends.remote,
            remote_port=0 if is_raw else ends.remote_port,
            interface=ends.interface,
        )

    def _queues(self, address: int, sock: Sock, protocol: str) -> tuple[int, int]:
        """(rx, tx), as get_tcp4_sock() and udp_rqueue_get() of the kernel compute them."""
        if protocol == "tcp" and sock.type == socket.SOCK_STREAM:
            received, copied, written, acknowledged = self._tcp.read(address)
            rx_queue = sock.backlog if sock.state == TCP_LISTEN else _ahead(received, copied)
            return rx_queue, _ahead(written, acknowledged)
        if protocol in {"udp", "udplite"} and sock.type == socket.SOCK_DGRAM:
            deficit: int = self._udp.read(address)[0]
            return max(sock.rmem - deficit, 0), sock.wmem
        return sock.rmem, sock.wmem

    def _both_ends(self, address: int) -> _Ends:
        values: tuple[Any, ...] = self._ends.read(address)
        remote, local, remote_port, port, family, state, interface, net, remote6, local6 = values
        remote_port = (remote_port & 0xFF) << 8 | remote_port >> 8  # skc_dport is big-endian
        if family == AF_INET6 and remote6 and local6 and len(remote6) == len(local6) == 16:
            far = socket.inet_ntop(socket.AF_INET6, remote6)
            near = socket.inet_ntop(socket.AF_INET6, local6)
        elif family == AF_INET:
            far, near = _dotted(remote), _dotted(local)
        else:
            raise GuestDataError(f"no IP socket has the address family {family} ({address:#x})")
        return _Ends(family, state, interface, net, near, port, far, remote_port)


def _dotted(address: int) -> str:
    return socket.inet_ntoa((address & 0xFFFF_FFFF).to_bytes(4, "little"))


def _ahead(front: int, back: int) -> int:
    """How far a 32-bit sequence number is ahead of another; 0 if it is behind."""
    ahead = (front - back) & 0xFFFF_FFFF
    return ahead if ahead < 1 << 31 else 0
