"""A cache of built things, named by the digest of what they were made from.

Nothing half made is ever seen: a thing is built in ``staging/`` and renamed into place when it is
whole. A lock file per thing keeps two builders from clashing; the kernel drops a dead builder's
lock, so that what it left in ``staging/`` is known to be dead and is swept by the next builder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dvisor.errors import HostError, StateError

_MIB = 1 << 20
_IN_USE = "in-use"
_CLEAR_TRIES = 50
_CLEAR_PAUSE_S = 0.1


class Store:
    """Built things at ``root/KIND/NAME-DIGEST``. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / "staging"
        self._locks = root / "locks"

    def path(self, kind: str, name: str, digest: str) -> Path:
        """Where that thing is when it is built; it need not exist."""
        return self.root / kind / f"{name}-{digest}"

    def obtain(
        self,
        kind: str,
        name: str,
        digest: str,
        make: Callable[[Path], None],
        *,
        space_mib: int = 0,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Path:
        """Directory of that thing, made by ``make(empty directory)`` if it is not there yet.

        ``on_wait`` is called once if another process is making it now. When ``make`` raises, or
        the process gets SIGTERM or SIGHUP, nothing is left behind.
        """
        target = self.path(kind, name, digest)
        if target.is_dir():
            return target
        lock_name = f"{kind}-{name}-{digest}"
        with self._host_errors(), self._locked(lock_name, on_wait):
            if not target.is_dir():
                self.sweep()
                self._require_space(space_mib)
                self._make(target, self._staging / lock_name, make)
        return target

    def things(self, kind: str) -> list[Path]:
        """Directories of all built things of that kind, by name."""
        directory = self.root / kind
        return sorted(directory.iterdir()) if directory.is_dir() else []

    def remove(self, thing: Path) -> int:
        """Remove a built thing; returns the bytes of disk space that it took."""
        size_bytes = disk_usage(thing)
        grave = self._staging / f"removed-{thing.parent.name}-{thing.name}"
        with self._host_errors(), self._locked(grave.name, lambda: None):
            self._staging.mkdir(parents=True, exist_ok=True)
            # Renamed first: a removal that is cut short must not leave half a thing in place.
            with suppress(FileNotFoundError):
                thing.rename(grave)
                shutil.rmtree(grave)
        return size_bytes

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep others from removing things: a build uses several, one after another."""
        with self._host_errors(), self._open_lock(_IN_USE) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only user, in order to remove things. StateError while a build is under way."""
        with self._host_errors(), self._try_lock(_IN_USE) as got:
            if not got:
                raise StateError(f"a build is under way in {self.root}; wait until it is done")
            yield

    def sweep(self) -> None:
        """Remove what dead builders left in staging; living ones hold their locks."""
        for remnant in self._staging.glob("*"):
            with self._try_lock(remnant.name) as got:
                if got:
                    shutil.rmtree(remnant, ignore_errors=True)

    def _make(self, target: Path, stage: Path, make: Callable[[Path], None]) -> None:
        _clear(stage)
        stage.mkdir(parents=True)
        try:
            with _signals_raise():
                make(stage)
                target.parent.mkdir(parents=True, exist_ok=True)
                stage.rename(target)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    @contextmanager
    def _locked(self, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
        with self._try_lock(name) as got:
            if got:
                yield
                return
        on_wait()
        with self._open_lock(name) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _try_lock(self, name: str) -> Iterator[bool]:
        with self._open_lock(name) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextmanager
    def _open_lock(self, name: str) -> Iterator[int]:
        self._locks.mkdir(parents=True, exist_ok=True)
        # Lock files stay: to unlink one is to let two processes lock two files of one name.
        lock = os.open(self._locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield lock
        finally:
            os.close(lock)

    def _require_space(self, space_mib: int) -> None:
        free_mib = shutil.disk_usage(self.root).free // _MIB
        if free_mib < space_mib:
            raise HostError(
                f"{self.root} has {free_mib} MiB free and this build needs {space_mib} MiB; "
                "free some space, or set XDG_CACHE_HOME to a directory on a larger disk"
            )

    @contextmanager
    def _host_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise disk_full(self.root) from error
            raise HostError(f"the image cache {self.root} cannot be used: {error}") from error


def disk_full(root: Path) -> HostError:
    """The error for a disk that filled up during a build."""
    return HostError(
        f"the disk of {root} is full (what was half built is removed); free some space, "
        "or set XDG_CACHE_HOME to a directory on a larger disk"
    )


def disk_usage(path: Path) -> int:
    """Bytes that a file or tree takes on disk (sparse files take less than their size)."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files)


def _clear(directory: Path) -> None:
    """Remove a tree that the children of a builder killed just now may still write to."""
    for _ in range(_CLEAR_TRIES):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(_CLEAR_PAUSE_S)
    raise HostError(f"{directory} is left of a killed build and cannot be removed; remove it")


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as SIGINT does, so that cleanup runs."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set handlers; the next sweep covers the others.
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
