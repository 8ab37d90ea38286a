"""Mounts of a mount namespace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from dvisor.errors import GuestDataError, StateError
from dvisor.guest.files import device
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.lists import list_entries, tree_entries
from dvisor.guest.paths import Location, Paths, task_root
from dvisor.guest.tasks import find_task

if TYPE_CHECKING:
    from dvisor.guest.lists import Problem

MAX_MOUNTS = 1 << 20  # fs.mount-max is 100,000 by default
MAX_SOURCE = 4096

# include/linux/mount.h, in the order of fs/proc_namespace.c
_MOUNT_OPTIONS = (
    (0x01, "nosuid"),
    (0x02, "nodev"),
    (0x04, "noexec"),
    (0x08, "noatime"),
    (0x10, "nodiratime"),
    (0x20, "relatime"),
    (0x80, "nosymfollow"),
)
_READ_ONLY = 0x40
_CURSOR = 0x1000_0000  # not a mount, but a reader's bookmark (in the list of kernels before 6.8)
_SHARED, _UNBINDABLE = 0x1000, 0x2000
# include/linux/fs.h
_SUPER_OPTIONS = ((1 << 4, "sync"), (1 << 7, "dirsync"), (1 << 6, "mand"), (1 << 25, "lazytime"))
_SUPER_READ_ONLY = 1


class Mount(msgspec.Struct, frozen=True):
    """One line of /proc/PID/mountinfo."""

    id: int
    parent: int
    """Its parent's id."""
    device: str
    """``major:minor`` of the filesystem."""
    root: str
    """The part of the filesystem that is mounted, as a path from the filesystem's own root."""
    mountpoint: str
    options: tuple[str, ...]
    """ro or rw, then nosuid, nodev, noexec ... of this mount."""
    propagation: tuple[str, ...]
    """``shared:N``, ``master:N``, ``unbindable``."""
    fstype: str
    source: str
    super_options: tuple[str, ...]
    """ro or rw, sync, dirsync, lazytime of the filesystem; those that only its own code can print
    (``size=``, ``errors=``) are not among them."""
    address: int
    """Of the struct mount; what ``OpenFile.mount`` names."""


def read_mounts(kernel: Kernel, pid: int = 1) -> Listing[Mount]:
    """Mounts in the namespace of process ``pid``, as /proc/PID/mountinfo, in its order.

    What does not lie beneath that process's root directory is left out, as there.
    """
    task = find_task(kernel, pid)
    nsproxy = kernel.record("task_struct", "nsproxy").read(task.address)[0]
    if not nsproxy:
        raise StateError(f"process {pid} of the guest has exited: it has no mounts any more")
    listing: Listing[Mount] = Listing()
    namespace = kernel.record("nsproxy", "mnt_ns").read(nsproxy)[0]
    reader = _Reader(kernel, Paths(kernel, task_root(kernel, task.address)))
    for address in _namespace_mounts(kernel, namespace, listing.problem):
        try:
            mount = reader.read(address)
        except GuestDataError as error:
            listing.problem(f"a mount cannot be read: {error}")
            continue
        if mount:
            listing.append(mount)
    return listing


def _namespace_mounts(kernel: Kernel, namespace: int, problem: Problem) -> Iterator[int]:
    """Addresses of the mounts: in a tree by id since 6.8 (2eea9ce4310d), in a list before."""
    tree = kernel.place("mnt_namespace", "mounts")
    link = kernel.place("mount", "mnt_node")
    memory = kernel.memory
    if link and tree and kernel.place("mnt_namespace", "mounts.rb_node"):
        root = namespace + tree.offset
        return tree_entries(memory, root, link.offset, problem, "mounts", MAX_MOUNTS)
    head = namespace + kernel.offset("mnt_namespace", "list")
    offset = kernel.offset("mount", "mnt_list")
    return list_entries(memory, head, offset, problem, "mounts", MAX_MOUNTS)


class _Reader:
    def __init__(self, kernel: Kernel, paths: Paths) -> None:
        self.kernel = kernel
        self.paths = paths
        self.vfsmount_of = kernel.offset("mount", "mnt")
        self.mount = kernel.record(
            "mount",
            "mnt_id",
            "mnt_parent",
            "mnt.mnt_root",
            "mnt.mnt_sb",
            "mnt.mnt_flags",
            "mnt_devname",
            "mnt_group_id",
            "mnt_master",
            "mnt_t_flags?",
        )
        self.super_block = kernel.record("super_block", "s_dev", "s_flags", "s_type", "s_subtype")
        self.mount_id = kernel.record("mount", "mnt_id")
        self.group_id = kernel.record("mount", "mnt_group_id")
        self.type_name = kernel.record("file_system_type", "name")

    def read(self, address: int) -> Mount | None:
        """The mount at ``address``; None for one that the process cannot reach."""
        number, parent, root, super_block, flags, source, group, master, state = self.mount.read(
            address
        )
        if flags & _CURSOR and state is None:
            return None
        mountpoint = self.paths.reachable(Location(address + self.vfsmount_of, root))
        if mountpoint is None:
            return None
        number_of_device, super_flags, kind, subtype = self.super_block.read(super_block)
        options = _options(flags, _READ_ONLY, _MOUNT_OPTIONS)
        if self._is_idmapped(address, super_block):
            options += ("idmapped",)
        return Mount(
            number,
            self.mount_id.read(parent)[0],
            device(number_of_device),
            self.paths.inside(root),
            mountpoint,
            options,
            self._propagation(flags if state is None else state << 12, group, master),
            self._type(kind, subtype),
            self._string(source, MAX_SOURCE) if source else "none",
            _options(super_flags, _SUPER_READ_ONLY, _SUPER_OPTIONS),
            address,
        )

    def _propagation(self, flags: int, group: int, master: int) -> tuple[str, ...]:
        """``flags`` has MNT_SHARED and MNT_UNBINDABLE; their own member, since 6.17, has the same
        two bits 12 lower (T_SHARED, fs/mount.h)."""
        found = []
        if flags & _SHARED:
            found.append(f"shared:{group}")
        if master:
            found.append(f"master:{self.group_id.read(master)[0]}")
        if flags & _UNBINDABLE:
            found.append("unbindable")
        return tuple(found)

    def _is_idmapped(self, address: int, super_block: int) -> bool:
        """By struct vfsmount's mnt_idmap, or its mnt_userns before 6.2 (256c8aed2b42)."""
        kernel = self.kernel
        if kernel.place("mount", "mnt.mnt_idmap"):
            idmap = kernel.record("mount", "mnt.mnt_idmap").read(address)[0]
            return idmap not in {kernel.find_symbol("nop_mnt_idmap"), 0}
        mapped = kernel.record("mount", "mnt.mnt_userns").read(address)
        return mapped != kernel.record("super_block", "s_user_ns").read(super_block)

    def _type(self, kind: int, subtype: int) -> str:
        name = self._string(self.type_name.read(kind)[0], 64)
        return f"{name}.{self._string(subtype, 64)}" if subtype else name

    def _string(self, address: int, limit: int) -> str:
        return self.kernel.memory.string(address, limit).decode("utf-8", "backslashreplace")


def _options(flags: int, read_only: int, names: tuple[tuple[int, str], ...]) -> tuple[str, ...]:
    first = "ro" if flags & read_only else "rw"
    return (first, *(name for bit, name in names if flags & bit))
