"""Paths by fs/d_path.c's rules, on dentries and mounts made for the purpose."""

from __future__ import annotations

import pytest

from dvisor.errors import GuestDataError
from dvisor.guest.paths import Location, Path, Paths
from tests.unit.fake_kernel import FakeKernel

LAYOUTS = {
    "dentry.d_parent": (0, "Q"),
    "dentry.d_name.len": (8, "I"),
    "dentry.d_name.name": (16, "Q"),
    "dentry.d_inode": (24, "Q"),
    "dentry.d_hash.pprev": (32, "Q"),
    "dentry.d_op": (40, "Q"),
    "dentry_operations.d_dname": (0, "Q"),
    "inode.i_ino": (0, "Q"),
    "mount.mnt_parent": (0, "Q"),
    "mount.mnt_mountpoint": (8, "Q"),
    "mount.mnt": (16, "24s"),
    "mount.mnt.mnt_root": (16, "Q"),
}
VFSMOUNT = 16
SOCKFS = 0xFFFF_FFFF_8100_0000


class Tree:
    """Directories in a fake kernel: a root mount, and what tests add."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(LAYOUTS, {"sockfs_dname": SOCKFS, "pipefs_dname": SOCKFS + 16})
        self.next = 0xFFFF_8880_0000_1000
        self.top = self.dentry(b"/")
        self.mount = self.add_mount(None, self.top)
        self.paths = Paths(self.kernel, Location(self.mount, self.top))

    def new(self) -> int:
        self.next += 512
        self.kernel.memory.write(self.next, bytes(512))
        return self.next

    def dentry(self, name: bytes, parent: int | None = None, *, hashed: bool = True) -> int:
        address = self.new()
        self.kernel.memory.write(address + 128, name)
        self.kernel.put(
            "dentry",
            address,
            d_parent=address if parent is None else parent,
            d_name__len=len(name),
            d_name__name=address + 128,
            d_hash__pprev=int(hashed),
        )
        return address

    def chain(self, *names: bytes, start: int | None = None) -> int:
        at = self.top if start is None else start
        for name in names:
            at = self.dentry(name, at)
        return at

    def add_mount(self, parent: int | None, root: int, mountpoint: int = 0) -> int:
        """A vfsmount; without a parent it is the top of a tree of mounts."""
        address = self.new()
        above = address if parent is None else parent - VFSMOUNT
        self.kernel.put(
            "mount", address, mnt_parent=above, mnt_mountpoint=mountpoint, mnt__mnt_root=root
        )
        return address + VFSMOUNT

    def path(self, dentry: int, mount: int | None = None) -> str:
        return self.paths.path(Location(mount or self.mount, dentry)).text


def test_path_of_a_file_and_of_the_root() -> None:
    tree = Tree()
    assert tree.path(tree.chain(b"etc", b"ssh", b"sshd config")) == "/etc/ssh/sshd config"
    assert tree.path(tree.top) == "/"


def test_removed_file_is_marked_and_a_file_of_that_name_is_not() -> None:
    tree = Tree()
    gone = tree.dentry(b"gone", tree.top, hashed=False)
    assert tree.paths.path(Location(tree.mount, gone)) == Path("/gone (deleted)", True)
    named = tree.chain(b"kept (deleted)")
    assert tree.paths.path(Location(tree.mount, named)) == Path("/kept (deleted)", False)


def test_path_crosses_mounts() -> None:
    tree = Tree()
    disk = tree.dentry(b"/")
    mounted = tree.add_mount(tree.mount, disk, tree.chain(b"mnt", b"disk"))
    assert tree.path(tree.chain(b"a", b"b", start=disk), mounted) == "/mnt/disk/a/b"
    assert tree.path(disk, mounted) == "/mnt/disk"


def test_root_that_is_mounted_over_another_root_is_slash() -> None:
    tree = Tree()
    disk = tree.dentry(b"/")
    mounted = tree.add_mount(tree.mount, disk, tree.top)
    paths = Paths(tree.kernel, Location(mounted, disk))
    assert paths.path(Location(mounted, tree.chain(b"etc", start=disk))).text == "/etc"
    assert paths.reachable(Location(mounted, disk)) == "/"
    assert paths.reachable(Location(tree.mount, tree.top)) is None


def test_detached_mount_gives_the_path_inside_it_and_is_unreachable() -> None:
    tree = Tree()
    disk = tree.dentry(b"/")
    detached = tree.add_mount(None, disk)
    inside = tree.chain(b"x", start=disk)
    assert tree.path(inside, detached) == "/x"
    assert tree.paths.reachable(Location(detached, inside)) is None


def test_what_was_moved_out_of_a_bind_mount_is_slash() -> None:
    tree = Tree()
    bind = tree.add_mount(tree.mount, tree.chain(b"src", b"in"), tree.chain(b"dst"))
    assert tree.path(tree.chain(b"moved", b"out"), bind) == "/"


def test_socket_goes_by_its_inode_and_unknown_rules_are_marked() -> None:
    tree = Tree()
    for function, expected in ((SOCKFS, "socket:[77]"), (SOCKFS + 1, "?:[77]")):
        socket, inode, operations = tree.dentry(b"TCP", hashed=False), tree.new(), tree.new()
        tree.kernel.put("inode", inode, i_ino=77)
        tree.kernel.put("dentry_operations", operations, d_dname=function)
        tree.kernel.put("dentry", socket, d_inode=inode, d_op=operations)
        assert tree.path(socket, tree.add_mount(None, tree.top)) == expected


def test_bytes_that_are_no_text_survive_as_escapes() -> None:
    tree = Tree()
    assert tree.path(tree.chain(b"\xff\n")) == "/\\xff\n"


def test_circle_of_directories_is_an_error_in_bounded_time() -> None:
    tree = Tree()
    first = tree.chain(b"a")
    second = tree.chain(b"b", start=first)
    tree.kernel.put("dentry", first, d_parent=second)
    with pytest.raises(GuestDataError, match="circle"):
        tree.path(second)
    with pytest.raises(GuestDataError, match="circle"):
        tree.paths.inside(second)


def test_circle_of_mounts_is_an_error() -> None:
    tree = Tree()
    first = tree.add_mount(None, tree.top)
    second = tree.add_mount(first, tree.top, tree.top)
    tree.kernel.put("mount", first - VFSMOUNT, mnt_parent=second - VFSMOUNT)
    tree.kernel.put("mount", first - VFSMOUNT, mnt_mountpoint=tree.top)
    with pytest.raises(GuestDataError, match="circle"):
        tree.path(tree.chain(b"a"), first)


def test_absurd_name_length_is_an_error() -> None:
    tree = Tree()
    file = tree.chain(b"a")
    tree.kernel.put("dentry", file, d_name__len=1 << 31)
    with pytest.raises(GuestDataError, match="2147483648 bytes"):
        tree.path(file)
