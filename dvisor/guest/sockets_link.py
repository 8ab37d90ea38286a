"""Netlink and packet sockets: how programs talk to the kernel, and sniff the wire."""

from __future__ import annotations

from collections.abc import Iterator

from dvisor.errors import GuestDataError
from dvisor.guest.hashtables import Chains
from dvisor.guest.sock import Socket, SockReader

_MAX_LINKS = 32  # include/uapi/linux/netlink.h
_MAX_REHASH = 8
"""Tables of one rhashtable that is being enlarged, each the successor of the one before."""

# NETLINK_*, include/uapi/linux/netlink.h
NETLINK_PROTOCOLS = {
    0: "route",
    2: "usersock",
    4: "sock_diag",
    5: "nflog",
    6: "xfrm",
    7: "selinux",
    8: "iscsi",
    9: "audit",
    10: "fib_lookup",
    11: "connector",
    12: "netfilter",
    15: "kobject_uevent",
    16: "generic",
    18: "scsitransport",
    20: "rdma",
    21: "crypto",
    22: "smc",
}
# ETH_P_*, include/uapi/linux/if_ether.h
ETHER_TYPES = {0x0003: "all", 0x0800: "ip", 0x0806: "arp", 0x86DD: "ipv6", 0x88CC: "lldp"}


class NetlinkReader:
    """Reads sockets of AF_NETLINK."""

    def __init__(self, socks: SockReader) -> None:
        self.socks = socks
        self.kernel = socks.kernel
        self._netlink = self.kernel.record("netlink_sock", "portid", "dst_portid")

    def all(self) -> Iterator[Socket]:
        """Every netlink socket that has a port id, the kernel's own (port 0) among them."""
        kernel, problem = self.kernel, self.socks.problem
        stride = kernel.size_of("netlink_table")
        try:
            tables = kernel.memory.u64(kernel.symbol("nl_table"))
        except GuestDataError as error:
            problem(f"the table of netlink sockets cannot be read: {error}")
            return
        first = tables + kernel.offset("netlink_table", "hash.tbl")
        for pointer in range(first, first + _MAX_LINKS * stride, stride):
            try:
                yield from self._bound(kernel.memory.u64(pointer))
            except GuestDataError as error:
                problem(f"netlink sockets cannot be read: {error}")

    def _bound(self, table: int) -> Iterator[Socket]:
        """Sockets of an rhashtable, and of the one that it is being moved to."""
        kernel, problem = self.kernel, self.socks.problem
        link = kernel.offset("netlink_sock", "node")
        array = kernel.offset("bucket_table", "buckets")
        shape = kernel.record("bucket_table", "size", "nest", "future_tbl")
        chains = Chains(kernel.memory, link, self.one, problem, "netlink sockets")
        seen: set[int] = set()
        for _ in range(_MAX_REHASH):
            if not table:
                return
            size, nest, following = shape.read(table)
            if nest:  # a stopgap for want of memory, replaced at once (rht_bucket_nested())
                problem("a table of netlink sockets is nested: it was not read")
            else:
                for found in chains.rhashtable(table + array, size):
                    if found.address not in seen:
                        seen.add(found.address)
                        yield found
            table = following

    def one(self, address: int) -> Socket:
        """The netlink socket at ``address``; GuestDataError."""
        sock = self.socks.sock(address)
        port, remote_port = self._netlink.read(address)
        protocol = NETLINK_PROTOCOLS.get(sock.protocol) or str(sock.protocol)
        return self.socks.plain(
            address,
            sock,
            protocol,
            sock.rmem,
            sock.wmem,
            local_port=port,
            remote_port=remote_port,
        )


class PacketReader:
    """Reads sockets of AF_PACKET."""

    def __init__(self, socks: SockReader) -> None:
        self.socks = socks
        self.kernel = socks.kernel

    def all(self) -> Iterator[Socket]:
        """Every packet socket (net.packet.sklist)."""
        kernel, problem = self.kernel, self.socks.problem
        place = kernel.place("net", "packet.sklist")
        if place is None:  # built without CONFIG_PACKET
            return
        link = kernel.offset("sock_common", "skc_node")
        chains = Chains(kernel.memory, link, self.one, problem, "packet sockets")
        for net in list(self.socks.namespaces):
            yield from chains.chain(net + place.offset)

    def one(self, address: int) -> Socket:
        """The packet socket at ``address``; GuestDataError."""
        sock = self.socks.sock(address)
        # struct packet_sock is unknown to vmlinux where af_packet is a module.
        number, interface = self.kernel.record("packet_sock", "num?", "ifindex?").read(address)
        ether_type = int.from_bytes(((number or 0) & 0xFFFF).to_bytes(2, "little"), "big")
        protocol = ETHER_TYPES.get(ether_type) or f"{ether_type:#06x}"
        return self.socks.plain(
            address, sock, protocol, sock.rmem, sock.wmem, interface=interface or 0
        )
