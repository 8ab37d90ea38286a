"""Credentials of tasks: who they are and what they may do."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel

NGROUPS_MAX = 65536  # include/uapi/linux/limits.h


class Credentials(msgspec.Struct, frozen=True):
    """A task's objective credentials (``real_cred``), those of /proc/PID/status.

    Numbers are those of the initial user namespace. Capability sets are bit masks, bit N for
    capability N of include/uapi/linux/capability.h.
    """

    uid: int
    euid: int
    suid: int
    fsuid: int
    gid: int
    egid: int
    sgid: int
    fsgid: int
    groups: tuple[int, ...]
    """Supplementary groups, ascending."""
    cap_inheritable: int
    cap_permitted: int
    cap_effective: int
    cap_bounding: int
    cap_ambient: int


class CredentialsReader:
    """Reads credentials; remembers those that it has seen, for tasks share them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        ids = ("uid", "euid", "suid", "fsuid", "gid", "egid", "sgid", "fsgid")
        self._ids = kernel.record("cred", *(f"{name}.val" for name in ids))
        # kernel_cap_t was two 32-bit words before 6.3 (f122a08b197d): little-endian, so the same.
        sets = ("cap_inheritable", "cap_permitted", "cap_effective", "cap_bset", "cap_ambient")
        self._sets = tuple(kernel.offset("cred", name) for name in sets)
        self._group_info = kernel.record("cred", "group_info")
        self._group_count = kernel.record("group_info", "ngroups")
        self._groups_at = kernel.offset("group_info", "gid")
        self._known: dict[int, Credentials] = {}

    def read(self, cred: int) -> Credentials:
        """The ``struct cred`` at an address; GuestDataError."""
        known = self._known.get(cred)
        if known is None:
            u64 = self.kernel.memory.u64
            sets = (u64(cred + offset) for offset in self._sets)
            values: tuple[Any, ...] = (*self._ids.read(cred), self._groups(cred), *sets)
            known = self._known[cred] = Credentials(*values)
        return known

    def _groups(self, cred: int) -> tuple[int, ...]:
        info = self._group_info.read(cred)[0]
        count = self._group_count.read(info)[0]
        if not 0 <= count <= NGROUPS_MAX:
            raise GuestDataError(f"credentials with {count} groups")
        return struct.unpack(
            f"<{count}I", self.kernel.memory.read(info + self._groups_at, 4 * count)
        )
