"""Directory entries: their own names, and names of objects that stand in no directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel

NAME_MAX = 255  # include/uapi/linux/limits.h
DELETED = b" (deleted)"

Namer = Callable[["Dentries", "Dentry"], bytes]


class Dentry(NamedTuple):
    """What is read of a ``struct dentry``; pointers are addresses."""

    parent: int
    name_size: int
    name: int
    inode: int
    hashed: int
    """Where its hash chain points back from; 0 for one that was removed from its directory."""
    operations: int


class Dentries:
    """Reads directory entries."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._fields = kernel.record(
            "dentry", "d_parent", "d_name.len", "d_name.name", "d_inode", "d_hash.pprev", "d_op"
        )
        self._inode_number = kernel.record("inode", "i_ino")
        self._operations: dict[int, Namer | None] = {0: None}
        rules = ((kernel.find_symbol(symbol), rule) for symbol, rule in _RULES.items())
        self._rules = {address: rule for address, rule in rules if address is not None}

    def read(self, address: int) -> Dentry:
        return Dentry._make(self._fields.read(address))

    def own_name(self, dentry: Dentry) -> bytes:
        """The last part of its path."""
        if dentry.name_size > NAME_MAX:
            raise GuestDataError(f"a file name of {dentry.name_size} bytes")
        return self.kernel.memory.read(dentry.name, dentry.name_size)

    def inode_number(self, dentry: Dentry) -> int:
        number: int = self._inode_number.read(dentry.inode)[0]
        return number

    def namer(self, dentry: Dentry) -> Namer | None:
        """The rule that names it, for an entry of a filesystem without directories (d_dname).

        Rules are recognised by the symbol of the kernel's function. One of a module or of a newer
        kernel gives ``?:[inode]``.
        """
        operations = dentry.operations
        if operations not in self._operations:
            function = self.kernel.record("dentry_operations", "d_dname").read(operations)[0]
            self._operations[operations] = self._rules.get(function, _unknown) if function else None
        return self._operations[operations]


def _pipe(dentries: Dentries, dentry: Dentry) -> bytes:
    return b"pipe:[%d]" % dentries.inode_number(dentry)


def _socket(dentries: Dentries, dentry: Dentry) -> bytes:
    return b"socket:[%d]" % dentries.inode_number(dentry)


def _anon_inode(dentries: Dentries, dentry: Dentry) -> bytes:
    return b"anon_inode:" + dentries.own_name(dentry)


def _pidfd(dentries: Dentries, dentry: Dentry) -> bytes:
    return b"anon_inode:[pidfd]"


def _simple(dentries: Dentries, dentry: Dentry) -> bytes:
    return b"/" + dentries.own_name(dentry) + DELETED


def namespace(dentries: Dentries, dentry: Dentry) -> bytes:
    """``net:[4026531840]``."""
    kernel = dentries.kernel
    common = kernel.record("inode", "i_private").read(dentry.inode)[0]
    operations = kernel.record("ns_common", "ops").read(common)[0]
    kind = kernel.record("proc_ns_operations", "name").read(operations)[0]
    return b"%s:[%d]" % (kernel.memory.string(kind, 32), dentries.inode_number(dentry))


def _unknown(dentries: Dentries, dentry: Dentry) -> bytes:
    return b"?:[%d]" % dentries.inode_number(dentry)


_RULES: dict[str, Namer] = {
    "pipefs_dname": _pipe,
    "sockfs_dname": _socket,
    "anon_inodefs_dname": _anon_inode,
    "pidfs_dname": _pidfd,
    "ns_dname": namespace,
    "simple_dname": _simple,
}
