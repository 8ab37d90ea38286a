"""Run the host's programs for a build: they die with us, and their failures explain themselves."""

from __future__ import annotations

import os
import shutil
import signal
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
    contained: bool = False,
) -> str:
    """Run a command to its end; returns its output, of which each line also goes to ``on_line``.

    ``name`` is what the program is called in an error, if not the command's first word. The
    command ends when we are killed or interrupted. ``contained``: so do all its descendants, and
    what they mounted is gone with them, where this user may make namespaces.
    """
    namespaces = _namespaces() if contained else []
    # unshare(1) ignores SIGTERM while its child runs, and nothing in namespaces needs a warning.
    ending = signal.SIGKILL if namespaces else signal.SIGTERM
    guard = [program("setpriv", "util-linux"), "--pdeathsig", ending.name.removeprefix("SIG"), "--"]
    process = subprocess.Popen(
        [*guard, *namespaces, *command],
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
        _stop(process, ending)
    if status != 0:
        raise CommandError(name or Path(command[0]).name, status, "\n".join(lines[-_TAIL_LINES:]))
    return "\n".join(lines)


def _namespaces() -> list[str]:
    """Prefix that gives a command mounts and processes of its own; empty where that cannot be.

    A user other than root has no right to it, and a root that has none (in a container) has none
    to mount either.
    """
    if os.geteuid() != 0:
        return []
    options = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    prefix = [program("unshare", "util-linux"), *options, "--mount-proc", "--"]
    try:
        run([*prefix, program("true", "coreutils")])
    except CommandError:
        return []
    return prefix


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), _SYSTEM_PATH])


def _follow(process: subprocess.Popen[str], on_line: Callable[[str], None]) -> list[str]:
    assert process.stdout is not None
    lines = []
    for raw in process.stdout:
        lines.append(raw.rstrip())
        on_line(lines[-1])
    return lines


def _stop(process: subprocess.Popen[str], ending: signal.Signals) -> None:
    assert process.stdout is not None
    if process.poll() is None:
        process.send_signal(ending)
        try:
            # Not only until it has ended: its output ends with the last of its descendants.
            process.communicate(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdout.close()
