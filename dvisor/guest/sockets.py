"""Sockets of all families and network namespaces, and who holds them open.

Two views that do not depend on one another are put together: the kernel's own tables, which the
network code looks sockets up in, and the open descriptors of all tasks. What only the second
knows (not bound yet, or of a family without a table here) has ``listed`` false.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.fdtable import files_struct, table_files
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.lists import Problem
from dvisor.guest.sock import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_PACKET,
    AF_UNIX,
    Owner,
    Socket,
    SockReader,
)
from dvisor.guest.sockets_inet import InetReader
from dvisor.guest.sockets_link import NetlinkReader, PacketReader
from dvisor.guest.sockets_unix import UnixReader
from dvisor.guest.tasks import read_tasks

TRIES = 3
"""What changed under our eyes is read again this often before it is called partial."""

MAX_FILES = 1 << 20
"""Open files looked at, in all tables together: what tables claim to hold is up to the guest."""

_FAMILY = struct.Struct("<H")


Open = tuple[int, int]
"""A socket that a descriptor leads to: address of its struct sock, and its inode. Memory of a
closed socket is used again at once, an inode number is not."""


def read_sockets(kernel: Kernel) -> Listing[Socket]:
    """All sockets: by table, then those that only a descriptor leads to."""
    listing = _read_once(kernel)
    for _ in range(TRIES - 1):
        if listing.complete:
            break
        before, listing = listing, _read_once(kernel)
        if listing.problems == before.problems:  # damage, which stays
            break
    return listing


def _read_once(kernel: Kernel) -> Listing[Socket]:
    listing: Listing[Socket] = Listing()
    readers = Readers(kernel, listing.problem)
    rows = {found.address: found for found in readers.listed()}
    for (address, inode), owners in socket_owners(kernel, listing.problem).items():
        row = rows.get(address)
        if row is None or row.inode != inode:  # not in a table, or accepted since
            try:
                fresh = readers.one(address)
            except GuestDataError as error:
                listing.problem(f"a socket that process {owners[0].pid} has open: {error}")
                continue
            if fresh.inode != inode:  # closed since
                continue
            row = msgspec.structs.replace(fresh, listed=row is not None)
        rows[address] = msgspec.structs.replace(row, owners=tuple(owners))
    listing.extend(rows.values())
    return listing


class FamilyReader(Protocol):
    """Reads the sockets of one address family."""

    def all(self) -> Iterator[Socket]: ...
    def one(self, address: int) -> Socket: ...


class Readers:
    """A reader for each family."""

    def __init__(self, kernel: Kernel, problem: Problem) -> None:
        self.socks = SockReader(kernel, problem)
        inet = InetReader(self.socks)
        self._by_family: dict[int, FamilyReader] = {
            AF_INET: inet,
            AF_INET6: inet,
            AF_UNIX: UnixReader(self.socks),
            AF_NETLINK: NetlinkReader(self.socks),
            AF_PACKET: PacketReader(self.socks),
        }
        self._family_at = kernel.offset("sock_common", "skc_family")

    def listed(self) -> Iterator[Socket]:
        """Every socket in the kernel's tables."""
        for reader in dict.fromkeys(self._by_family.values()):
            yield from reader.all()

    def one(self, address: int) -> Socket:
        """The socket whose struct sock is at ``address``; GuestDataError."""
        (family,) = self.socks.memory.unpack(_FAMILY, address + self._family_at)
        assert isinstance(family, int)
        reader = self._by_family.get(family)
        if reader:
            return reader.one(address)
        sock = self.socks.sock(address)
        return self.socks.plain(
            address, sock, str(sock.protocol), sock.rmem, sock.wmem, interface=sock.interface
        )


def socket_owners(kernel: Kernel, problem: Problem) -> dict[Open, list[Owner]]:
    """Who has each socket open."""
    tasks = read_tasks(kernel, threads=True)
    for text in tasks.problems:
        problem(text)
    tables: dict[int, list[tuple[int, Open]]] = {}
    done: set[tuple[int, int]] = set()
    found: dict[Open, list[Owner]] = {}
    left = MAX_FILES
    for task in tasks:
        if task.kernel_thread:
            continue
        try:
            files = files_struct(kernel, task.address)
        except GuestDataError as error:
            problem(f"the descriptors of process {task.tgid} cannot be read: {error}")
            continue
        if not files or (task.tgid, files) in done:  # threads share their process's table
            continue
        done.add((task.tgid, files))
        if files not in tables:
            opened = list(islice(table_files(kernel, files, problem), left))
            left -= len(opened)
            if not left:
                problem(f"more than {MAX_FILES} open files: the owners of some sockets lack")
                break
            tables[files] = list(_sockets_among(kernel, opened, problem))
        for fd, socket in tables[files]:
            found.setdefault(socket, []).append(Owner(task.tgid, fd, task.comm))
    return found


def _sockets_among(
    kernel: Kernel, opened: list[tuple[int, int]], problem: Problem
) -> Iterator[tuple[int, Open]]:
    """(descriptor, socket) of the sockets among open files."""
    operations = kernel.symbol("socket_file_ops")
    file_record = kernel.record("file", "f_op", "private_data")
    # private_data is the struct socket in a socket_alloc (sock_alloc_file(), net/socket.c).
    start = kernel.offset("socket_alloc", "socket")
    record = kernel.record("socket_alloc", "socket.sk", "vfs_inode.i_ino")
    for fd, file in opened:
        try:
            f_op, socket = file_record.read(file)
            if f_op == operations:
                sock, inode = record.read(socket - start)
                if sock:
                    yield fd, (sock, inode)
        except GuestDataError as error:
            problem(f"an open file cannot be read: {error}")
