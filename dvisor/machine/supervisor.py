"""The supervisor: a daemon that owns one VM's QEMU from its start until nothing of it is left.

Started by ``launch`` with a connected socket as its only argument. Over it come the spec and, at
the end, KEEP; until then the end of that connection means that the command which wants the VM has
gone, and the VM goes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from dvisor.errors import DvisorError, EngineError, HostError, UnsupportedError
from dvisor.machine import messages, record, registry
from dvisor.machine.bounded_log import BoundedLog
from dvisor.machine.epoch import EpochPage
from dvisor.machine.janitor import Janitor
from dvisor.machine.messages import Info, Progress, Reply
from dvisor.machine.places import SPARE_QMP_SOCKET
from dvisor.machine.record import Record
from dvisor.machine.run_control import RunControl
from dvisor.machine.spec import LaunchSpec
from dvisor.machine.states import Lifecycle, State
from dvisor.machine.supervisor_console import ConsoleMux
from dvisor.machine.supervisor_control import ControlServer
from dvisor.machine.vmm import Exit, Vmm

SPEC_LIMIT = 1 << 20
_QUIT_PATIENCE_S = 5.0
_log = logging.getLogger(__name__)


class Launcher:
    """The command that wants the VM, at the other end of a socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection

    async def spec(self) -> LaunchSpec:
        """What it wants."""
        return msgspec.json.decode(await self._line(SPEC_LIMIT), type=LaunchSpec)

    async def tell(self, message: Reply) -> None:
        """Send ``message``, unless nobody is there."""
        with contextlib.suppress(OSError):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(self._connection, messages.encode(message))

    async def keeps(self) -> bool:
        """Wait for its word; False when it went away instead."""
        try:
            return await self._line(len(messages.KEEP)) == messages.KEEP
        except (OSError, EOFError):
            return False

    async def _line(self, limit: int) -> bytes:
        loop = asyncio.get_running_loop()
        line = b""
        while not line.endswith(b"\n"):
            data = await loop.sock_recv(self._connection, limit + 1 - len(line))
            if not data or len(line) >= limit:
                raise EOFError
            line += data
        return line

    def close(self) -> None:
        self._connection.close()


class Supervisor:
    """One VM and all that belongs to it, within a claimed runtime directory."""

    def __init__(self, spec: LaunchSpec, directory: Path, launcher: Launcher) -> None:
        self.spec = spec
        self._launcher = launcher
        state_directory = record.prepared_state_directory(spec.name)
        record.sweep_scratch(state_directory)
        self._started_at = time.time()
        self._vmm_log = BoundedLog(state_directory / record.VMM_LOG)
        self._console_log = BoundedLog(state_directory / record.CONSOLE_LOG)
        self._lifecycle = Lifecycle(spec.name)
        self._epoch = EpochPage()
        self._wanted_end = ""
        self._record(State.CREATED, "its supervisor was killed, and QEMU with it")
        try:
            self.vmm = Vmm(spec, directory / SPARE_QMP_SOCKET, state_directory, self._vmm_log.write)
        except HostError as error:
            self._record(State.CRASHED, str(error), time.time())
            raise
        self.console = ConsoleMux(self.vmm.serial, self._console_log)
        self.run_control = RunControl(self._lifecycle, self._epoch, self.vmm.command)
        self._ram: tuple[tuple[int, int, int], ...] = ()
        self._ram_fd = -1
        self._directory = directory

    async def run(self) -> None:
        """From the first word to QEMU to the record of its end; EngineError when it never ran."""
        tasks: list[asyncio.Task[Any]] = []
        server = None
        try:
            await self._connect()
            server = ControlServer(self._directory, self)
            tasks += [asyncio.create_task(server.run()), asyncio.create_task(self.console.run())]
            await self.run_control.start()
            await self._launcher.tell(self.info())
            await self._until_the_end()
        finally:
            ending = await self._end()
            if server is not None:
                await server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._record_end(ending)
            record.forget_old()

    async def _connect(self) -> None:
        await self._launcher.tell(Progress("starting QEMU"))
        self.run_control.move(State.STARTING)
        await self.vmm.connect(self.run_control.on_event)
        self._ram_fd = self.vmm.open_ram()
        self._ram = await self.vmm.ram_blocks()

    async def _until_the_end(self) -> None:
        keeps = asyncio.create_task(self._launcher.keeps())
        await asyncio.wait({keeps, self.vmm.exited}, return_when=asyncio.FIRST_COMPLETED)
        if self.vmm.exited.done():
            keeps.cancel()
        elif await keeps:
            self._launcher.close()
            await asyncio.wait({self.vmm.exited})
        else:
            self._wanted_end = "the command that started it went away before it was up"
            self.vmm.kill()

    async def _end(self) -> Exit:
        await asyncio.sleep(0)  # let the last event be heard
        ending = await self.vmm.close()
        if self._ram_fd >= 0:
            os.close(self._ram_fd)
        return ending

    # What the control socket gives access to (supervisor_control.Supervised).

    def info(self) -> Info:
        """All that is known of the VM now."""
        return Info(
            name=self.spec.name,
            state=self.run_control.state,
            accel=self.spec.accel,
            vcpus=self.spec.vcpus,
            memory_bytes=self.spec.memory_bytes,
            supervisor_pid=os.getpid(),
            qemu_pid=self.vmm.pid,
            started_at=self._started_at,
            epoch=self._epoch.value,
            holds=self.run_control.holds,
            vmlinuz=self.spec.vmlinuz,
            ram=self._ram,
        )

    def descriptors(self) -> list[int]:
        """The RAM's memfd, read-only, and the epoch page's."""
        return [self._ram_fd, self._epoch.fd]

    def traps_descriptor(self) -> int:
        """The memory that the library in QEMU shares; UnsupportedError when there is none."""
        if self.vmm.traps_fd is None:
            raise UnsupportedError(
                f"VM {self.spec.name} was started without traps: start it with traps = true"
            )
        return self.vmm.traps_fd

    async def registers(self) -> str:
        """Text of HMP ``info registers -a``."""
        return await self.vmm.monitor("info registers -a")

    async def quit(self, *, force: bool, timeout_s: float | None) -> None:
        """End the VM: by its own power-down if it can, else by QEMU's quit, else by a signal."""
        self._wanted_end = "ended by 'dvisor down'"
        patience_s = self.spec.powerdown_timeout_s if timeout_s is None else timeout_s
        if not force and patience_s > 0 and self.run_control.state is State.RUNNING:
            await self.vmm.command("system_powerdown")
            await asyncio.wait({self.vmm.exited}, timeout=patience_s)
        if not force and not self.vmm.exited.done():
            with contextlib.suppress(EngineError):
                await self.vmm.command("quit")
            await asyncio.wait({self.vmm.exited}, timeout=_QUIT_PATIENCE_S)
        self.vmm.kill()
        await asyncio.wait({self.vmm.exited})

    def terminate(self) -> None:
        """SIGTERM came: end at once, in order."""
        self._wanted_end = "its supervisor was told to end (SIGTERM)"
        self.vmm.kill()

    def _record_end(self, ending: Exit) -> None:
        reason = self._wanted_end
        state = State.SHUTDOWN
        if not reason and ending.status == 0 and self.run_control.shutdown_reason:
            reason = f"QEMU reported {self.run_control.shutdown_reason}"
        elif not reason:
            reason, state = str(ending), State.CRASHED
        self.run_control.move(state)
        self._vmm_log.write(f"{state}: {reason}\n".encode())
        self._record(state, reason, time.time())
        self._vmm_log.close()
        self._console_log.close()

    def _record(self, state: State, reason: str, ended_at: float | None = None) -> None:
        record.write_record(Record(self.spec.name, state, reason, self._started_at, ended_at))


async def supervise(connection: socket.socket) -> None:
    """Run the VM that the launcher at the other end of ``connection`` asks for."""
    launcher = Launcher(connection)
    try:
        spec = await launcher.spec()
        with registry.claimed(spec.name) as directory:
            janitor = Janitor(directory)
            keeping = asyncio.create_task(janitor.keep())
            try:
                supervisor = Supervisor(spec, directory, launcher)
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, supervisor.terminate)
                await supervisor.run()
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
                janitor.dismiss()
    except DvisorError as error:
        await launcher.tell(messages.failure(error))
    except EOFError:
        pass  # the launcher went away before it said what it wants


def main() -> None:
    """Entry point of ``python -m dvisor.machine.supervisor FD``."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    if os.fork():
        os._exit(0)  # the launcher waits for this; the supervisor is nobody's child
    os.umask(0o077)
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(supervise(connection))


if __name__ == "__main__":
    main()
