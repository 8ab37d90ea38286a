"""Paths of files, as the kernel itself prints them (fs/d_path.c).

A path is what ``readlink /proc/PID/fd/N`` shows to a reader whose root directory is that of the
first process; so a file in a container has its path as seen from the host.
"""

from __future__ import annotations

from typing import NamedTuple

from dvisor.errors import GuestDataError
from dvisor.guest.dentries import DELETED, Dentries, Dentry, namespace
from dvisor.guest.kernel import Kernel

MAX_STEPS = 4096
"""Names and mounts in one path: PATH_MAX, for each name has a byte; readlink fails beyond it."""


class Location(NamedTuple):
    """A ``struct path``; both numbers are addresses."""

    mount: int
    """Of its struct vfsmount."""
    dentry: int


class Path(NamedTuple):
    """A path as text."""

    text: str
    deleted: bool
    """True if the ending " (deleted)" is the kernel's and no part of a name."""


class Mounted(NamedTuple):
    """What a walk needs of a ``struct mount``."""

    parent: int
    """Of its vfsmount; the mount itself if it is mounted nowhere."""
    mountpoint: int
    root: int


class Paths:
    """Reads paths relative to ``root``; by default to ``first_root``.

    Made for one answer: it remembers directories, so that files which share them cost little.
    """

    def __init__(self, kernel: Kernel, root: Location | None = None) -> None:
        self.kernel = kernel
        self.root = first_root(kernel) if root is None else root
        self.dentries = Dentries(kernel)
        self._mount = kernel.record("mount", "mnt_parent", "mnt_mountpoint", "mnt.mnt_root")
        self._mount_of = kernel.offset("mount", "mnt")
        self._mounts: dict[int, Mounted] = {}
        self._directories: dict[Location, bytes | None] = {}

    def path(self, location: Location) -> Path:
        """As d_path() prints it; GuestDataError where memory does not hold one."""
        dentry = self.dentries.read(location.dentry)
        is_root = dentry.parent == location.dentry
        namer = self.dentries.namer(dentry)
        # What has no directory but is mounted (`ip netns`) goes by where it is mounted.
        if namer and not (is_root and location.dentry == self.mounted(location.mount).root):
            raw = namer(self.dentries, dentry)
            return Path(_text(raw), raw.endswith(DELETED))
        raw = self._absolute(location, dentry) or b"/"
        if dentry.hashed or is_root:
            return Path(_text(raw), False)
        return Path(_text(raw + DELETED), True)

    def reachable(self, location: Location) -> str | None:
        """The path, or None for what does not lie beneath the root (__d_path() in the kernel)."""
        climbed = self._climb(location)
        if climbed is None or climbed[1] != self.root:
            return None
        return _text(climbed[0] or b"/")

    def inside(self, dentry_address: int) -> str:
        """The path from the root of its own filesystem, as in /proc/PID/mountinfo."""
        at, dentry = dentry_address, self.dentries.read(dentry_address)
        if self.dentries.namer(dentry) is namespace:
            return _text(namespace(self.dentries, dentry))
        ending = b"//deleted" if not dentry.hashed and dentry.parent != at else b""
        parts: list[bytes] = []
        while dentry.parent != at:
            self._put(parts, dentry)
            at = dentry.parent
            dentry = self.dentries.read(at)
        return _text((_joined(parts) or b"/") + ending)

    def mounted(self, vfsmount: int) -> Mounted:
        """The mount that a vfsmount is part of."""
        known = self._mounts.get(vfsmount)
        if known is None:
            parent, mountpoint, root = self._mount.read(vfsmount - self._mount_of)
            known = Mounted(parent + self._mount_of, mountpoint, root)
            self._mounts[vfsmount] = known
        return known

    def _absolute(self, location: Location, dentry: Dentry) -> bytes | None:
        """Its path, b"" for the root; None for one that was moved out of its mount."""
        if location == self.root or location.dentry == self.mounted(location.mount).root:
            climbed = self._climb(location)
            return climbed[0] if climbed else None
        if dentry.parent == location.dentry:
            return None
        above = Location(location.mount, dentry.parent)
        if above not in self._directories:
            climbed = self._climb(above)
            self._directories[above] = climbed[0] if climbed else None
        directory = self._directories[above]
        return None if directory is None else b"%s/%s" % (directory, self.dentries.own_name(dentry))

    def _climb(self, location: Location) -> tuple[bytes, Location] | None:
        """The names from ``location`` up, and where they ended; None if that left its mount."""
        parts: list[bytes] = []
        mount, at = location
        for _ in range(MAX_STEPS):
            if (mount, at) == self.root:
                return _joined(parts), Location(mount, at)
            where = self.mounted(mount)
            if at == where.root:
                if where.parent == mount:  # the root of all mounts, or a detached one
                    return _joined(parts), Location(mount, at)
                mount, at = where.parent, where.mountpoint
                continue
            dentry = self.dentries.read(at)
            if dentry.parent == at:
                return None
            self._put(parts, dentry)
            at = dentry.parent
        raise GuestDataError(f"a path of more than {MAX_STEPS} directories, or in a circle")

    def _put(self, parts: list[bytes], dentry: Dentry) -> None:
        if len(parts) >= MAX_STEPS:
            raise GuestDataError(f"a path of more than {MAX_STEPS} directories, or in a circle")
        parts.append(b"/" + self.dentries.own_name(dentry))


def first_root(kernel: Kernel) -> Location:
    """The root directory of the first process of the initial pid namespace."""
    reaper = kernel.record("pid_namespace", "child_reaper").read(kernel.symbol("init_pid_ns"))[0]
    return task_root(kernel, reaper or kernel.symbol("init_task"))


def task_root(kernel: Kernel, task_address: int) -> Location:
    """The root directory of a task; GuestDataError for one that has exited."""
    fs = kernel.record("task_struct", "fs").read(task_address)[0]
    return Location(*kernel.record("fs_struct", "root.mnt", "root.dentry").read(fs))


def _joined(parts: list[bytes]) -> bytes:
    return b"".join(reversed(parts))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
