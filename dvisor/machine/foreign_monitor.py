"""A QEMU's monitor over a socket that is not ours alone: QMP, or the human monitor (HMP).

Synchronous and without a thread, unlike the qemu.qmp library, whose client needs an asyncio loop
of its own: ``events`` must be answerable in a few microseconds, also inside a running loop, and
must never lag behind what QEMU has already sent (an epoch that is late is wrong).
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any, Protocol

from dvisor.errors import EngineError

COMMAND_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 16 << 20
BUSY = (
    "no greeting within {:.1f} s: somebody else uses this socket (it serves one client at a time)"
    ", or QEMU is stopped"
)


class MonitorClosedError(EngineError):
    """QEMU closed the monitor's socket: it ended, or gave the monitor to somebody else."""


class Monitor(Protocol):
    """What the engine needs of a monitor, of either kind."""

    protocol: str
    knows_events: bool

    def command(self, text: str) -> str:
        """The answer to a line of the human monitor, without the prompt."""
        ...

    def events(self) -> list[str]:
        """Names of the events since the last call; never waits."""
        ...

    def close(self) -> None: ...


class _Stream:
    """Bytes from a socket up to a mark, within a time and a size."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, data: bytes) -> None:
        try:
            self.connection.settimeout(COMMAND_TIMEOUT_S)
            self.connection.sendall(data)
        except TimeoutError as error:
            raise EngineError(f"QEMU takes no command for {COMMAND_TIMEOUT_S} s") from error
        except OSError as error:
            raise MonitorClosedError(f"QEMU closed its monitor ({error.strerror})") from error

    def ready(self) -> bool:
        """Whether bytes, or the news of the end, wait to be read."""
        return bool(self._poll.poll(0))

    def holds(self, mark: bytes) -> bool:
        """Whether ``mark`` has been read already."""
        return mark in self._buffer

    def take(self, mark: bytes) -> bytes | None:
        """What the buffer holds up to and with ``mark``; None when it is not there yet."""
        at = self._buffer.find(mark)
        if at < 0:
            return None
        piece = bytes(self._buffer[: at + len(mark)])
        del self._buffer[: at + len(mark)]
        return piece

    def fill(self, deadline: float) -> None:
        """Wait for more bytes; TimeoutError at ``deadline`` (of time.monotonic)."""
        left = deadline - time.monotonic()
        if left <= 0 and not self.ready():
            raise TimeoutError
        if len(self._buffer) > MAX_MESSAGE_BYTES:
            raise EngineError(f"QEMU's monitor sent over {MAX_MESSAGE_BYTES} bytes in one answer")
        self.connection.settimeout(max(left, 0.001))
        try:
            data = self.connection.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError as error:
            raise MonitorClosedError(f"QEMU closed its monitor ({error.strerror})") from error
        if not data:
            raise MonitorClosedError("QEMU closed its monitor")
        self._buffer += data

    def until(self, mark: bytes, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while (piece := self.take(mark)) is None:
            self.fill(deadline)
        return piece


class QmpMonitor:
    """The machine protocol: JSON lines. Source: QEMU docs/interop/qmp-spec.rst."""

    protocol = "QMP"
    knows_events = True

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        """Greets within ``timeout_s``; EngineError (with the reason) when that fails."""
        self._stream = _Stream(connection)
        self._events: list[str] = []
        self._next_id = 0
        try:
            greeting = self._message(time.monotonic() + timeout_s)
        except TimeoutError as error:
            raise EngineError(BUSY.format(timeout_s)) from error
        if "QMP" not in greeting:
            raise EngineError("what answers there is not QMP")
        self.execute("qmp_capabilities")

    def execute(self, name: str, arguments: dict[str, object] | None = None) -> Any:
        """The ``return`` of a QMP command; EngineError with QEMU's own words when it refuses."""
        self._next_id += 1
        request = {"execute": name, "arguments": arguments or {}, "id": self._next_id}
        self._stream.send(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        try:
            while (answer := self._message(deadline)).get("id") != self._next_id:
                pass
        except TimeoutError as error:
            raise EngineError(f"QEMU did not answer {name} within {COMMAND_TIMEOUT_S} s") from error
        if "error" in answer:
            refusal = answer["error"]
            reason = refusal.get("desc", refusal) if isinstance(refusal, dict) else refusal
            raise EngineError(f"QEMU refused {name}: {reason}")
        return answer.get("return")

    def command(self, text: str) -> str:
        answer = self.execute("human-monitor-command", {"command-line": text})
        return str(answer).replace("\r\n", "\n")

    def events(self) -> list[str]:
        deadline = 0.0  # never waits
        while self._stream.ready() or self._stream.holds(b"\n"):
            try:
                self._message(deadline)
            except TimeoutError:  # a message whose end has not come yet
                break
        if not self._events:
            return []
        events, self._events = self._events, []
        return events

    def _message(self, deadline: float) -> dict[str, Any]:
        """The next message; events among them are noted, and returned as {} without an id."""
        while (line := self._stream.take(b"\n")) is None:
            self._stream.fill(deadline)
        try:
            message = json.loads(line)
        except ValueError as error:
            raise EngineError(f"what answers there is not QMP: {line[:60]!r}") from error
        if not isinstance(message, dict):
            raise EngineError(f"what answers there is not QMP: {line[:60]!r}")
        if "event" in message:
            self._events.append(str(message["event"]))
        return message

    def close(self) -> None:
        self._stream.connection.close()


class HmpMonitor:
    """The human monitor: lines with a prompt, and the editor's echo, which is dropped."""

    protocol = "HMP"
    knows_events = False
    _PROMPT = b"(qemu) "

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._stream = _Stream(connection)
        try:
            banner = self._stream.until(self._PROMPT, timeout_s)
        except TimeoutError as error:
            raise EngineError(BUSY.format(timeout_s)) from error
        if b"QEMU " not in banner:
            raise EngineError("what answers there is not a QEMU monitor")

    def command(self, text: str) -> str:
        self._stream.send(text.encode() + b"\n")
        try:
            self._stream.until(b"\r\n", COMMAND_TIMEOUT_S)  # the echo
            answer = self._stream.until(self._PROMPT, COMMAND_TIMEOUT_S)
            while not (b"\r\n" + answer).endswith(b"\r\n" + self._PROMPT):
                answer += self._stream.until(self._PROMPT, COMMAND_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineError(
                f"QEMU did not answer `{text}` within {COMMAND_TIMEOUT_S} s"
            ) from error
        return answer[: -len(self._PROMPT)].decode(errors="replace").replace("\r\n", "\n")

    def events(self) -> list[str]:
        if self._stream.ready():  # it says nothing unasked, so this is its end
            self._stream.fill(0.0)
        return []

    def close(self) -> None:
        self._stream.connection.close()
