"""The control socket's language: one JSON object a line, decoded strictly, sizes bounded.

``REQUEST_LIMIT`` and ``REPLY_LIMIT`` bound a line. A request the supervisor cannot decode is
answered by a ``Failure`` and costs the client its connection.
"""

from __future__ import annotations

import msgspec

from dvisor import errors
from dvisor.errors import DvisorError, EngineError, UsageError
from dvisor.machine.states import State

PROTOCOL = 1
REQUEST_LIMIT = 64 << 10
REPLY_LIMIT = 4 << 20

KEEP = b"keep\n"
"""The launching command's last word: its VM may live on without it."""


class Request(msgspec.Struct, frozen=True, tag_field="do", forbid_unknown_fields=True):
    """What a client may ask for."""


class Describe(Request, tag="describe", frozen=True):
    """Info; with ``descriptors``, the RAM's and the epoch page's come with it (SCM_RIGHTS)."""

    descriptors: bool = False


class ShareTraps(Request, tag="traps", frozen=True):
    """Done; the memory that the library in QEMU shares comes with it (SCM_RIGHTS)."""


class ReadRegisters(Request, tag="registers", frozen=True):
    """Text of HMP ``info registers -a``."""


class Pause(Request, tag="pause", frozen=True):
    """Stop the guest until somebody resumes it."""


class Resume(Request, tag="resume", frozen=True):
    """Let a paused guest run."""


class Reset(Request, tag="reset", frozen=True):
    """Press the reset button."""


class Hold(Request, tag="hold", frozen=True):
    """Stop the guest until this connection releases as often as it held, or closes."""


class Release(Request, tag="release", frozen=True):
    """Take back one ``Hold``."""


class Quit(Request, tag="quit", frozen=True):
    """End the VM: ask the guest to power down, then kill. ``force``: kill at once."""

    force: bool = False
    timeout_s: float | None = None


class AttachConsole(Request, tag="console", frozen=True):
    """After the answer the connection carries the serial line's raw bytes, both ways.

    ``replay``: begin with what the guest has said so far (the last 256 KiB of it).
    """

    replay: bool = False


class Subscribe(Request, tag="events", frozen=True):
    """After the answer the connection carries a ``Change`` at every change, starting with now."""


AnyRequest = (
    Describe
    | ShareTraps
    | ReadRegisters
    | Pause
    | Resume
    | Reset
    | Hold
    | Release
    | Quit
    | AttachConsole
    | Subscribe
)


class Reply(msgspec.Struct, frozen=True, tag_field="is"):
    """What the supervisor may answer."""


class Done(Reply, tag="done", frozen=True):
    """It was done; the state after it."""

    state: State


class Info(Reply, tag="info", frozen=True):
    """All that is known of a living VM. ``ram``: (gpa, size, offset in the RAM file) by gpa."""

    name: str
    state: State
    accel: str
    vcpus: int
    memory_bytes: int
    supervisor_pid: int
    qemu_pid: int
    started_at: float
    epoch: int
    holds: int
    vmlinuz: str
    ram: tuple[tuple[int, int, int], ...]
    protocol: int = PROTOCOL


class Registers(Reply, tag="registers", frozen=True):
    text: str


class Change(Reply, tag="change", frozen=True):
    """What happened to the VM: a name of QEMU's (RESET, STOP, ...) or empty, and the state."""

    event: str
    state: State
    epoch: int


class Progress(Reply, tag="progress", frozen=True):
    """To the launching command only: what the supervisor does now."""

    text: str


class Failure(Reply, tag="failure", frozen=True):
    """A ``DvisorError`` by the name of its class."""

    kind: str
    message: str


AnyReply = Done | Info | Registers | Change | Progress | Failure

_KINDS = {
    cls.__name__: cls
    for cls in (
        errors.UsageError,
        errors.NotFoundError,
        errors.StateError,
        errors.HostError,
        errors.EngineError,
        errors.UnsupportedError,
    )
}
_requests: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
_replies: msgspec.json.Decoder[AnyReply] = msgspec.json.Decoder(AnyReply)
_encoder = msgspec.json.Encoder()


def encode(message: Request | Reply) -> bytes:
    """One line, with its newline."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> AnyRequest:
    """UsageError when ``line`` is no request."""
    try:
        return _requests.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"not a request that this supervisor knows: {error}") from error


def decode_reply(line: bytes) -> AnyReply:
    """EngineError when ``line`` is no reply; does not raise what a ``Failure`` says."""
    try:
        return _replies.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise EngineError(
            f"the supervisor's answer cannot be understood ({error}): was the VM started by "
            "another version of dvisor?"
        ) from error


def failure(error: DvisorError) -> Failure:
    """The message that tells ``error`` to the other side."""
    kind = type(error).__name__
    return Failure(kind if kind in _KINDS else "EngineError", str(error))


def to_error(message: Failure) -> DvisorError:
    """The error that a ``Failure`` tells of."""
    return _KINDS.get(message.kind, EngineError)(message.message)
