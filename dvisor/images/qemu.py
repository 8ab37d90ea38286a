"""A QEMU that is new enough: the system's if it is, else that of a private Debian root."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from dvisor.errors import HostError
from dvisor.folders import cache_directory
from dvisor.images.progress import Progress
from dvisor.images.roots import PrivateRoot, private_root
from dvisor.images.store import Store

_PROGRAM = "qemu-system-x86_64"
_DATA_DIRS = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
_MODULE_DIR = "usr/lib/x86_64-linux-gnu/qemu"
_VERSION_TIMEOUT_S = 20.0


class QemuBinary(msgspec.Struct, frozen=True):
    """How to start QEMU: ``argv_prefix`` and then QEMU's own options.

    ``path`` is the program's file; ``root`` the private root that it is from, if it is from one.
    """

    argv_prefix: tuple[str, ...]
    version: tuple[int, ...]
    path: Path
    root: Path | None = None


def qemu_binary(
    minimum: tuple[int, int] = (11, 0),
    *,
    store: Store | None = None,
    progress: Progress | None = None,
) -> QemuBinary:
    """A qemu-system-x86_64 of at least that version; a private root is made if need be."""
    found = shutil.which(_PROGRAM)
    if found is not None:
        system = QemuBinary((found,), _version((found,)), Path(found))
        if system.version >= minimum:
            return system
    root = private_root("qemu", store or Store(cache_directory()), progress or Progress())
    prefix = _private_prefix(root)
    version = _version(prefix)
    if version < minimum:
        raise HostError(
            f"QEMU {_dotted(minimum)} or later is needed and Debian's newest here is "
            f"{_dotted(version)} (in {root.path}); remove that directory to fetch it again, "
            f"or put a newer {_PROGRAM} on PATH"
        )
    return QemuBinary(prefix, version, root.path / "usr/bin" / _PROGRAM, root.path)


def _private_prefix(root: PrivateRoot) -> tuple[str, ...]:
    # QEMU looks for its modules where Debian installs them, which is the host's directory.
    modules = ("/usr/bin/env", f"QEMU_MODULE_DIR={root.path / _MODULE_DIR}")
    data = [word for place in _DATA_DIRS for word in ("-L", str(root.path / place))]
    return (*modules, *root.argv(f"usr/bin/{_PROGRAM}"), *data)


def _version(prefix: tuple[str, ...]) -> tuple[int, ...]:
    """Version that QEMU reports; (0,) if it does not run or is no QEMU."""
    try:
        said = subprocess.run(
            [*prefix, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (0,)
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part or 0) for part in match.groups()) if match else (0,)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
