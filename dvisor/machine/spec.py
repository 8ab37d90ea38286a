"""What a VM is made of, with every path resolved: what ``launch`` takes and QEMU is told."""

from __future__ import annotations

from typing import Literal

import msgspec

Accelerator = Literal["auto", "kvm", "tcg"]


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One virtio disk. ``snapshot``: what the guest writes is dropped when the VM ends."""

    path: str
    readonly: bool = False
    snapshot: bool = True
    format: Literal["raw", "qcow2"] = "raw"


class Forward(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A port of this host's loopback address that leads into the guest."""

    host: int
    guest: int
    protocol: Literal["tcp", "udp"] = "tcp"


class Net(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The guest's network: none, or QEMU's user-mode one with these ports let in."""

    mode: Literal["user", "none"] = "none"
    forwards: tuple[Forward, ...] = ()


class LaunchSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM, ready to launch. Paths are absolute; ``cmdline`` is the whole kernel command line."""

    name: str
    qemu_argv_prefix: tuple[str, ...]
    vmlinuz: str
    initrd: str | None = None
    disks: tuple[Disk, ...] = ()
    cmdline: str = "console=ttyS0"
    memory_bytes: int = 1 << 30
    vcpus: int = 1
    cpu: str = "max"
    accel: Accelerator = "auto"
    net: Net = Net()
    powerdown_timeout_s: float = 10.0
    qemu_args: tuple[str, ...] = ()
    traps: bool = False
    """Load dvisor's library into QEMU, for ``dvisor.machine.traps``; TCG only."""
