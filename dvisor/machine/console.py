"""A guest's serial console for programs: send a line, wait for a text, run a command."""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import socket
import time
from typing import NamedTuple, Self

from dvisor.errors import EngineError, UsageError
from dvisor.machine.control import Control

KEPT_CHARACTERS = 1 << 20
# The kernel's line discipline drops what exceeds it: N_TTY_BUF_SIZE, drivers/tty/n_tty.c.
LONGEST_LINE = 4095
_SHELL_RETRY_S = 1.0


class CommandResult(NamedTuple):
    """What a command printed (stdout and stderr as the terminal showed them) and its status."""

    text: str
    status: int


class Console:
    """One connection to the serial line of a living VM. A context manager.

    Output is kept until a read consumes it, the last million characters at most.
    """

    def __init__(self, name: str, *, replay: bool = False) -> None:
        """Connect; with ``replay``, what the guest has said so far can be read too."""
        self.name = name
        with Control(name) as control:
            self._socket, first = control.attach_console(replay=replay)
        self._text = first.decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the console. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def send(self, line: str) -> None:
        """Type ``line`` and press Enter."""
        data = line.encode() + b"\n"
        if max(map(len, data.split(b"\n"))) > LONGEST_LINE:
            raise UsageError(f"a terminal takes at most {LONGEST_LINE} bytes a line")
        try:
            self._socket.settimeout(10.0)
            self._socket.sendall(data)
        except OSError as error:
            raise EngineError(f"VM {self.name} has ended, or does not take input") from error

    def read_until(self, pattern: str | re.Pattern[str], timeout_s: float) -> str:
        """All output up to and with the first match; a str is matched literally.

        EngineError after ``timeout_s``, with the last of what was seen; the output stays unread.
        """
        wanted = re.compile(re.escape(pattern)) if isinstance(pattern, str) else pattern
        give_up = time.monotonic() + timeout_s
        while (match := wanted.search(self._text)) is None:
            if not self._more(give_up - time.monotonic()):
                raise EngineError(
                    f"the console of {self.name} did not show {_shown(pattern)} within "
                    f"{timeout_s:g} s; its last words: {self._text[-300:]!r}"
                )
        seen, self._text = self._text[: match.end()], self._text[match.end() :]
        return seen

    def wait_for_shell(self, timeout_s: float) -> None:
        """Return when a shell answers. Asks again: input before it opens the tty is lost."""
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                self.run(":", min(_SHELL_RETRY_S, max(0.0, give_up - time.monotonic())))
            except EngineError:
                if time.monotonic() > give_up:
                    raise
            else:
                return

    def run(self, command: str, timeout_s: float) -> CommandResult:
        """Run ``command`` in the POSIX shell that listens on the console, and wait for its end."""
        token = secrets.token_hex(6)
        # The marks appear in the output only: what is typed, and echoed, has them in two pieces.
        self.send(
            f"printf '\\nbegin%s\\n' -{token}; eval {shlex.quote(command)}; "
            f"printf '\\nend%s %d\\n' -{token} $?"
        )
        # Their newlines are not waited for: a serial line under load was seen to lose some.
        self.read_until(re.compile(rf"begin-{token}\r?\n"), timeout_s)
        text = self.read_until(re.compile(rf"end-{token} \d+\r?\n"), timeout_s)
        body, _, status = text.rstrip("\r\n").rpartition(f"end-{token} ")
        body = body.replace("\r\n", "\n").removesuffix("\n")
        return CommandResult(body, int(status))

    def _more(self, timeout_s: float) -> bool:
        """Take in what comes within ``timeout_s``; False when nothing came."""
        if timeout_s <= 0:
            return False
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(64 << 10)
        except TimeoutError:
            return False
        except OSError as error:
            raise EngineError(f"VM {self.name} has ended") from error
        if not data:
            raise EngineError(
                f"the console of {self.name} was closed; its last words: {self._text[-300:]!r}"
            )
        self._text = (self._text + data.decode(errors="replace"))[-KEPT_CHARACTERS:]
        return True


def _shown(pattern: str | re.Pattern[str]) -> str:
    return repr(pattern if isinstance(pattern, str) else pattern.pattern)
