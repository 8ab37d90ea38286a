"""A tiny process that lets a stopped VM run again if dvisor dies while it holds the VM stopped.

This file is also that process's program, so it imports the standard library alone. It reads its
standard input: ``stopped`` and ``running`` tell what would have to be done; the end of the input
means that dvisor has ended, in whatever way.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

_TIMEOUT_S = 5.0


class Guard:
    """One such process, started at the first stop. ``way``: its arguments; ``fd``: inherited."""

    def __init__(self, way: Sequence[str], fd: int) -> None:
        self._way = list(way)
        self._fd = fd
        self._process: subprocess.Popen[bytes] | None = None

    def note(self, state: str) -> None:
        """Tell ``stopped`` before the VM is stopped, and ``running`` after it runs again."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{state}\n".encode())
        except BrokenPipeError:  # somebody killed it just now; the next stop starts another
            self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        keep = (self._fd,) if self._fd >= 0 else ()
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *self._way],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=keep,
            cwd="/",
            start_new_session=True,  # Ctrl-C at the terminal must not reach it
        )

    def close(self) -> None:
        """Only while the VM runs: it ends without doing anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process = None


def continue_by_signal(pidfd: int) -> None:
    signal.pidfd_send_signal(pidfd, signal.SIGCONT)


def continue_by_monitor(kind: str, address: str | tuple[str, int]) -> None:
    """``kind``: qmp or hmp. The monitor is free again, since our connection ended with dvisor."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(address)
        if kind == "qmp":
            script = [b'{"execute": "qmp_capabilities"}\n', b'{"execute": "cont"}\n', b""]
            mark = b"\n"
        else:
            script, mark = [b"cont\n", b""], b"(qemu) "
        for line in script:  # each is sent after what comes before it has been answered
            received = b""
            while not received.endswith(mark):
                data = connection.recv(4096)
                if not data:
                    return
                received += data
            connection.sendall(line)


def main(way: Sequence[str]) -> None:
    """``way``: ``signal FD``, or ``qmp`` or ``hmp`` with a socket's ``PATH`` or ``HOST PORT``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    state = ""
    for line in sys.stdin:
        state = line.strip()
    if state != "stopped":
        return
    with contextlib.suppress(OSError):  # the VM has ended too
        if way[0] == "signal":
            continue_by_signal(int(way[1]))
        else:
            continue_by_monitor(way[0], way[1] if len(way) == 2 else (way[1], int(way[2])))


if __name__ == "__main__":
    main(sys.argv[1:])
