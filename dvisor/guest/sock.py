"""struct sock: what the sockets of every family have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.lists import Problem, list_entries

MAX_NAMESPACES = 1 << 16

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
# include/linux/socket.h
FAMILIES = {
    AF_UNIX: "unix",
    AF_INET: "inet",
    AF_INET6: "inet6",
    15: "key",
    AF_NETLINK: "netlink",
    AF_PACKET: "packet",
    21: "rds",
    29: "can",
    30: "tipc",
    31: "bluetooth",
    38: "alg",
    40: "vsock",
    41: "kcm",
    42: "qipcrtr",
    43: "smc",
    44: "xdp",
    45: "mctp",
}
TYPES = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet"}

TCP_ESTABLISHED, TCP_TIME_WAIT, TCP_CLOSE, TCP_LISTEN, TCP_NEW_SYN_RECV = 1, 6, 7, 10, 12
# include/net/tcp_states.h. All families use these numbers; an unconnected netlink socket has 0.
STATES = {
    0: "CLOSE",
    TCP_ESTABLISHED: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    TCP_TIME_WAIT: "TIME_WAIT",
    TCP_CLOSE: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    TCP_LISTEN: "LISTEN",
    11: "CLOSING",
    TCP_NEW_SYN_RECV: "SYN_RECV",
}


class Owner(msgspec.Struct, frozen=True):
    """A process that holds a socket open."""

    pid: int
    """The process's id as the initial pid namespace sees it (the kernel's ``tgid``)."""
    fd: int
    comm: str


class Socket(msgspec.Struct, frozen=True, kw_only=True):
    """One socket as it was at one moment. ``address`` (of its struct sock) identifies it."""

    family: str
    """``inet``, ``inet6``, ``unix``, ``netlink``, ``packet``, ...; a number if unknown."""
    type: str
    """``stream``, ``dgram``, ``raw``, ``seqpacket``."""
    protocol: str
    """``tcp``, ``udp``, ``icmp``; of netlink ``route``, ``audit``; of packet the EtherType."""
    state: str
    """The kernel's TCP_* name: LISTEN, ESTABLISHED, ...; CLOSE is what ss calls UNCONN."""
    local: str = ""
    """IP address; of a unix socket its path, or ``@name``; empty if it has none."""
    local_port: int = 0
    """Port; of a netlink socket its port id."""
    remote: str = ""
    remote_port: int = 0
    inode: int = 0
    """What /proc/PID/fd shows; 0 if no descriptor was ever made, or the last one is closed."""
    peer_inode: int = 0
    """Of a unix socket: the other end's inode."""
    uid: int = -1
    """Who made it; -1 where the kernel keeps none (TIME_WAIT)."""
    rx_queue: int = 0
    """Bytes that wait to be read; of a listener, connections that wait to be accepted."""
    tx_queue: int = 0
    """Bytes sent and not yet acknowledged, or not yet gone out."""
    interface: int = 0
    """Index of the network interface it is bound to; 0: any."""
    netns: int
    """Inode of its network namespace, as /proc/PID/ns/net shows it; 0 if that cannot be read."""
    listed: bool = True
    """Whether the kernel's table of its family holds it (so that /proc/net should show it). A
    socket that is not bound yet is in none; it is found through its descriptor."""
    owners: tuple[Owner, ...] = ()
    """None of a kernel's own socket, of an orphan (TIME_WAIT, FIN_WAIT) and of one in flight."""
    address: int


class Sock(NamedTuple):
    """The members of struct sock that all families use."""

    family: int
    state: int
    interface: int
    net: int
    type: int
    protocol: int
    uid: int
    inode: int
    rmem: int
    wmem: int
    backlog: int


class SockReader:
    """Reads struct sock, and names network namespaces."""

    def __init__(self, kernel: Kernel, problem: Problem) -> None:
        self.kernel = kernel
        self.memory = kernel.memory
        self.problem = problem
        self.namespaces = net_namespaces(kernel, problem)
        # What names the inode: sk_ino, or before there was one (sock_i_ino()) the sk_socket.
        self._has_inode = kernel.place("sock", "sk_ino") is not None
        self._sock = kernel.record(
            "sock",
            "__sk_common.skc_family",
            "__sk_common.skc_state",
            "__sk_common.skc_bound_dev_if",
            "__sk_common.skc_net.net",
            "sk_type",
            "sk_protocol",
            "sk_uid.val",
            "sk_ino|sk_socket",
            "sk_backlog.rmem_alloc.counter",
            "sk_wmem_alloc.refs.counter",
            "sk_ack_backlog",
        )
        # struct socket_alloc is a struct socket and its inode (SOCK_INODE(), include/net/sock.h).
        self._inode_at = kernel.offset("socket_alloc", "vfs_inode.i_ino")
        self._inode_at -= kernel.offset("socket_alloc", "socket")

    def sock(self, address: int) -> Sock:
        """The struct sock at ``address``; GuestDataError if that cannot be one."""
        family, state, interface, net, kind, protocol, uid, inode, rmem, wmem, backlog = (
            self._sock.read(address)
        )
        if inode and not self._has_inode:
            inode = self.memory.u64(inode + self._inode_at)
        # sk_wmem_alloc counts one more than the bytes (sk_wmem_alloc_get()).
        wmem = max(wmem - 1, 0)
        return Sock(
            family, state, interface, net, kind, protocol, uid, inode, max(rmem, 0), wmem, backlog
        )

    def inode(self, address: int) -> int:
        """Inode of the socket at ``address``; 0 if it has none or cannot be read."""
        try:
            return self.sock(address).inode if address else 0
        except GuestDataError:
            return 0

    def netns(self, address: int) -> int:
        """Inode of the namespace whose struct net is at ``address``; 0 if it cannot be read."""
        inode = self.namespaces.get(address)
        if inode is None:  # of one that is being taken down: no more on the list
            try:
                inode = self.kernel.record("net", "ns.inum").read(address)[0]
            except GuestDataError:
                inode = 0
            self.namespaces[address] = inode
        return inode

    def plain(
        self, address: int, sock: Sock, protocol: str, rx_queue: int, tx_queue: int, **more: Any
    ) -> Socket:
        """The socket at ``address`` with what every family has; ``more``: its own fields."""
        return Socket(
            family=FAMILIES.get(sock.family) or str(sock.family),
            type=TYPES.get(sock.type) or str(sock.type),
            protocol=protocol,
            state=STATES.get(sock.state) or str(sock.state),
            inode=sock.inode,
            uid=sock.uid,
            rx_queue=rx_queue,
            tx_queue=tx_queue,
            netns=self.netns(sock.net),
            address=address,
            **more,
        )


def state_name(state: int) -> str:
    """The kernel's name of a ``sk_state``, without TCP_."""
    return STATES.get(state, str(state))


def net_namespaces(kernel: Kernel, problem: Problem) -> dict[int, int]:
    """Inode by address of struct net, of all network namespaces."""
    link = kernel.offset("net", "list")
    number = kernel.record("net", "ns.inum")
    found: dict[int, int] = {}
    head = kernel.symbol("net_namespace_list")
    for address in list_entries(
        kernel.memory, head, link, problem, "network namespaces", MAX_NAMESPACES
    ):
        try:
            found[address] = number.read(address)[0]
        except GuestDataError as error:
            problem(f"a network namespace cannot be read: {error}")
    return found
