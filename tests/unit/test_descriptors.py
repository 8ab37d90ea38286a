"""Verdicts on the calls of a concealed process: one short script for each family."""

from __future__ import annotations

import errno

import pytest

from dvisor.policy.descriptors import AT_FDCWD, Descriptor, Message, Process, Value, decide
from dvisor.policy.rules import PathRule, Rules, SocketAddress, SocketRule
from dvisor.policy.syscalls import system_call
from dvisor.verdicts import Both, Local, Moved, Proxied, Refused, Side, Verdict

RULES = Rules(
    paths=(PathRule(Side.PROXIED, prefix="/secret"),),
    sockets=(
        SocketRule(Side.PROXIED, "inet"),
        SocketRule(Side.LOCAL, "inet", address="127.0.0.0/8"),
        SocketRule(Side.PROXIED, "unix", address="/secret/*"),
    ),
)
GUEST_FILE, FILE, FOLDER, SOCKET, FRESH, GUEST_SOCKET, EPOLL = 3, 4, 5, 6, 7, 8, 9
PROCESS = Process(
    descriptors={
        GUEST_FILE: Descriptor(Side.LOCAL),
        FILE: Descriptor(Side.PROXIED),
        FOLDER: Descriptor(Side.PROXIED, "/secret/folder"),
        SOCKET: Descriptor(Side.PROXIED),
        FRESH: Descriptor(Side.PROXIED, fresh=True),
        GUEST_SOCKET: Descriptor(Side.LOCAL, fresh=True),
        EPOLL: Descriptor(Side.BOTH),
    },
    cwd="/home",
    pid=42,
)
OUTSIDE = SocketAddress(2, "192.0.2.1", 80)
LOOPBACK = SocketAddress(2, "127.0.0.1", 80)


def verdict(name: str, process: Process = PROCESS, /, **arguments: Value) -> Verdict:
    return decide(system_call(name).number, arguments, process, RULES)


def refusal(name: str, process: Process = PROCESS, /, **arguments: Value) -> str:
    found = verdict(name, process, **arguments)
    assert isinstance(found, Refused), found
    assert found.reason
    return found.name


def test_the_descriptor_decides_a_read() -> None:
    assert verdict("read", fd=FILE) == Proxied()
    assert verdict("read", fd=GUEST_FILE) == Local()


def test_a_descriptor_that_is_not_known_is_the_guest_s() -> None:
    assert verdict("read", fd=99) == Local()
    assert verdict("read") == Local()


def test_the_path_decides_an_open() -> None:
    assert verdict("open", filename="/secret/../secret/x") == Proxied(("/secret/x",), True)
    assert verdict("open", filename="/secretx") == Local(True)
    assert verdict("open", filename="/secret/../etc/passwd") == Local(True)


def test_a_relative_path_begins_at_its_directory() -> None:
    at_cwd = verdict("openat", dfd=AT_FDCWD, filename="../secret/x")
    assert at_cwd == Proxied(("/secret/x",), True)
    assert verdict("openat", dfd=FOLDER, filename="x") == Proxied(("/secret/folder/x",), True)
    assert verdict("openat", dfd=FOLDER, filename="../../etc/x") == Local(True)
    assert verdict("openat", dfd=FOLDER, filename="/etc/x") == Local(True)


def test_an_empty_path_means_the_descriptor() -> None:
    assert verdict("newfstatat", dfd=FILE, filename="") == Proxied()
    assert verdict("utimensat", dfd=FILE, filename=None) == Proxied()
    assert verdict("statx", dfd=GUEST_FILE, filename="") == Local()


def test_a_path_in_proc_to_an_own_descriptor_means_the_descriptor() -> None:
    for path in ("/proc/self/fd/4", "/dev/fd/4", "/proc/42/fd/4"):
        assert isinstance(verdict("readlink", path=path), Proxied)
    assert verdict("readlink", path="/proc/self/fd/3") == Local()


def test_a_path_too_long_is_refused_as_linux_does() -> None:
    assert refusal("open", filename="/" + "x" * 4096) == "ENAMETOOLONG"


def test_a_changed_root_is_put_before_a_path() -> None:
    jailed = Process(root="/secret")
    assert verdict("stat", jailed, filename="/etc/passwd") == Proxied(("/secret/etc/passwd",))
    assert refusal("execve", jailed, filename="/bin/sh") == "EACCES"


def test_the_working_directory_is_kept_on_its_side() -> None:
    assert verdict("chdir", filename="/secret") == Proxied(("/secret",), True)
    assert verdict("getcwd") == Local()
    assert verdict("getcwd", Process(cwd="/secret/a")) == Proxied(("/secret/a",))
    assert verdict("umask", mask=0o22) == Both()


def test_between_the_sides_it_is_as_between_file_systems() -> None:
    assert refusal("rename", oldname="/tmp/a", newname="/secret/a") == "EXDEV"
    assert refusal("linkat", olddfd=FOLDER, oldname="a", newdfd=-100, newname="b") == "EXDEV"
    assert refusal("copy_file_range", fd_in=GUEST_FILE, fd_out=FILE) == "EXDEV"
    both = verdict("rename", oldname="/secret/a", newname="/secret/b")
    assert both == Proxied(("/secret/a", "/secret/b"))


def test_of_a_symbolic_link_only_its_own_place_decides() -> None:
    assert verdict("symlink", oldname="/etc", newname="/secret/a") == Proxied(("/secret/a",))
    assert verdict("symlink", oldname="/secret/a", newname="/tmp/a") == Local()


def test_sendfile_and_splice_between_the_sides_make_programs_fall_back() -> None:
    assert refusal("sendfile", out_fd=SOCKET, in_fd=GUEST_FILE) == "EINVAL"
    assert refusal("splice", fd_in=GUEST_FILE, fd_out=SOCKET) == "EINVAL"
    assert verdict("sendfile", out_fd=SOCKET, in_fd=FILE) == Proxied()


def test_poll_waits_on_both_sides() -> None:
    assert verdict("poll", ufds=[FILE, SOCKET]) == Proxied()
    assert verdict("poll", ufds=[GUEST_FILE, -1]) == Local()
    assert verdict("poll", ufds=[GUEST_FILE, SOCKET]) == Both()
    assert verdict("poll", ufds=[]) == Local()
    assert verdict("select", inp=[GUEST_FILE], outp=[SOCKET], exp=None) == Both()


def test_an_epoll_instance_may_be_on_both_sides() -> None:
    assert verdict("epoll_create1", flags=0) == Local(True)
    assert verdict("epoll_ctl", epfd=EPOLL, fd=SOCKET) == Proxied(follow=True)
    assert verdict("epoll_wait", epfd=EPOLL) == Both()
    assert verdict("close", fd=EPOLL) == Both(True)
    assert verdict("poll", ufds=[EPOLL]) == Both()
    assert verdict("read", fd=EPOLL) == Local()


def test_a_socket_is_made_by_its_family() -> None:
    assert verdict("socket", family=2) == Proxied(follow=True)
    assert verdict("socket", family=1) == Local(True)
    assert verdict("socket", family=16) == Local(True)


def test_a_fresh_socket_moves_to_the_side_of_its_address() -> None:
    assert verdict("connect", fd=FRESH, uservaddr=OUTSIDE) == Proxied()
    assert verdict("connect", fd=FRESH, uservaddr=LOOPBACK) == Moved(FRESH, Side.LOCAL)
    hidden = SocketAddress(1, "../secret/socket")
    assert verdict("bind", fd=GUEST_SOCKET, umyaddr=hidden) == Moved(GUEST_SOCKET, Side.PROXIED)


def test_a_used_socket_cannot_reach_the_other_side() -> None:
    assert refusal("connect", fd=SOCKET, uservaddr=LOOPBACK) == "ENETUNREACH"
    assert refusal("bind", fd=SOCKET, umyaddr=LOOPBACK) == "EADDRNOTAVAIL"
    assert refusal("sendto", fd=SOCKET, addr=LOOPBACK) == "ENETUNREACH"
    assert verdict("sendto", fd=SOCKET, addr=None) == Proxied()
    assert verdict("connect", fd=SOCKET, uservaddr=SocketAddress(0)) == Proxied()


def test_messages_to_both_sides_in_one_call_are_refused() -> None:
    mixed = [Message(OUTSIDE), Message(LOOPBACK)]
    assert refusal("sendmmsg", fd=FRESH, mmsg=mixed) == "ENETUNREACH"
    assert verdict("sendmsg", fd=FRESH, msg=Message(LOOPBACK)) == Moved(FRESH, Side.LOCAL)


def test_a_socket_from_before_the_enrolment_stays_in_the_guest() -> None:
    assert verdict("connect", fd=55, uservaddr=OUTSIDE) == Local()


def test_passing_a_descriptor_to_the_other_side_is_refused() -> None:
    assert refusal("sendmsg", fd=GUEST_SOCKET, msg=Message(rights=(FILE,))) == "EBADF"
    assert verdict("sendmsg", fd=SOCKET, msg=Message(rights=(FILE,))) == Proxied()


def test_a_private_mapping_is_filled_and_a_shared_one_refused() -> None:
    assert verdict("mmap", fd=FILE, flags=0x02) == Proxied()
    assert refusal("mmap", fd=FILE, flags=0x01) == "ENODEV"
    assert verdict("mmap", fd=GUEST_FILE, flags=0x01) == Local()
    assert verdict("mmap", fd=FILE, flags=0x22) == Local()


def test_sub_commands_of_proxied_descriptors_are_looked_up() -> None:
    assert verdict("fcntl", fd=FILE, cmd=3) == Proxied(follow=True)
    assert refusal("fcntl", fd=FILE, cmd=8) == "EINVAL"
    assert refusal("fcntl", fd=FILE, cmd=12345) == "EINVAL"
    assert refusal("ioctl", fd=FILE, cmd=0x5401) == "ENOTTY"
    assert verdict("ioctl", fd=SOCKET, cmd=0x541B) == Proxied(follow=True)
    assert verdict("ioctl", fd=GUEST_FILE, cmd=0x5401) == Local(True)
    assert verdict("setsockopt", fd=SOCKET, level=6, optname=1) == Proxied()
    assert refusal("setsockopt", fd=SOCKET, level=0, optname=64) == "ENOPROTOOPT"


def test_what_the_proxy_cannot_do_is_refused_as_programs_expect() -> None:
    assert refusal("inotify_add_watch", fd=GUEST_FILE, pathname="/secret") == "ENOSPC"
    assert refusal("execve", filename="/secret/program") == "EACCES"
    assert refusal("name_to_handle_at", dfd=-100, name="/secret/x") == "EOPNOTSUPP"
    assert refusal("io_uring_setup", entries=8) == "ENOSYS"


def test_a_refusal_without_a_reason_of_its_own_has_its_family_s() -> None:
    found = verdict("io_uring_setup")
    assert isinstance(found, Refused)
    assert "ENOSYS is what a kernel without them says" in found.reason


def test_processes_stay_in_the_guest_and_are_followed() -> None:
    for name in ("fork", "vfork", "clone", "clone3", "exit", "exit_group", "setuid"):
        assert verdict(name) == Local(True)
    assert verdict("getpid") == Local()
    assert verdict("futex") == Local()


@pytest.mark.parametrize("number", [-1, 337, 423, 472, 100_000, 0x4000_0000, 0xFFFF_FFFF])
def test_a_number_out_of_the_table_gives_enosys(number: int) -> None:
    found = decide(number, {}, PROCESS, RULES)
    assert isinstance(found, Refused)
    assert found.errno == errno.ENOSYS


def test_registers_are_cut_to_32_bits_as_linux_does() -> None:
    """Else a process would hide a call by garbage in the upper halves."""
    dirty = 0xDEAD_BEEF << 32
    assert decide(dirty | 0, {"fd": dirty | FILE}, PROCESS, RULES) == Proxied()
    at_cwd = verdict("openat", dfd=0xFFFF_FF9C, filename="../secret/x")
    assert at_cwd == Proxied(("/secret/x",), True)
    assert refusal("ioctl", fd=FILE, cmd=dirty | 0x5401) == "ENOTTY"
    assert verdict("socket", family=dirty | 2) == Proxied(follow=True)
