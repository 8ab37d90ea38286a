"""The control socket's client side: plain blocking sockets, quick to open."""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import struct
from typing import NoReturn, Self, TypeVar

from dvisor.errors import EngineError, HostError, NotFoundError
from dvisor.machine import messages, registry
from dvisor.machine.messages import (
    AttachConsole,
    Change,
    Describe,
    Done,
    Failure,
    Hold,
    Info,
    Pause,
    Quit,
    ReadRegisters,
    Registers,
    Release,
    Reply,
    Request,
    Reset,
    Resume,
    ShareTraps,
    Subscribe,
)
from dvisor.machine.places import CONTROL_SOCKET, runtime_directory
from dvisor.machine.record import read_record

TIMEOUT_S = 30.0
FORCE_PATIENCE_S = 5.0
_ReplyT = TypeVar("_ReplyT", bound=Reply)


class Control:
    """One connection to the supervisor of a living VM. A context manager.

    Not for use by several threads at once. StateError when the VM is in a wrong state for a call;
    EngineError when the supervisor goes away.
    """

    def __init__(self, name: str, timeout_s: float = TIMEOUT_S) -> None:
        """Connect; NotFoundError when no such VM lives."""
        self.name = registry.check_name(name)
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # With settimeout(), a full backlog would be an error at once: unix(7), connect(2) EAGAIN.
        patience = struct.pack("ll", max(1, int(timeout_s)), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        try:
            self._socket.connect(str(runtime_directory(name) / CONTROL_SOCKET))
            self._socket.settimeout(timeout_s)
        except OSError as error:
            self._socket.close()
            _explain_absence(name, error)
        self._hangup = select.poll()
        self._hangup.register(self._socket, select.POLLRDHUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection and of all that it holds. Safe to call twice."""
        self._socket.close()
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()

    def ended(self) -> bool:
        """Whether the supervisor has gone. Sends nothing: a microsecond."""
        return bool(self._hangup.poll(0))

    def info(self) -> Info:
        """All that the supervisor knows of its VM."""
        return self._ask(Describe(), Info)

    def info_with_descriptors(self) -> tuple[Info, int, int]:
        """Info, and descriptors of the RAM and of the epoch page, which the caller owns."""
        info = self._ask(Describe(descriptors=True), Info)
        try:
            ram_fd, epoch_fd = self._descriptors
        except ValueError as error:
            raise EngineError(
                f"the supervisor of {self.name} sent {len(self._descriptors)} descriptors, not 2"
            ) from error
        self._descriptors.clear()
        return info, ram_fd, epoch_fd

    def traps_memory(self) -> int:
        """A descriptor of the memory that the library in QEMU shares, which the caller owns.

        UnsupportedError when the VM was started without traps.
        """
        self._ask(ShareTraps(), Done)
        if len(self._descriptors) != 1:
            raise EngineError(f"the supervisor of {self.name} sent no descriptor")
        return self._descriptors.pop()

    def registers_text(self) -> str:
        """What QEMU prints for ``info registers -a``."""
        return self._ask(ReadRegisters(), Registers).text

    def pause(self) -> None:
        """Stop the guest until ``resume``."""
        self._ask(Pause(), Done)

    def resume(self) -> None:
        """Let a paused guest run."""
        self._ask(Resume(), Done)

    def reset(self) -> None:
        """Reset the guest; when this returns, the epoch has changed."""
        self._ask(Reset(), Done)

    def hold(self) -> None:
        """Stop the guest until ``release``, or until this connection ends."""
        self._ask(Hold(), Done)

    def release(self) -> None:
        """Take back one ``hold``."""
        self._ask(Release(), Done)

    def quit(self, *, force: bool = False, timeout_s: float | None = None) -> None:
        """End the VM; returns when nothing of it is left.

        Without ``force`` the guest is asked to power down and gets ``timeout_s`` seconds for it
        (None: what its config says).
        """
        with _Peer(self._socket) as supervisor:
            # Without force, the supervisor bounds the time.
            self._socket.settimeout(FORCE_PATIENCE_S if force else None)
            try:
                self._ask(Quit(force=force, timeout_s=timeout_s), Done)
            except EngineError:
                if not force:
                    raise
                supervisor.kill()
            if not supervisor.wait(TIMEOUT_S):
                raise HostError(
                    f"VM {self.name} has ended, but its supervisor {supervisor.pid} not"
                )
        registry.live_names()  # takes away what is left if it had to be killed

    def attach_console(self, *, replay: bool) -> tuple[socket.socket, bytes]:
        """The serial line as a socket that the caller owns, and what came over it already."""
        self._ask(AttachConsole(replay=replay), Done)
        return self._socket.dup(), bytes(self._received)

    def subscribe(self) -> None:
        """Turn the connection into a stream of changes: ``next_change``."""
        self._send(Subscribe())

    def next_change(self, timeout_s: float | None = None) -> Change:
        """Wait for the next change; TimeoutError after ``timeout_s``."""
        self._socket.settimeout(timeout_s)
        return self._receive(Change)

    def _ask(self, request: Request, expected: type[_ReplyT]) -> _ReplyT:
        self._send(request)
        try:
            return self._receive(expected)
        except TimeoutError as error:
            raise EngineError(f"the supervisor of {self.name} does not answer") from error

    def _send(self, request: Request) -> None:
        try:
            self._socket.sendall(messages.encode(request))
        except BrokenPipeError:
            return  # what was sent before the other end closed, if anything, says why
        except OSError as error:
            raise EngineError(f"VM {self.name} has ended: {error.strerror}") from error

    def _receive(self, expected: type[_ReplyT]) -> _ReplyT:
        reply = messages.decode_reply(self._line())
        if isinstance(reply, Failure):
            raise messages.to_error(reply)
        if not isinstance(reply, expected):
            raise EngineError(f"the supervisor of {self.name} answered {reply!r}")
        return reply

    def _line(self) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > messages.REPLY_LIMIT:
                raise EngineError(f"the supervisor of {self.name} sends lines without an end")
            self._received += self._chunk()
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _chunk(self) -> bytes:
        room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
        try:
            data, ancillary, _, _ = self._socket.recvmsg(64 << 10, room, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise
        except OSError as error:
            raise EngineError(f"VM {self.name} has ended: {error.strerror}") from error
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i")
                descriptors.frombytes(payload[: len(payload) // 4 * 4])
                self._descriptors += descriptors
        if not data:
            raise EngineError(f"VM {self.name} has ended")
        return data


class _Peer:
    """The process that listens at the other end of a unix socket: to be waited for, or killed."""

    def __init__(self, connection: socket.socket) -> None:
        ucred = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid: int = struct.unpack("3i", ucred)[0]

    def __enter__(self) -> Self:
        self._pidfd = os.pidfd_open(self.pid)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pidfd)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """False when it still lives after ``timeout_s``."""
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])


def _explain_absence(name: str, error: OSError) -> NoReturn:
    last = read_record(name)
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        directory = runtime_directory(name)
        if directory.exists() and registry.is_live(directory):
            raise EngineError(f"VM {name} is starting or ending; try again in a moment") from None
        past = f"; the last one ended: {last.reason}" if last else ""
        raise NotFoundError(
            f"no VM named {name} is running{past}. 'dvisor ls' shows those that are"
        ) from None
    raise EngineError(f"cannot reach the supervisor of {name}: {error.strerror}") from error
