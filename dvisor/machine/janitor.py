"""A tiny process that outlives the supervisor by a moment, to take its directory away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

from dvisor.machine.registry import GONE_PREFIX, LOCK

# `read` returns when the supervisor's end of the pipe is closed, in whatever way it ended. Then
# the same protocol as in registry.py: lock, rename, remove. `read` loops because a shell's may
# return early on a signal.
_SCRIPT = f"""
trap '' HUP INT TERM
while read -r _; do :; done
gone="${{1%/*}}/{GONE_PREFIX}janitor-$$"
[ -e "$1/{LOCK}" ] && flock -n "$1/{LOCK}" mv -T -- "$1" "$gone" && rm -rf -- "$gone"
"""
_RESPAWN_PAUSE_S = 0.2


class Janitor:
    """Keeps one such process alive for ``directory``; starts another when it is killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        self._process = self._spawn()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "dvisor-janitor", str(self._directory)],
            stdin=self._read_fd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )

    async def keep(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            ended = asyncio.Event()
            pidfd = os.pidfd_open(self._process.pid)
            loop.add_reader(pidfd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)
            self._process.wait()
            await asyncio.sleep(_RESPAWN_PAUSE_S)
            self._process = self._spawn()

    def dismiss(self) -> None:
        """End it without its doing anything: the directory has been removed in order."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._read_fd)
        os.close(self._write_fd)
