"""Unix domain sockets, by each network namespace's own table."""

from __future__ import annotations

from collections.abc import Iterator
from socket import SOCK_DGRAM

from dvisor.errors import GuestDataError
from dvisor.guest.hashtables import Chains
from dvisor.guest.sock import TCP_LISTEN, Sock, Socket, SockReader

_BUCKETS = 512  # UNIX_HASH_SIZE, include/net/af_unix.h
_PATH_BYTES = 108  # UNIX_PATH_MAX
_FAMILY_BYTES = 2  # offsetof(struct sockaddr_un, sun_path)
_MAX_MESSAGES = 1 << 14
"""Messages of one receive queue that are counted."""


class UnixReader:
    """Reads sockets of AF_UNIX."""

    def __init__(self, socks: SockReader) -> None:
        self.socks = socks
        self.kernel = kernel = socks.kernel
        self._unix = kernel.record("unix_sock", "addr", "peer")
        self._address = kernel.record("unix_address", "len")
        self._name_at = kernel.offset("unix_address", "name")
        self._queue_at = kernel.offset("sock", "sk_receive_queue")
        self._queue = kernel.record("sk_buff_head", "next", "qlen")

    def all(self) -> Iterator[Socket]:
        """Every unix socket, bound or not (net.unx.table)."""
        kernel, problem = self.kernel, self.socks.problem
        place = kernel.place("net", "unx.table.buckets")
        if place is None:  # a global unix_socket_table, before 6.0
            problem("this kernel has no tables of unix sockets that dvisor knows")
            return
        link = kernel.offset("sock_common", "skc_node")
        chains = Chains(kernel.memory, link, self.one, problem, "unix sockets")
        for net in list(self.socks.namespaces):
            try:
                array = kernel.memory.u64(net + place.offset)
            except GuestDataError as error:
                problem(f"a network namespace cannot be read: {error}")
                continue
            yield from chains.table(array, _BUCKETS, 8)

    def one(self, address: int) -> Socket:
        """The unix socket at ``address``; GuestDataError if that cannot be one."""
        sock = self.socks.sock(address)
        name, peer = self._unix.read(address)
        return self.socks.plain(
            address,
            sock,
            "unix",
            self._waiting(address, sock),
            sock.wmem,
            local=self._name(name) if name else "",
            peer_inode=self.socks.inode(peer),
        )

    def _name(self, address: int) -> str:
        (size,) = self._address.read(address)
        if not _FAMILY_BYTES <= size <= _FAMILY_BYTES + _PATH_BYTES + 1:
            raise GuestDataError(f"a unix address of {size} bytes at {address:#x}")
        start = address + self._name_at + _FAMILY_BYTES
        return socket_name(self.kernel.memory.read(start, size - _FAMILY_BYTES))

    def _waiting(self, address: int, sock: Sock) -> int:
        """Bytes that the next reads give, as SIOCINQ does (unix_inq_len()); of a listener, the
        connections to accept."""
        head = address + self._queue_at
        at, count = self._queue.read(head)
        if sock.state == TCP_LISTEN:
            return int(count)
        skb = self.kernel.record("sk_buff", "next", "len")
        consumed_at = self.kernel.offset("sk_buff", "cb")
        consumed_at += self.kernel.offset("unix_skb_parms", "consumed")
        total = 0
        seen: set[int] = set()
        while at != head:
            if at in seen or len(seen) >= _MAX_MESSAGES:
                self.socks.problem("the messages that wait in a unix socket were not all counted")
                break
            seen.add(at)
            following, size = skb.read(at)
            if sock.type == SOCK_DGRAM:  # a read gives one message
                return int(size)
            total += max(int(size) - self.kernel.memory.u32(at + consumed_at), 0)
            at = following
        return total


def socket_name(raw: bytes) -> str:
    """``sun_path`` as ss and /proc/net/unix print it: a path, or ``@`` and an abstract name."""
    if raw[:1] == b"\0":
        raw = raw.replace(b"\0", b"@")
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")
