"""The peer's side of traps, against a library that is played by the test."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dvisor.errors import EngineError, HostError, StateError, UnsupportedError, UsageError
from dvisor.machine import accel, native
from dvisor.machine.arguments import qemu_argv
from dvisor.machine.config import BootFiles, launch_spec, parse_config
from dvisor.machine.native import PROTOCOL
from dvisor.machine.spec import LaunchSpec
from dvisor.machine.traps import OnLoss, Traps, When
from dvisor.machine.traps_memory import SharedMemory

C = PROTOCOL.constants


class Library:
    """What QEMU's side would write."""

    def __init__(self, fd: int) -> None:
        self.memory = SharedMemory(fd)
        self.memory["header.library_state"] = C["LIBRARY_READY"]
        self.memory["header.vcpus"] = 2
        self.beat()

    def beat(self) -> None:
        self.memory["header.library_heartbeat_ns"] = time.monotonic_ns() + 10**9

    def follow(self) -> None:
        """Take over any enrolment before it is made."""
        self.memory["header.generation_seen"] = self.memory["header.generation"] + 1

    def ask(self, vcpu: int = 0, number: int = 110, event: str = "ENTRY", result: int = 0) -> int:
        slot = self.memory.slot(vcpu)
        slot["event"] = C[f"EVENT_{event}"]
        slot["number"] = number
        slot["result"] = result
        slot.put_six("arguments", [1, 2, 3, 4, 5, 6])
        slot["time_ns"] = time.monotonic_ns()
        slot["request"] += 1
        self.memory["header.doorbell"] += 1
        return slot["request"]


@pytest.fixture
def fd() -> Iterator[int]:
    fd = native.shared_memory()
    yield fd
    os.close(fd)


@pytest.fixture
def library(fd: int) -> Iterator[Library]:
    library = Library(fd)
    yield library
    library.memory.close()


@pytest.fixture
def traps(fd: int, library: Library) -> Iterator[Traps]:
    with Traps(fd) as traps:
        yield traps


def test_shared_memory_cannot_be_shortened(fd: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_without_the_library_there_are_no_traps(fd: int) -> None:
    with pytest.raises(UnsupportedError, match="has not loaded"):
        Traps(fd)


def test_memory_of_another_version_is_refused(fd: int, library: Library) -> None:
    library.memory["header.version"] = PROTOCOL.version + 1
    with pytest.raises(EngineError, match="another version"):
        Traps(fd)


def test_an_event_is_given_out_once_with_all_that_is_known(traps: Traps, library: Library) -> None:
    library.ask(vcpu=1, number=257)
    event = traps.next_event(1)
    assert event is not None
    assert (event.when, event.vcpu, event.number) == (When.ENTRY, 1, 257)
    assert event.arguments == (1, 2, 3, 4, 5, 6)
    assert traps.next_event(0) is None


def test_the_longest_waiting_comes_first(traps: Traps, library: Library) -> None:
    library.ask(vcpu=1, number=1)
    library.ask(vcpu=0, number=2)
    events = [traps.next_event(0), traps.next_event(0)]
    assert [event.number for event in events if event] == [1, 2]


def test_a_verdict_is_written_for_its_request(traps: Traps, library: Library) -> None:
    request = library.ask()
    event = traps.next_event(0)
    assert event is not None
    traps.answer(event, -2)
    slot = library.memory.slot(0)
    assert (slot["verdict"], slot["kind"]) == (request, C["ANSWER"])
    assert slot["value"] == (1 << 64) - 2


def test_a_substitute_has_its_arguments_and_no_others(traps: Traps, library: Library) -> None:
    library.ask()
    event = traps.next_event(0)
    assert event is not None
    traps.substitute(event, 24, [9, -1])
    slot = library.memory.slot(0)
    assert slot.six("substitute_arguments") == (9, (1 << 64) - 1, 0, 0, 0, 0)
    with pytest.raises(StateError, match="already"):
        traps.let_through(event)


def test_a_result_is_signed(traps: Traps, library: Library) -> None:
    library.ask(event="RETURNED", result=(1 << 64) - 4)
    event = traps.next_event(0)
    assert event is not None
    assert (event.when, event.result) == (When.RETURNED, -4)


def test_an_event_of_no_known_kind_is_an_engine_error(traps: Traps, library: Library) -> None:
    library.ask()
    library.memory.slot(0)["event"] = 77
    with pytest.raises(EngineError, match="77"):
        traps.next_event(0)


def test_isolated_address_spaces_have_two_pages(traps: Traps, library: Library) -> None:
    library.follow()
    traps.enroll(0x4000, isolated=True)
    assert traps.enrolled() == {0x4000, 0x5000}
    library.follow()
    traps.withdraw(0x4000, isolated=True)
    assert traps.enrolled() == set()


def test_enrolling_twice_takes_one_place(traps: Traps, library: Library) -> None:
    for _ in range(2):
        library.follow()
        traps.enroll(0x4000)
    assert library.memory["header.enrolled_used"] == 1


def test_a_full_table_is_an_error(traps: Traps, library: Library) -> None:
    words = library.memory.words("enrolled")
    for index in range(len(words)):
        words[index] = (index + 1) << 12
    with pytest.raises(StateError, match="no more fit"):
        traps.enroll(0x7777_0000)


@pytest.mark.parametrize("cr3", [0, 0x4001, 1 << 63])
def test_what_is_no_page_table_is_refused(traps: Traps, cr3: int) -> None:
    with pytest.raises(UsageError):
        traps.enroll(cr3)


def test_what_is_not_enrolled_cannot_be_withdrawn(traps: Traps) -> None:
    with pytest.raises(StateError, match="not enrolled"):
        traps.withdraw(0x4000)


def test_trapped_calls_replace_those_before(traps: Traps, library: Library) -> None:
    traps.trap([0, 64])
    traps.trap([511])
    assert list(library.memory.words("trapped")) == [0] * 7 + [1 << 63]
    with pytest.raises(UsageError, match="512"):
        traps.trap([512])


def test_one_peer_at_a_time(fd: int, traps: Traps) -> None:
    with pytest.raises(StateError, match=str(os.getpid())):
        Traps(fd)


def test_a_peer_that_leaves_takes_everything_back(fd: int, library: Library) -> None:
    with Traps(fd, on_loss=OnLoss.EIO) as traps:
        library.follow()
        traps.enroll(0x4000)
        traps.trap([1])
    assert set(library.memory.words("enrolled")) == set(library.memory.words("trapped")) == {0}
    assert library.memory["header.peer_heartbeat_ns"] == 0
    with pytest.raises(StateError, match="closed"):
        traps.trap([1])


def test_the_loss_of_the_library_is_an_error(traps: Traps, library: Library) -> None:
    library.memory["header.library_heartbeat_ns"] = 1
    with pytest.raises(EngineError, match="no sign of life"):
        traps.next_event(10)
    library.memory["header.library_state"] = C["LIBRARY_ENDED"]
    with pytest.raises(EngineError, match="has ended"):
        traps.next_event(10)


def test_a_missing_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    with pytest.raises(HostError, match="gcc"):
        native.library()


def test_a_file_can_ask_for_traps_and_qemu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config('image = "tiny"\ntraps = true', "vm.toml")
    spec = launch_spec(config, BootFiles("/vmlinuz"), ("qemu",))
    assert spec.traps
    monkeypatch.setattr(native, "library", lambda: Path("/x.so"))
    told = qemu_argv(spec, 3, 4, 5, Path("/s"), traps_fd=9)
    assert "/x.so,fd=9" in told
    assert "-plugin" not in qemu_argv(spec, 3, 4, 5, Path("/s"))


def test_traps_take_tcg_and_refuse_kvm() -> None:
    spec = LaunchSpec("t", (), "/vmlinuz", traps=True)
    assert accel.choose(spec, lambda _: None) == "tcg"
    with pytest.raises(UnsupportedError, match="TCG"):
        accel.choose(msgspec.structs.replace(spec, accel="kvm"), lambda _: None)
