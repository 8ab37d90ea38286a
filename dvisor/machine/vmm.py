"""One QEMU process, from its start to its end, and the QMP connections to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from dvisor.errors import EngineError, HostError
from dvisor.machine import native
from dvisor.machine.arguments import RAM_ID, qemu_argv
from dvisor.machine.deathsig import die_with_this_process
from dvisor.machine.foreign_mtree import parse_flatview
from dvisor.machine.spec import LaunchSpec

COMMAND_TIMEOUT_S = 20.0
_STDERR_KEPT = 8 << 10
_DRAIN_S = 1.0

# It logs every lost connection as an error of its own; ours say more.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class Exit(NamedTuple):
    """How QEMU ended: its exit status (negative: a signal) and its last words."""

    status: int
    last_words: str

    def __str__(self) -> str:
        if self.status < 0:
            how = f"was killed by {signal.Signals(-self.status).name}"
        else:
            how = f"exited with status {self.status}"
        return f"QEMU {how}" + (f": {self.last_words}" if self.last_words else "")


class Vmm:
    """A QEMU that dies with the thread that made it: make it in the main thread.

    ``serial`` is the guest's first serial line, ``traps_fd`` the memory that its library shares
    (None without traps). ``exited`` is done when QEMU has ended.
    """

    def __init__(
        self, spec: LaunchSpec, spare_socket: Path, scratch: Path, log: Callable[[bytes], None]
    ) -> None:
        self._spec = spec
        self._log = log
        self._last_words = b""
        self._control = QMPClient("control")
        self._events = QMPClient("events")
        pairs = [socket.socketpair() for _ in range(3)]
        self._control_socket, self._events_socket, self.serial = (mine for mine, _ in pairs)
        self.serial.setblocking(False)
        control_fd, events_fd, serial_fd = inherited = [theirs.fileno() for _, theirs in pairs]
        self.traps_fd = native.shared_memory() if spec.traps else None
        if self.traps_fd is not None:
            inherited = [*inherited, self.traps_fd]
        try:
            argv = qemu_argv(spec, control_fd, events_fd, serial_fd, spare_socket, self.traps_fd)
            log(f"$ {shlex.join(argv)}\n".encode())
            self._process = _start(argv, inherited, scratch)
        finally:
            for _, theirs in pairs:
                theirs.close()
        self.pid = self._process.pid
        self._listener: asyncio.Task[None] | None = None
        self.exited: asyncio.Task[Exit] = asyncio.create_task(self._watch())

    async def _watch(self) -> Exit:
        pidfd = os.pidfd_open(self.pid)
        assert self._process.stderr is not None
        loop = asyncio.get_running_loop()
        ended, silent = asyncio.Event(), asyncio.Event()
        stderr = self._process.stderr.fileno()
        os.set_blocking(stderr, False)
        loop.add_reader(pidfd, ended.set)
        loop.add_reader(stderr, self._hear, stderr, silent)
        try:
            await ended.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(silent.wait(), _DRAIN_S)
        finally:
            loop.remove_reader(pidfd)
            loop.remove_reader(stderr)
            os.close(pidfd)
        return Exit(self._process.wait(), self._last_words.decode(errors="replace").strip())

    def _hear(self, stderr: int, silent: asyncio.Event) -> None:
        heard = os.read(stderr, _STDERR_KEPT)
        if not heard:
            asyncio.get_running_loop().remove_reader(stderr)
            silent.set()
        self._log(heard)
        self._last_words = (self._last_words + heard)[-_STDERR_KEPT:]

    async def connect(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Greet QMP on both connections; EngineError with QEMU's own words when it ended."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._control.connect(self._control_socket)
                await self._events.connect(self._events_socket)
        except (QMPError, TimeoutError) as error:
            raise EngineError(await self._how_it_ended()) from error
        self._listener = asyncio.create_task(self._listen(on_event))

    async def _listen(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        async for event in self._events.events:
            on_event(dict(event))

    async def _how_it_ended(self) -> str:
        done, _ = await asyncio.wait({self.exited}, timeout=_DRAIN_S)
        return str(self.exited.result()) if done else "QEMU does not answer on its QMP socket"

    async def command(self, name: str, **arguments: object) -> Any:
        """What QMP command ``name`` returns; EngineError when it fails or QEMU is gone."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                return await self._control.execute(name, arguments or None)
        except ExecuteError as error:
            raise EngineError(f"QEMU refused {name}: {error}") from error
        except TimeoutError as error:
            raise EngineError(
                f"QEMU did not answer {name} within {COMMAND_TIMEOUT_S:.0f} s"
            ) from error
        except (QMPError, OSError, EOFError) as error:
            raise EngineError(await self._how_it_ended()) from error

    async def monitor(self, line: str) -> str:
        """What the human monitor's command ``line`` prints."""
        return str(await self.command("human-monitor-command", **{"command-line": line}))

    async def ram_blocks(self) -> tuple[tuple[int, int, int], ...]:
        """(gpa, size, offset in the RAM file) of each run of RAM, by gpa."""
        sections = parse_flatview(await self.monitor("info mtree -f"), {RAM_ID})
        return tuple((section.gpa, section.size, section.offset) for section in sections)

    def open_ram(self) -> int:
        """A read-only descriptor of the memfd that is the guest's RAM."""
        found: dict[int, Path] = {}
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                seen = entry.stat()
                if (
                    entry.readlink().name.startswith("memfd:memory-backend-memfd")
                    and seen.st_size == self._spec.memory_bytes
                ):
                    found[seen.st_ino] = entry
        if len(found) != 1:
            raise EngineError(
                f"QEMU {self.pid} has {len(found)} memfds of {self._spec.memory_bytes} bytes that "
                "could be the guest's RAM, not one"
            )
        return os.open(found.popitem()[1], os.O_RDONLY | os.O_CLOEXEC)

    def kill(self) -> None:
        """End QEMU at once. Safe to call twice."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> Exit:
        """Kill QEMU if it still lives, and let go of all its connections."""
        self.kill()
        ending = await self.exited
        if self._listener is not None:
            self._listener.cancel()
        for client in (self._control, self._events):
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
        for end in (self._control_socket, self._events_socket, self.serial):
            end.close()
        if self.traps_fd is not None:
            os.close(self.traps_fd)
            self.traps_fd = None
        return ending


def _start(argv: list[str], inherited: list[int], scratch: Path) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
            preexec_fn=die_with_this_process(),  # noqa: PLW1509 - this process has one thread
            cwd="/",
            # Where QEMU keeps what a guest writes to a disk with snapshot=on (unlinked at once).
            env={**os.environ, "TMPDIR": str(scratch)},
        )
    except OSError as error:
        raise HostError(f"cannot run QEMU ({argv[0]}): {error.strerror}") from error
