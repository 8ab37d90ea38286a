"""Sockets of all families and network namespaces, and who holds them open.

Two views that do not depend on one another are put together: the kernel's own tables, which the
network code looks sockets up in, and the open descriptors of all tasks. What only the second
knows (not bound yet, or of a family without a table here) has ``listed`` false.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.fdtable import files_struct, table_files
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.lists import Problem
from dvisor.guest.memory import U64
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

_FAMILY = struct.Struct("<H")


def read_sockets(kernel: Kernel) -> Listing[Socket]:
    """All sockets: by table, then those that only a descriptor leads to."""
    listing: Listing[Socket] = Listing()
    readers = Readers(kernel, listing.problem)
    listed = {found.address: found for found in readers.listed()}
    owners = socket_owners(kernel, listing.problem)
    for address, found in listed.items():
        held = owners.pop(address, None)
        listing.append(msgspec.structs.replace(found, owners=tuple(held)) if held else found)
    for address, held in owners.items():
        try:
            found = readers.one(address)
        except GuestDataError as error:
            listing.problem(f"a socket that process {held[0].pid} has open: {error}")
            continue
        listing.append(msgspec.structs.replace(found, owners=tuple(held), listed=False))
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


def socket_owners(kernel: Kernel, problem: Problem) -> dict[int, list[Owner]]:
    """Who has each socket open, by address of its struct sock."""
    tasks = read_tasks(kernel, threads=True)
    for text in tasks.problems:
        problem(text)
    tables: dict[int, list[tuple[int, int]]] = {}
    done: set[tuple[int, int]] = set()
    found: dict[int, list[Owner]] = {}
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
            tables[files] = list(_open_sockets(kernel, files, problem))
        for fd, sock in tables[files]:
            found.setdefault(sock, []).append(Owner(task.tgid, fd, task.comm))
    return found


def _open_sockets(kernel: Kernel, files: int, problem: Problem) -> Iterator[tuple[int, int]]:
    """(descriptor, address of the struct sock) of the sockets in a descriptor table."""
    operations = kernel.symbol("socket_file_ops")
    file_record = kernel.record("file", "f_op", "private_data")
    sk_at = kernel.offset("socket", "sk")
    for fd, file in table_files(kernel, files, problem):
        try:
            f_op, socket = file_record.read(file)
            if f_op == operations:
                (sock,) = kernel.memory.unpack(U64, socket + sk_at)
                if sock:
                    assert isinstance(sock, int)
                    yield fd, sock
        except GuestDataError as error:
            problem(f"an open file cannot be read: {error}")
