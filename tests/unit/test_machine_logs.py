"""A VM's logs stay bounded, and never stand in its way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dvisor.machine.bounded_log import BoundedLog
from dvisor.machine.record import Record, forget_old, read_record, recorded_names, write_record
from dvisor.machine.states import State


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVISOR_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_log_keeps_the_last_part_and_the_one_before(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", limit_bytes=100)
    for number in range(100):
        log.write(f"line {number:03}\n".encode())
    log.close()
    kept = (tmp_path / "a.log.1").read_text() + (tmp_path / "a.log").read_text()
    assert kept.splitlines()[-1] == "line 099"
    assert 100 <= len(kept) <= 200
    assert len(list(tmp_path.glob("a.log*"))) == 2


def test_a_new_vm_begins_a_new_log(tmp_path: Path) -> None:
    for text in (b"first", b"second"):
        log = BoundedLog(tmp_path / "a.log")
        log.write(text)
        log.close()
    assert (tmp_path / "a.log").read_bytes() == b"second"
    assert (tmp_path / "a.log.1").read_bytes() == b"first"


def test_one_write_beyond_the_limit_keeps_its_end(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", limit_bytes=10)
    log.write(b"x" * 50 + b"end")
    assert (tmp_path / "a.log").read_bytes() == b"xxxxxxxend"
    log.close()


def test_a_lost_directory_does_not_stop_the_writer(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = BoundedLog(tmp_path / "logs" / "a.log", limit_bytes=10)
    shutil.rmtree(tmp_path / "logs")
    for _ in range(5):
        log.write(b"12345678")
    log.close()


def test_a_record_is_read_as_it_was_written() -> None:
    written = Record("web1", State.SHUTDOWN, "done", 1.0, 2.0)
    write_record(written)
    assert read_record("web1") == written
    assert recorded_names() == ["web1"]


def test_a_damaged_record_is_no_record(state: Path) -> None:
    write_record(Record("web1", State.SHUTDOWN, "done", 1.0, 2.0))
    (state / "web1" / "last.json").write_bytes(b"{")
    assert read_record("web1") is None


def test_only_the_vms_that_ended_last_are_remembered() -> None:
    for number in range(5):
        write_record(Record(f"vm{number}", State.SHUTDOWN, "done", 1.0, float(number)))
    write_record(Record("living", State.CREATED, "killed", 0.0))
    forget_old(keep=2)
    assert recorded_names() == ["living", "vm3", "vm4"]
