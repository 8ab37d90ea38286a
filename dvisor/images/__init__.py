"""Private Debian roots for tools, and guest images, from Debian packages; cached by content."""

from __future__ import annotations

from dvisor.images.catalog import DEFAULT_KERNEL, GuestImage, build, find, is_current, ls, rm
from dvisor.images.kernels import Kernel, kernel
from dvisor.images.progress import PlainProgress, Progress, TerminalProgress, progress_on_stderr
from dvisor.images.qemu import QemuBinary, qemu_binary
from dvisor.images.recipes import recipes
from dvisor.images.store import Store

__all__ = [
    "DEFAULT_KERNEL",
    "GuestImage",
    "Kernel",
    "PlainProgress",
    "Progress",
    "QemuBinary",
    "Store",
    "TerminalProgress",
    "build",
    "find",
    "is_current",
    "kernel",
    "ls",
    "progress_on_stderr",
    "qemu_binary",
    "recipes",
    "rm",
]
