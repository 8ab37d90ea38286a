"""Where things of running and past VMs lie on this host."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dvisor.errors import HostError

CONTROL_SOCKET = "control.sock"
SPARE_QMP_SOCKET = "qmp.sock"

# sockaddr_un.sun_path (unix(7)), less the longest name that is put after the directory.
_LONGEST_DIRECTORY = 107 - len("/" + CONTROL_SOCKET)


def runtime_root() -> Path:
    """The parent of the running VMs' directories, mode 0700; made if missing."""
    if given := os.environ.get("DVISOR_RUNTIME_DIR"):
        return _private(Path(given))
    if os.geteuid() == 0:
        return _private(Path("/run/dvisor"))
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return _private(Path(session) / "dvisor")
    # `su` and cron give no XDG_RUNTIME_DIR. Anyone can make names in /tmp, so no link is followed.
    return _private(Path(f"/tmp/dvisor-{os.geteuid()}"), follow=False)  # noqa: S108


def runtime_directory(name: str) -> Path:
    """Where the sockets and the lock of VM ``name`` are while it lives; may not exist."""
    path = runtime_root() / name
    if len(os.fsencode(path)) > _LONGEST_DIRECTORY:
        raise HostError(
            f"{path} is too long a path for unix sockets: set DVISOR_RUNTIME_DIR to a shorter one"
        )
    return path


def state_root() -> Path:
    """The parent of the directories that keep VMs' logs and how they ended; made if missing."""
    if given := os.environ.get("DVISOR_STATE_DIR"):
        return _private(Path(given))
    if given := os.environ.get("XDG_STATE_HOME"):
        return _private(Path(given) / "dvisor")
    base = Path("/var/lib") if os.geteuid() == 0 else Path.home() / ".local/state"
    return _private(base / "dvisor")


def state_directory(name: str) -> Path:
    """Where the logs and the last end of VM ``name`` are kept; may not exist."""
    return state_root() / name


def _private(path: Path, *, follow: bool = True) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = path.stat(follow_symlinks=follow)
    except OSError as error:
        raise HostError(f"cannot make the directory {path}: {error.strerror}") from error
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
        raise HostError(
            f"{path} must be a directory that you own and only you can write to: others could "
            "take over your VMs through it"
        )
    return path
