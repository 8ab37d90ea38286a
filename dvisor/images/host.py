"""Run the host's programs for a build: they die with us, and their failures explain themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from dvisor.errors import HostError

# An unprivileged user's PATH may lack sbin, and a virtual environment changes PATH freely.
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_TAIL_LINES = 12
_STOP_TIMEOUT_S = 30.0


class CommandError(HostError):
    """A program failed; ``output`` is the end of what it said."""

    def __init__(self, program: str, status: int, output: str) -> None:
        super().__init__(f"{program} failed (status {status}):\n{output}")
        self.output = output


def program(name: str, package: str) -> str:
    """Path of a program. HostError names the Debian package that brings it."""
    path = shutil.which(name, path=_path())
    if path is None:
        raise HostError(f"the program {name} is missing; apt-get install {package}")
    return path


def run(
    command: list[str],
    *,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> str:
    """Run a command to its end; returns its output, of which each line also goes to ``on_line``.

    ``name`` is what the program is called in an error, if not the command's first word.
    If we are killed, the command gets SIGTERM from the kernel; if we are interrupted, from us,
    and we wait until it has cleaned up after itself.
    """
    guarded = [program("setpriv", "util-linux"), "--pdeathsig", "TERM", "--", *command]
    process = subprocess.Popen(
        guarded,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8", **(env or {})},
        text=True,
        errors="replace",
    )
    try:
        lines = _follow(process, on_line)
        status = process.wait()
    finally:
        _stop(process)
    if status != 0:
        raise CommandError(name or Path(command[0]).name, status, "\n".join(lines[-_TAIL_LINES:]))
    return "\n".join(lines)


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), _SYSTEM_PATH])


def _follow(process: subprocess.Popen[str], on_line: Callable[[str], None]) -> list[str]:
    assert process.stdout is not None
    lines = []
    for raw in process.stdout:
        lines.append(raw.rstrip())
        on_line(lines[-1])
    return lines


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
