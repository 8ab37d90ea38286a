"""Starting a VM: a supervisor of its own, which goes again unless its start is seen through."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

import dvisor
from dvisor.errors import DvisorError, EngineError, HostError, UsageError
from dvisor.machine import accel, messages, registry
from dvisor.machine.console import Console
from dvisor.machine.control import Control
from dvisor.machine.messages import Failure, Info, Progress
from dvisor.machine.record import SUPERVISOR_LOG, prepared_state_directory
from dvisor.machine.spec import LaunchSpec
from dvisor.machine.vm_engine import VmEngine

START_TIMEOUT_S = 60.0
_ABANDON_PATIENCE_S = 10.0

ProgressReport = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MachineHandle:
    """A VM that has been started. It lives on without this process."""

    info: Info

    @property
    def name(self) -> str:
        return self.info.name

    def control(self) -> Control:
        """A new connection to its supervisor."""
        return Control(self.name)

    def engine(self) -> VmEngine:
        """Its memory and registers."""
        return VmEngine(self.name)

    def console(self, *, replay: bool = False) -> Console:
        """Its serial line."""
        return Console(self.name, replay=replay)


def launch(
    spec: LaunchSpec,
    progress: ProgressReport | None = None,
    wait_for: str | None = None,
    wait_timeout_s: float = 120.0,
) -> MachineHandle:
    """Start ``spec`` and return once its guest runs and, if given, has printed ``wait_for``.

    Whatever ends this call early (an error, KeyboardInterrupt, the death of this process) ends
    the VM too. StateError when the name is taken; EngineError with QEMU's own words when it
    fails; HostError when the host lacks something.
    """
    report = progress or (lambda _text: None)
    registry.require_free(spec.name)
    _check_files(spec)
    spec = msgspec.structs.replace(spec, accel=accel.choose(spec, report))
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _spawn_supervisor(spec.name, theirs)
        try:
            ours.settimeout(START_TIMEOUT_S)
            ours.sendall(msgspec.json.encode(spec) + b"\n")
            info = _await_start(ours, spec.name, report)
            if wait_for is not None:
                report(f"waiting for {wait_for!r} on the console")
                with Console(spec.name, replay=True) as console:
                    console.read_until(wait_for, wait_timeout_s)
            ours.sendall(messages.KEEP)
        except BaseException:
            _abandon(ours, spec.name)
            raise
    return MachineHandle(info)


def _check_files(spec: LaunchSpec) -> None:
    named = [("kernel", spec.vmlinuz), *(("disk", disk.path) for disk in spec.disks)]
    if spec.initrd is not None:
        named.append(("initrd", spec.initrd))
    for what, path in named:
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from error


def _spawn_supervisor(name: str, connection: socket.socket) -> None:
    """Start the daemon; returns when it has left this process's group and terminal."""
    log = prepared_state_directory(name) / SUPERVISOR_LOG
    source = str(Path(dvisor.__file__).parent.parent)
    search_path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    with log.open("ab") as errors:
        ending = subprocess.run(
            [sys.executable, "-m", "dvisor.machine.supervisor", str(connection.fileno()), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[connection.fileno()],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": search_path},
            check=False,
        )
    if ending.returncode != 0:
        raise HostError(f"the supervisor of {name} could not start; it says: {_tail(log)}")


def _await_start(connection: socket.socket, name: str, report: ProgressReport) -> Info:
    with connection.makefile("rb") as lines:
        try:
            while line := lines.readline(messages.REPLY_LIMIT):
                reply = messages.decode_reply(line)
                if isinstance(reply, Progress):
                    report(reply.text)
                elif isinstance(reply, Failure):
                    raise messages.to_error(reply)
                elif isinstance(reply, Info):
                    return reply
        except TimeoutError as error:
            raise EngineError(
                f"VM {name} was not running after {START_TIMEOUT_S:.0f} s and was given up"
            ) from error
        except OSError as error:
            raise EngineError(f"the supervisor of {name} went away: {error.strerror}") from error
    log = prepared_state_directory(name) / SUPERVISOR_LOG
    raise EngineError(f"the supervisor of {name} ended without a word; its log: {_tail(log)}")


def _abandon(connection: socket.socket, name: str) -> None:
    """Let the supervisor end the VM, and wait until it has (it closes the connection last)."""
    try:
        connection.shutdown(socket.SHUT_WR)
        give_up = time.monotonic() + _ABANDON_PATIENCE_S
        while time.monotonic() < give_up and connection.recv(4096):
            pass
    except (OSError, DvisorError):
        return  # it ends by itself


def _tail(log: Path) -> str:
    try:
        return log.read_bytes()[-2000:].decode(errors="replace").strip() or "(nothing)"
    except OSError:
        return "(none)"
