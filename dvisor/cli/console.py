"""``dvisor console``: a person at a guest's serial line."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import typer

ESCAPE = b"\x1d"  # Ctrl-], as telnet(1) and virsh(1) have it
_CHUNK = 64 << 10


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor console web1    (Ctrl-] leaves it)")
    def console(
        name: Annotated[str, typer.Argument(help="The VM's name.")],
        replay: Annotated[
            bool, typer.Option(help="Begin with what the guest has said so far.")
        ] = False,
    ) -> None:
        """Sit at a guest's serial console; several can at once. Ctrl-] leaves, the VM goes on."""
        from dvisor.machine.control import Control

        with Control(name) as control:
            serial, first = control.attach_console(replay=replay)
        with serial:
            serial.settimeout(None)
            if sys.stdin.isatty():
                typer.echo(f"Console of {name}; Ctrl-] leaves it.", err=True)
            with _raw_terminal():
                ended = _carry(serial, first)
        typer.echo(f"\n{name} has ended." if ended else "", err=True)


def _carry(serial: socket.socket, first: bytes) -> bool:
    """Move bytes both ways; True when the VM ended, False when the person left."""
    _show(first)
    watched: list[socket.socket | int] = [serial, sys.stdin.fileno()]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if serial in ready:
            data = _received(serial)
            if not data:
                return True
            _show(data)
        if sys.stdin.fileno() in ready:
            typed = os.read(sys.stdin.fileno(), _CHUNK)
            before, left, _ = typed.partition(ESCAPE)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                serial.sendall(before)
            if left:
                return False
            if not typed:  # the end of a pipe: what was typed still gets its answer
                watched.remove(sys.stdin.fileno())


def _received(serial: socket.socket) -> bytes:
    try:
        return serial.recv(_CHUNK)
    except ConnectionResetError:
        return b""


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the guest; the terminal is as before after whatever ends the block."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal itself has gone
            termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
