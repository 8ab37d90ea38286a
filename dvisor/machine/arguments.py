"""A ``LaunchSpec`` as QEMU's command line."""

from __future__ import annotations

from pathlib import Path

from dvisor.machine import native
from dvisor.machine.spec import Disk, LaunchSpec, Net

RAM_ID = "ram"


def qemu_argv(
    spec: LaunchSpec,
    control_fd: int,
    events_fd: int,
    serial_fd: int,
    spare_socket: Path,
    traps_fd: int | None = None,
) -> list[str]:
    """The whole command line; the guest does not run before QMP ``cont`` (-S).

    The three descriptors are connected sockets that QEMU inherits. ``spare_socket`` is a third
    QMP monitor for whoever wants one. RAM in a memfd and aux-ram-share=on are what a later
    replacement of QEMU under the guest needs from the first boot on (cpr-transfer). ``traps_fd``:
    the memory that dvisor's library shares, if it is to be loaded.
    """
    argv = [*spec.qemu_argv_prefix, "-name", f"{spec.name},process=dvisor-{spec.name[:8]}"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-S"]
    argv += ["-object", f"memory-backend-memfd,id={RAM_ID},size={spec.memory_bytes},share=on"]
    argv += ["-machine", f"q35,accel={spec.accel},memory-backend={RAM_ID},aux-ram-share=on"]
    argv += ["-m", f"{spec.memory_bytes >> 20}M", "-smp", str(spec.vcpus), "-cpu", spec.cpu]
    argv += ["-kernel", spec.vmlinuz, "-append", spec.cmdline]
    if spec.initrd is not None:
        argv += ["-initrd", spec.initrd]
    argv += _monitor("qmp-control", f"socket,fd={control_fd}")
    argv += _monitor("qmp-events", f"socket,fd={events_fd}")
    argv += _monitor("qmp-spare", f"socket,path={_escaped(str(spare_socket))},server=on,wait=off")
    argv += ["-chardev", f"socket,id=console,fd={serial_fd}", "-serial", "chardev:console"]
    argv += ["-device", "virtio-rng-pci"]
    for index, disk in enumerate(spec.disks):
        argv += _disk(index, disk)
    argv += _net(spec.net)
    if traps_fd is not None:
        argv += native.plugin_arguments(native.library(), traps_fd)
    # A guest that panics stays as it is, to be looked at (QEMU learns of it through pvpanic).
    argv += ["-action", "panic=pause"]
    argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]
    return [*argv, *spec.qemu_args]


def _monitor(name: str, chardev: str) -> list[str]:
    kind, _, options = chardev.partition(",")
    return ["-chardev", f"{kind},id={name},{options}", "-qmp", f"chardev:{name}"]


def _disk(index: int, disk: Disk) -> list[str]:
    drive = f"file={_escaped(disk.path)},if=none,id=disk{index},format={disk.format}"
    drive += f",snapshot={_on(disk.snapshot)},readonly={_on(disk.readonly)}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk{index}"]


def _net(net: Net) -> list[str]:
    if net.mode == "none":
        return []
    user = "user,id=net0" + "".join(
        f",hostfwd={forward.protocol}:127.0.0.1:{forward.host}-:{forward.guest}"
        for forward in net.forwards
    )
    # Booted by -kernel, the guest needs no network boot ROM.
    return ["-netdev", user, "-device", "virtio-net-pci,netdev=net0,romfile="]


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _escaped(text: str) -> str:
    """A comma in an option's value is doubled (qemu(1), -drive)."""
    return text.replace(",", ",,")
