"""The two initramfs: one is the whole image "tiny", the other finds and enters a disk's root."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dvisor.images import cpio
from dvisor.images.kernels import Kernel
from dvisor.images.modules import ModuleTables, contents
from dvisor.images.recipes import script

_DIRECTORIES = ["bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp"]
# virtio_pci comes first although nothing needs it by name: it is what finds the others' devices.
_NETWORK = ["virtio_pci", "virtio_net"]
_DISK = ["virtio_pci", "virtio_blk", "ext4"]


def tiny(kernel: Kernel, busybox: Path) -> bytes:
    """A busybox system with a root shell on the serial console."""
    network = cpio.file("bin/dvisor-net", script("dvisor-net.sh").encode(), 0o755)
    return _initramfs(kernel, busybox, "tiny-init.sh", _NETWORK, [network])


def mount_root(kernel: Kernel, busybox: Path) -> bytes:
    """Loads the modules for a virtio disk and ext4, mounts ``root=`` and runs ``init=`` there."""
    return _initramfs(kernel, busybox, "mount-root.sh", _DISK, [])


def _initramfs(
    kernel: Kernel, busybox: Path, init: str, modules: list[str], more: list[cpio.Entry]
) -> bytes:
    entries = [cpio.directory(path) for path in _DIRECTORIES]
    entries += [cpio.symlink("sbin", "bin"), cpio.symlink("usr", ".")]
    # The kernel opens it for PID 1 before anything can have mounted /dev.
    entries.append(cpio.character_device("dev/console", 5, 1))
    entries.append(cpio.file("bin/busybox", busybox.read_bytes(), 0o755))
    entries += [cpio.symlink(f"bin/{applet}", "busybox") for applet in _applets(busybox)]
    entries.append(cpio.file("init", script(init).encode(), 0o755))
    return cpio.archive(entries + _module_files(kernel, modules) + more)


def _module_files(kernel: Kernel, names: list[str]) -> list[cpio.Entry]:
    files = ModuleTables(kernel.modules).load_order(names)
    flat = [path.name.split(".ko")[0] + ".ko" for path in files]
    order = "".join(f"{name}\n" for name in flat)
    entries = [
        cpio.file(f"modules/{name}", contents(path)) for name, path in zip(flat, files, strict=True)
    ]
    return [*entries, cpio.file("modules/order", order.encode())]


def _applets(busybox: Path) -> list[str]:
    listing = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    return [applet for applet in listing.stdout.split() if applet != "busybox"]
