"""Open files of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.fdtable import files_struct, table_files
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.paths import Location, Paths
from dvisor.guest.tasks import Task, find_task, read_tasks

if TYPE_CHECKING:
    from dvisor.guest.lists import Problem

MAX_FILES = 1 << 18
"""Open files in one answer: tables that a hostile guest makes up must not keep us busy."""

_FMODE_READ, _FMODE_WRITE, _FMODE_PATH = 1, 2, 1 << 14  # include/linux/fs.h
_KINDS = {  # S_IFMT, include/uapi/linux/stat.h
    0o010000: "pipe",
    0o020000: "chr",
    0o040000: "dir",
    0o060000: "blk",
    0o100000: "file",
    0o120000: "link",
    0o140000: "socket",
}
_FILE_FIELDS = (
    "f_path.mnt",
    "f_path.dentry",
    "f_inode",
    "f_flags",
    "f_mode",
    "f_pos",
)
_INODE_FIELDS = ("i_mode", "i_ino", "i_size", "i_rdev", "i_sb")


class OpenFile(msgspec.Struct, frozen=True):
    """One descriptor of one process."""

    pid: int
    comm: str
    """The process's name, as ``Task.comm``."""
    fd: int
    path: str
    """As in /proc/PID/fd; "" if it cannot be read, which the listing's problems tell."""
    deleted: bool
    """True if the path's ending " (deleted)" is the kernel's and no part of the name."""
    kind: str
    """file, dir, link, chr, blk, pipe (named too), socket, or anon (anon_inode: and pidfds)."""
    access: str
    """r, w, rw, or "" for one opened with O_PATH."""
    flags: int
    """The flags of open(2)."""
    position: int
    """Offset in bytes."""
    inode: int
    device: str
    """``major:minor`` of the filesystem that holds it."""
    represents: str
    """``major:minor`` of the device that a chr or blk is; else ""."""
    size_bytes: int
    mount: int
    """Address of its mount; ``Mount.address`` in the mounts view."""
    address: int
    """Of the struct file; equal for descriptors that share an offset (dup, fork)."""


class _File(NamedTuple):
    """What is the same for all descriptors of one struct file."""

    path: str
    deleted: bool
    kind: str
    access: str
    flags: int
    position: int
    inode: int
    device: str
    represents: str
    size_bytes: int
    mount: int
    address: int


def read_files(kernel: Kernel, pid: int | None = None) -> Listing[OpenFile]:
    """Open files of all processes, or of the process or thread ``pid`` (NotFoundError).

    Those of a thread that made a table of its own (unshare(CLONE_FILES)) bear its thread id; the
    /proc/PID/fd of its process does not show them.
    """
    listing: Listing[OpenFile] = Listing()
    if pid is None:
        tasks = read_tasks(kernel, threads=True)
        listing.problems.extend(tasks.problems)
    else:
        tasks = Listing([find_task(kernel, pid)])
    listing.extend(_Reader(kernel).files(tasks, listing.problem))
    return listing


class _Reader:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.paths = Paths(kernel)
        self.file = kernel.record("file", *_FILE_FIELDS)
        self.inode = kernel.record("inode", *_INODE_FIELDS)
        self.super_block = kernel.record("super_block", "s_dev")
        self.mount_of = kernel.offset("mount", "mnt")
        self.known: dict[int, _File] = {}

    def files(self, tasks: Listing[Task], problem: Problem) -> Iterator[OpenFile]:
        left = MAX_FILES
        for task, table in self.tables(tasks, problem):
            for fd, address in table_files(self.kernel, table, problem):
                left -= 1
                if left < 0:
                    problem(f"only the first {MAX_FILES} open files: ask for one process at a time")
                    return
                try:
                    yield OpenFile(task.pid, task.comm, fd, *self.read(address, problem))
                except GuestDataError as error:
                    problem(f"an open file of process {task.pid} cannot be read: {error}")

    def tables(self, tasks: Listing[Task], problem: Problem) -> Iterator[tuple[Task, int]]:
        """Each process's descriptor tables, with the first of its threads that has it."""
        seen: set[tuple[int, int]] = set()
        for task in tasks:
            try:
                table = files_struct(self.kernel, task.address)
            except GuestDataError as error:
                problem(f"the descriptors of task {task.pid} cannot be read: {error}")
                continue
            if table and (task.tgid, table) not in seen:
                seen.add((task.tgid, table))
                yield task, table

    def read(self, address: int, problem: Problem) -> _File:
        """The struct file at ``address``."""
        known = self.known.get(address)
        if known is not None:
            return known
        vfsmount, dentry, inode, flags, mode, position = self.file.read(address)
        inode_mode, number, size, rdev, super_block = self.inode.read(inode)
        try:
            path, deleted = self.paths.path(Location(vfsmount, dentry))
        except GuestDataError as error:
            problem(f"the path of an open file cannot be read: {error}")
            path, deleted = "", False
        kind = file_kind(inode_mode, path)
        known = self.known[address] = _File(
            path,
            deleted,
            kind,
            access(mode),
            flags,
            position,
            number,
            device(self.super_block.read(super_block)[0]),
            device(rdev) if kind in {"chr", "blk"} else "",
            size,
            vfsmount - self.mount_of,
            address,
        )
        return known


def file_kind(inode_mode: int, path: str) -> str:
    """What an inode is. Anonymous inodes had no type in i_mode once, and are files now."""
    if path.startswith("anon_inode:"):
        return "anon"
    return _KINDS.get(inode_mode & 0o170000, "anon")


def access(file_mode: int) -> str:
    """How a file was opened, by its f_mode."""
    if file_mode & _FMODE_PATH:
        return ""
    return "r" * bool(file_mode & _FMODE_READ) + "w" * bool(file_mode & _FMODE_WRITE)


def device(number: int) -> str:
    """``major:minor`` of a dev_t (include/linux/kdev_t.h: 20 bits of minor)."""
    return f"{number >> 20}:{number & 0xFFFFF}"
