"""The control socket's server side. A client's errors cost the client, never the VM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from pathlib import Path
from typing import Protocol

from dvisor.errors import DvisorError, HostError, StateError, UsageError
from dvisor.machine import messages
from dvisor.machine.messages import Change, Done, Info, Registers, Reply
from dvisor.machine.places import CONTROL_SOCKET
from dvisor.machine.run_control import RunControl
from dvisor.machine.states import LIVE
from dvisor.machine.supervisor_console import ConsoleMux

MAX_CONNECTIONS = 64
_SEND_TIMEOUT_S = 10.0
_EVENTS_WAITING = 256
_log = logging.getLogger(__name__)


class Supervised(Protocol):
    """What the control socket gives access to."""

    run_control: RunControl
    console: ConsoleMux

    def info(self) -> Info: ...
    def descriptors(self) -> list[int]: ...
    def traps_descriptor(self) -> int: ...
    async def registers(self) -> str: ...
    async def quit(self, *, force: bool, timeout_s: float | None) -> None: ...


class ControlServer:
    """Listens in a VM's runtime directory until closed."""

    def __init__(self, directory: Path, supervised: Supervised) -> None:
        self._supervised = supervised
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(directory / CONTROL_SOCKET))
        self._listener.listen(MAX_CONNECTIONS)
        self._listener.setblocking(False)
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors: those who wait, wait
                _log.warning("cannot accept a client: %s", error)
                await asyncio.sleep(0.1)
                continue
            client.setblocking(False)
            if not _is_owner(client):
                _refuse(client, "this VM belongs to another user")
                continue
            if len(self._connections) >= MAX_CONNECTIONS:
                _refuse(client, f"this VM has {MAX_CONNECTIONS} clients already: close some")
                continue
            task = asyncio.create_task(_Connection(client, self._supervised).run())
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def close(self) -> None:
        """Stop listening, and end all connections."""
        self._listener.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


def _is_owner(client: socket.socket) -> bool:
    ucred = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", ucred)[1] in {0, os.geteuid()}


def _refuse(client: socket.socket, why: str) -> None:
    with client, contextlib.suppress(OSError):
        client.send(messages.encode(messages.failure(HostError(why))))


class _Connection:
    def __init__(self, client: socket.socket, supervised: Supervised) -> None:
        self._client = client
        self._supervised = supervised
        self._run_control = supervised.run_control
        self._received = bytearray()
        self._holds = 0

    async def run(self) -> None:
        try:
            while (line := await self._line()) is not None and await self._answer(line):
                pass
        except (OSError, TimeoutError):
            pass  # the client went away, or does not read
        except Exception:
            _log.exception("a client's request failed in an unforeseen way")
        finally:
            self._client.close()
            if self._holds:
                with contextlib.suppress(DvisorError):
                    await self._run_control.release(self._holds)

    async def _line(self) -> bytes | None:
        """One line, or None at the end of the stream or of our patience."""
        loop = asyncio.get_running_loop()
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > messages.REQUEST_LIMIT:
                await self._send(messages.failure(UsageError("a request is too long")))
                return None
            data = await loop.sock_recv(self._client, 4096)
            if not data:
                return None
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    async def _send(self, reply: Reply, descriptors: list[int] | None = None) -> None:
        data = messages.encode(reply)
        if descriptors:
            # The socket's buffer is empty here unless the client does not read at all.
            sent = socket.send_fds(self._client, [data], descriptors)
            data = data[sent:]
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await asyncio.get_running_loop().sock_sendall(self._client, data)

    async def _answer(self, line: bytes) -> bool:
        """Serve one request; False when the connection is over."""
        try:
            request = messages.decode_request(line)
        except UsageError as error:
            await self._send(messages.failure(error))
            return False
        try:
            return await self._serve(request)
        except DvisorError as error:
            await self._send(messages.failure(error))
            return True

    async def _serve(self, request: messages.AnyRequest) -> bool:
        match request:
            case messages.Describe():
                descriptors = self._supervised.descriptors() if request.descriptors else None
                await self._send(self._supervised.info(), descriptors)
            case messages.ShareTraps():
                shared = self._supervised.traps_descriptor()
                await self._send(Done(self._run_control.state), [shared])
            case messages.ReadRegisters():
                self._run_control.lifecycle.require("read the registers of", *LIVE)
                await self._send(Registers(await self._supervised.registers()))
            case messages.AttachConsole():
                await self._done()
                await self._supervised.console.serve(
                    self._client, replay=request.replay, typed=bytes(self._received)
                )
                return False
            case messages.Subscribe():
                await self._stream_changes()
                return False
            case messages.Quit():
                await self._supervised.quit(force=request.force, timeout_s=request.timeout_s)
                await self._done()
            case _:
                await self._steer(request)
                await self._done()
        return True

    async def _steer(self, request: messages.AnyRequest) -> None:
        match request:
            case messages.Pause():
                await self._run_control.pause()
            case messages.Resume():
                await self._run_control.resume()
            case messages.Reset():
                await self._run_control.reset()
            case messages.Hold():
                await self._run_control.hold()
                self._holds += 1
            case messages.Release():
                if not self._holds:
                    raise StateError("this connection holds nothing that it could release")
                self._holds -= 1
                await self._run_control.release()

    async def _done(self) -> None:
        await self._send(Done(self._run_control.state))

    async def _stream_changes(self) -> None:
        """Send changes until the client goes; one that falls far behind is cut off."""
        waiting: asyncio.Queue[Change] = asyncio.Queue(_EVENTS_WAITING)
        overflow = asyncio.Event()

        def offer(change: Change) -> None:
            try:
                waiting.put_nowait(change)
            except asyncio.QueueFull:
                overflow.set()

        offer(Change("", self._run_control.state, self._run_control.epoch.value))
        self._run_control.subscribers.add(offer)
        sender = asyncio.create_task(self._send_changes(waiting))
        ends = {
            sender,
            asyncio.create_task(overflow.wait()),
            asyncio.create_task(self._line()),  # only its end is of interest
        }
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._run_control.subscribers.discard(offer)
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _send_changes(self, waiting: asyncio.Queue[Change]) -> None:
        while True:
            await self._send(await waiting.get())
