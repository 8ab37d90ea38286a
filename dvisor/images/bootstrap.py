"""Debian packages to a tar archive, by mmdebstrap; never anything left mounted.

Run by root, mmdebstrap mounts proc, sys and more in the tree, and leaves them there when it is
stopped at a bad moment; and its children outlive it. So it runs contained (see host.run).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dvisor.errors import HostError
from dvisor.images import host, mirror
from dvisor.images.progress import Progress
from dvisor.images.store import disk_full

# What mmdebstrap says as it goes, in order.
_MILESTONES = (
    "running apt-get update",
    "downloading packages",
    "extracting archives",
    "installing essential packages",
    "installing remaining packages",
    "cleaning package lists",
    "creating tarball",
)
# Written by a hook while the downloaded packages are still there; removed with the tree.
PACKAGE_LIST = "dvisor-packages"
_LIST_HOOK = f'cd "$1" && ls var/cache/apt/archives/*.deb | sed "s,.*/,," > {PACKAGE_LIST}'

_FULL = ("No space left on device", "Disk quota exceeded", "You don't have enough free space")


def extract(archive: Path, suites: list[str], packages: list[str], progress: Progress) -> None:
    """Unpack packages and all they depend on into a tar archive, without installing them."""
    options = ["--variant=extract", f"--extract-hook={_LIST_HOOK}"]
    _mmdebstrap(archive, suites, packages, options, progress)


def install(
    archive: Path,
    suites: list[str],
    packages: list[str],
    overlay: Path,
    exclude_paths: list[str],
    progress: Progress,
) -> None:
    """Install a minimal Debian with packages into a tar archive; ``overlay`` is a tar put on it."""
    options = ["--variant=minbase", f"--customize-hook=tar-in {overlay} /"]
    # Otherwise the overlay's machine-id is emptied, and each boot is a first boot.
    options.append("--skip=cleanup/reproducible")
    options += [f"--dpkgopt=path-exclude={path}" for path in exclude_paths]
    _mmdebstrap(archive, suites, packages, options, progress)


def _mmdebstrap(
    archive: Path, suites: list[str], packages: list[str], options: list[str], progress: Progress
) -> None:
    address = mirror.debian_mirror()
    signed = f"[signed-by={mirror.keyring()}]"
    apt = ['Apt::Install-Recommends "false"', f'APT::Default-Release "{suites[-1]}"']
    command = [
        host.program("mmdebstrap", "mmdebstrap"),
        # Named, so that a user who may not use it is told so, not given a mode that fails later.
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        *options,
        *[f"--aptopt={option}" for option in [*apt, *mirror.proxy_options()]],
        f"--include={','.join(packages)}",
        suites[0],
        str(archive),
        *[f"deb {signed} {address} {suite} main" for suite in suites],
    ]
    env = {}
    if os.geteuid() == 0:
        # So that what a killed mmdebstrap leaves is swept with the rest of the staging directory.
        # As another user it works as a mapped user who may not be able to enter our directory.
        env["TMPDIR"] = str(archive.parent)
    try:
        host.run(command, contained=True, env=env, on_line=_milestones(progress))
    except host.CommandError as error:
        raise _explained(error, address, archive.parent) from error


def _milestones(progress: Progress) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        for index, milestone in enumerate(_MILESTONES):
            if milestone in line:
                progress.at(index / len(_MILESTONES), milestone)

    return on_line


def _explained(error: host.CommandError, address: str, directory: Path) -> HostError:
    said = error.output
    if any(sign in said for sign in _FULL):
        return disk_full(directory)
    if os.geteuid() != 0 and any(sign in said for sign in ("newuidmap", "subuid", "unshare")):
        todo = (
            "an unprivileged build needs user namespaces: apt-get install uidmap, lines for this "
            "user in /etc/subuid and /etc/subgid, and sysctl user.max_user_namespaces above 0"
        )
    else:
        todo = (
            f"see that {address} answers (apt-get update), or set {mirror.OVERRIDE} to another "
            "Debian mirror"
        )
    return HostError(f"mmdebstrap failed. It said:\n{said}\nto do: {todo}")
