"""The guest's serial line, logged, and shared by any number of clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from dvisor.machine.bounded_log import BoundedLog

REPLAY_BYTES = 256 << 10
CLIENT_BACKLOG_BYTES = 512 << 10
_CHUNK = 64 << 10


class ConsoleMux:
    """Every client sees all output; what any client types goes to the guest.

    A client that does not read loses its connection once ``CLIENT_BACKLOG_BYTES`` wait for it:
    the guest never waits for a client, and the supervisor's memory stays bounded.
    """

    def __init__(self, serial: socket.socket, log: BoundedLog) -> None:
        self._serial = serial
        self._log = log
        self._recent = bytearray()
        self._clients: set[_Client] = set()
        self._typing = asyncio.Lock()

    async def run(self) -> None:
        """Move output until the guest's end closes."""
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._serial, _CHUNK):
            self._log.write(data)
            self._recent += data
            del self._recent[:-REPLAY_BYTES]
            for client in self._clients:
                client.offer(data)

    async def serve(self, connection: socket.socket, *, replay: bool, typed: bytes) -> None:
        """Carry ``connection`` until either side closes; ``typed``: input that came already."""
        client = _Client(connection)
        if replay:
            client.offer(bytes(self._recent))
        self._clients.add(client)
        tasks = {
            asyncio.create_task(client.write()),
            asyncio.create_task(self._read(connection, typed)),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, connection: socket.socket, typed: bytes) -> None:
        loop = asyncio.get_running_loop()
        data = typed
        with contextlib.suppress(OSError):
            while data or (data := await loop.sock_recv(connection, _CHUNK)):
                async with self._typing:
                    await loop.sock_sendall(self._serial, data)
                data = b""


class _Client:
    """Output that waits for one client."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting = bytearray()
        self._more = asyncio.Event()
        self._too_slow = False

    def offer(self, data: bytes) -> None:
        self._waiting += data
        self._too_slow = len(self._waiting) > CLIENT_BACKLOG_BYTES
        self._more.set()

    async def write(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                await self._more.wait()
                if self._too_slow:
                    return
                self._more.clear()
                sending = bytes(self._waiting[:_CHUNK])
                del self._waiting[:_CHUNK]
                await loop.sock_sendall(self._connection, sending)
                if self._waiting:
                    self._more.set()
