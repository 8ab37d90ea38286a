"""Which VMs live on this host: a directory each, and a lock in it that lives as its supervisor.

The lock (flock(2)) is the one truth about life: the kernel drops it when the supervisor ends, in
whatever way. Who gets the lock of a directory may take the directory away, and does so by
renaming it first, so that a new VM of the same name never meets the remains of the old.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dvisor.errors import HostError, StateError, UsageError
from dvisor.machine.places import runtime_directory, runtime_root

LOCK = "lock"
GONE_PREFIX = ".gone-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_CLAIM_PATIENCE_S = 0.5  # a sweeper or a janitor holds the lock only for a moment


def check_name(name: str) -> str:
    """``name`` itself; UsageError unless it can name a VM."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:64]!r} cannot name a VM: use 1 to 32 letters, digits, '-' and '_', and begin "
            "with a letter or a digit"
        )
    return name


class Claim:
    """A locked, empty runtime directory; ``release`` takes it away."""

    def __init__(self, directory: Path, lock_fd: int) -> None:
        self.directory = directory
        self._lock_fd = lock_fd

    def release(self) -> None:
        """Remove the directory and let go of the lock. Safe to call twice."""
        if self._lock_fd >= 0:
            _remove(self.directory)
            os.close(self._lock_fd)
            self._lock_fd = -1


def claim(name: str) -> Claim:
    """Make and lock the runtime directory of ``name``; StateError when such a VM lives."""
    directory = runtime_directory(check_name(name))
    give_up = time.monotonic() + _CLAIM_PATIENCE_S
    while True:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        lock_fd = _lock(directory, create=True)
        if lock_fd is not None:
            for remains in directory.iterdir():
                if remains.name != LOCK:
                    remains.unlink()
            return Claim(directory, lock_fd)
        if time.monotonic() > give_up:
            raise _taken(name)
        time.sleep(0.01)


def require_free(name: str) -> None:
    """StateError when a VM of that name lives: an early word, which ``claim`` makes binding."""
    directory = runtime_directory(check_name(name))
    if directory.exists() and is_live(directory):
        raise _taken(name)


def _taken(name: str) -> StateError:
    return StateError(
        f"a VM named {name} runs already: 'dvisor down {name}' ends it, or give the new one "
        "another name"
    )


def live_names() -> list[str]:
    """The names of all VMs with a living supervisor; takes away what dead ones left."""
    names = []
    for entry in sorted(runtime_root().iterdir()):
        if entry.name.startswith(GONE_PREFIX):
            shutil.rmtree(entry, ignore_errors=True)
        elif _NAME.fullmatch(entry.name) and is_live(entry):
            names.append(entry.name)
    return names


def is_live(directory: Path) -> bool:
    """Whether a supervisor holds this runtime directory; removes the directory when none does."""
    try:
        lock_fd = _lock(directory, create=False)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            directory.rmdir()  # only if empty: its owner died, or is just about to lock it
        return False
    if lock_fd is None:
        return True
    _remove(directory)
    os.close(lock_fd)
    return False


def _lock(directory: Path, *, create: bool) -> int | None:
    """A descriptor that holds the lock; None when another has it, or the directory changed."""
    path = directory / LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        if create:
            return None  # swept between mkdir and here: the caller tries again
        raise
    except OSError as error:
        raise HostError(f"cannot use {path}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine, there = os.fstat(fd), path.stat()
    except (BlockingIOError, FileNotFoundError):
        os.close(fd)
        return None
    if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
        os.close(fd)
        return None
    return fd


def _remove(directory: Path) -> None:
    """Take a directory away whose lock the caller holds."""
    gone = directory.with_name(f"{GONE_PREFIX}{directory.name}-{time.monotonic_ns()}")
    with contextlib.suppress(FileNotFoundError):
        directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def claimed(name: str) -> Iterator[Path]:
    """Hold the runtime directory of ``name`` for the time of a block."""
    own = claim(name)
    try:
        yield own.directory
    finally:
        own.release()
