"""A log file that cannot grow beyond twice its limit: the present part, and the one before."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

LIMIT_BYTES = 4 << 20


class BoundedLog:
    """Appends bytes to ``path``; the part before, if any, is ``path`` with ``.1`` at the end."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self._file = self._fresh()

    def _fresh(self) -> BinaryIO:
        if self._path.exists():
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._size = 0
        return self._path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Keep ``data``; a full disk or a lost directory loses it, and does not stop the VM."""
        with contextlib.suppress(OSError):
            if self._size + len(data) > self._limit:
                fresh = self._fresh()
                self._file.close()
                self._file = fresh
            self._size += self._file.write(data[-self._limit :])

    def close(self) -> None:
        """Safe to call twice."""
        self._file.close()
