"""The monitors' client against servers that behave badly."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from dvisor.errors import EngineError
from dvisor.machine.foreign_monitor import HmpMonitor, MonitorClosedError, QmpMonitor

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def serve(connection: socket.socket, *answers: bytes) -> threading.Thread:
    """Answer each received line; an answer may hold %d for the request's id."""

    def run() -> None:
        with connection.makefile("rb") as lines:
            for answer in answers:
                request = json.loads(lines.readline())
                connection.sendall(answer.replace(b"%d", str(request["id"]).encode()))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def greeted(ends: tuple[socket.socket, socket.socket], *answers: bytes) -> QmpMonitor:
    ours, theirs = ends
    theirs.sendall(GREETING)
    serve(theirs, b'{"return": {}, "id": %d}\r\n', *answers)
    return QmpMonitor(ours, 5.0)


def test_silent_socket_is_reported_as_busy(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(EngineError, match="one client at a time"):
        QmpMonitor(ends[0], 0.05)


@pytest.mark.parametrize("what", [b"SSH-2.0-x\r\n", b"[]\n", b"{}\n", b"\xff\n"])
def test_other_service_is_reported_as_no_qmp(
    ends: tuple[socket.socket, socket.socket], what: bytes
) -> None:
    ends[1].sendall(what)
    with pytest.raises(EngineError, match="not QMP"):
        QmpMonitor(ends[0], 1.0)


def test_closed_socket_is_told_apart(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    with pytest.raises(MonitorClosedError):
        QmpMonitor(ends[0], 1.0)


def test_events_between_answers_are_kept(ends: tuple[socket.socket, socket.socket]) -> None:
    monitor = greeted(ends, b'{"event": "RESET"}\n{"return": "a\\r\\nb", "id": %d}\n')
    assert monitor.command("info x") == "a\nb"
    assert monitor.events() == ["RESET"]
    assert monitor.events() == []


def test_half_an_event_waits_for_its_other_half(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    monitor = greeted(ends)
    ends[1].sendall(b'{"event": "RE')
    assert monitor.events() == []
    ends[1].sendall(b'SET"}\n{"event": "STOP"}\n')
    assert monitor.events() == ["RESET", "STOP"]


def test_refusal_is_told_in_qemus_words(ends: tuple[socket.socket, socket.socket]) -> None:
    monitor = greeted(ends, b'{"error": {"class": "x", "desc": "No such thing"}, "id": %d}\n')
    with pytest.raises(EngineError, match="refused device_del: No such thing"):
        monitor.execute("device_del")


@pytest.mark.parametrize("error", [b'"text"', b"null", b"[]"])
def test_refusal_without_words_is_still_an_engine_error(
    ends: tuple[socket.socket, socket.socket], error: bytes
) -> None:
    monitor = greeted(ends, b'{"error": ' + error + b', "id": %d}\n')
    with pytest.raises(EngineError, match="refused"):
        monitor.execute("stop")


HMP_BANNER = b"QEMU 9.0 monitor - type 'help' for more information\r\n(qemu) "


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"VM status: running\r\n(qemu) ", "VM status: running\n"),
        (b"(qemu) ", ""),
        (b"a (qemu) b\r\n(qemu) ", "a (qemu) b\n"),
    ],
)
def test_human_answer_ends_at_the_prompt(
    ends: tuple[socket.socket, socket.socket], answer: bytes, text: str
) -> None:
    ends[1].sendall(HMP_BANNER)
    monitor = HmpMonitor(ends[0], 1.0)
    ends[1].sendall(b"i\x1b[K\x1b[Dinfo\x1b[K\r\n" + answer)
    assert monitor.command("info") == text


def test_human_monitor_knows_its_end(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(HMP_BANNER)
    monitor = HmpMonitor(ends[0], 1.0)
    assert monitor.events() == []
    ends[1].close()
    with pytest.raises(MonitorClosedError):
        monitor.events()
