"""Any QEMU that already runs, with nothing prepared for us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvisor.addresses import GuestPhysical
from dvisor.api import attach
from dvisor.errors import AttachError, EngineError, GuestMemoryError, UnsupportedError
from dvisor.machine.foreign import ForeignEngine, is_qmp_socket, open_qemu
from tests.vm.plain_qemu import FIRMWARE_ALONE, PlainQemu, Truth, linux, plain_qemu

pytestmark = pytest.mark.vm

MIB, GIB = 1 << 20, 1 << 30
QMP = ("-qmp", "unix:qmp,server=on,wait=off")
SECOND_QMP = ("-qmp", "unix:qmp2,server=on,wait=off")
# Where each machine of a case has RAM beyond the first MiB: (from, to).
RAM = {
    "anonymous pc": (["-M", "pc", "-m", "512M"], [(MIB, 512 * MIB)]),
    "anonymous q35": (["-M", "q35", "-m", "512M"], [(MIB, 512 * MIB)]),
    "split pc": (["-M", "pc", "-m", "4G"], [(MIB, 3 * GIB), (4 * GIB, 5 * GIB)]),
    "split q35": (["-M", "q35", "-m", "4G"], [(MIB, 2 * GIB), (4 * GIB, 6 * GIB)]),
    "lowered q35": (
        ["-M", "q35,max-ram-below-4g=1G", "-m", "4G"],
        [(MIB, GIB), (4 * GIB, 7 * GIB)],
    ),
    "memfd q35": (
        [
            *("-M", "q35,memory-backend=m0", "-m", "4G"),
            *("-object", "memory-backend-memfd,id=m0,size=4G,share=on"),
        ],
        [(MIB, 2 * GIB), (4 * GIB, 6 * GIB)],
    ),
    "private file pc": (["-M", "pc", "-m", "512M", "-mem-path", "."], [(MIB, 512 * MIB)]),
    "shared file q35": (
        [
            *("-M", "q35,memory-backend=m0", "-m", "512M"),
            *("-object", "memory-backend-file,id=m0,size=512M,share=on,mem-path=ram"),
        ],
        [(MIB, 512 * MIB)],
    ),
}
MAPPED = {"memfd q35", "shared file q35"}


def planted(directory: Path, runs: list[tuple[int, int]]) -> tuple[list[str], dict[int, bytes]]:
    """Options that put known bytes near both ends of each run of RAM, and these bytes."""
    options, marks = [], {}
    for i, (start, end) in enumerate(runs):
        for gpa in (start + 33 * MIB + 0xFF0, end - 3 * MIB):
            mark = f"planted {i} at {gpa:#x} ".encode() * 300
            (directory / f"mark-{gpa:x}").write_bytes(mark)
            options += [
                "-device",
                f"loader,file=mark-{gpa:x},addr={gpa:#x},force-raw=on",
            ]
            marks[gpa] = mark
    return options, marks


@contextlib.contextmanager
def opened(target: str | int | Path, timeout_s: float = 2.0) -> Iterator[ForeignEngine]:
    engine = open_qemu(target, timeout_s)
    try:
        yield engine
    finally:
        engine.close()


def wait_until(what: str, condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


@pytest.mark.parametrize("case", RAM)
def test_ram_is_what_qemu_itself_saves(case: str, tmp_path: Path) -> None:
    """By QMP, and by the process alone while somebody else holds the QMP socket."""
    options, runs = RAM[case]
    extra, marks = planted(tmp_path, runs)
    with plain_qemu(tmp_path, *FIRMWARE_ALONE, *options, *extra, *QMP) as qemu:
        with contextlib.closing(Truth(tmp_path / "qmp")) as truth:
            truth.wait_for_firmware()
            truth.do("stop")
            samples = [(0, 0xA0000), (0xC0000, 4 * MIB), (0xF0000, 0x10000)]
            samples += [(start + 32 * MIB, 4 * MIB) for start, _ in runs]
            samples += [(end - 8 * MIB, 8 * MIB) for _, end in runs]
            saved = {each: truth.memory(*each, tmp_path / "saved") for each in samples}
            with opened(qemu.pid, timeout_s=0.2) as engine:
                assert "RAM alone" in engine.description
                check_ram(engine, runs, saved, marks, mapped=case in MAPPED)
        with opened(tmp_path / "qmp") as engine:
            assert "by QMP" in engine.description
            check_ram(engine, runs, saved, marks, mapped=case in MAPPED)


def check_ram(
    engine: ForeignEngine,
    runs: list[tuple[int, int]],
    saved: dict[tuple[int, int], bytes],
    marks: dict[int, bytes],
    mapped: bool,
) -> None:
    (first_start, first_end), *others = runs
    assert first_start == MIB
    expected = [(0, 0xA0000), (0xC0000, first_end), *others]
    assert [(block.gpa, block.end) for block in engine.ram()] == expected
    for (gpa, size), data in saved.items():
        assert engine.read(GuestPhysical(gpa), size) == data, f"at {gpa:#x}"
    populated = list(engine.populated())
    assert populated == sorted(populated)
    for gpa, mark in marks.items():
        assert engine.read(GuestPhysical(gpa), len(mark)) == mark
        assert any(start <= gpa and gpa + len(mark) <= start + n for start, n in populated)
    assert sum(size for _, size in populated) < 128 * MIB, "holes are left out"
    for block in engine.ram():
        assert (block.buffer is not None) == mapped
        if block.buffer is not None:
            at = block.offset
            assert bytes(block.buffer[at : at + 4096]) == engine.read(block.gpa, 4096)
    for gpa in (0xA0000, 0xBFFFF, first_end, max(end for _, end in runs)):
        with pytest.raises(GuestMemoryError):
            engine.read(GuestPhysical(gpa), 1)


def test_ram_of_two_numa_backends_is_told_by_qmp(tmp_path: Path) -> None:
    extra, marks = planted(tmp_path, [(MIB, 256 * MIB), (256 * MIB, 512 * MIB)])
    options = [
        *("-M", "q35", "-m", "512M", "-smp", "2"),
        *("-object", "memory-backend-memfd,id=a,size=256M,share=on"),
        *("-object", "memory-backend-ram,id=b,size=256M"),
        *("-numa", "node,memdev=a", "-numa", "node,memdev=b"),
    ]
    with (
        plain_qemu(tmp_path, *FIRMWARE_ALONE, *options, *extra, *QMP) as qemu,
        opened(qemu.pid) as engine,
    ):
        assert [(b.gpa, b.end) for b in engine.ram()][-1] == (256 * MIB, 512 * MIB)
        for gpa, mark in marks.items():
            assert engine.read(GuestPhysical(gpa), len(mark)) == mark
        across = GuestPhysical(256 * MIB - 8)
        assert engine.read(across, 16) == engine.read(across, 8) + bytes(8)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainQemu]:
    """A real Linux in a QEMU without any monitor."""
    with plain_qemu(
        tmp_path_factory.mktemp("silent"), "-m", "512M", *linux(), ready="dvisor: ready"
    ) as qemu:
        yield qemu


def test_without_a_monitor_there_are_no_registers_and_no_resets(silent: PlainQemu) -> None:
    with opened(silent.pid) as engine:
        assert not engine.knows_resets
        assert engine.epoch() == engine.epoch()
        with pytest.raises(UnsupportedError, match="names no monitor"):
            engine.registers()


def test_without_a_monitor_the_kernel_is_in_the_ram(silent: PlainQemu) -> None:
    with opened(silent.pid) as engine:
        data = b"".join(engine.read(gpa, size) for gpa, size in engine.populated())
    assert b"Linux version 6.12" in data


def test_without_a_monitor_the_guests_processes_are_seen(silent: PlainQemu) -> None:
    with attach(silent.pid) as vm, vm.stopped():
        names = {task.pid: task.comm for task in vm.guest.tasks()}
    assert names[1] == "init"
    assert names[2] == "kthreadd"


def test_without_a_monitor_the_process_is_stopped_and_continued(silent: PlainQemu) -> None:
    with opened(silent.pid) as engine:
        with engine.stopped():
            with engine.stopped():
                assert silent.state() == "T"
            assert silent.state() == "T"
        wait_until("QEMU runs again", lambda: silent.state() != "T")


def test_process_that_was_stopped_before_stays_stopped(silent: PlainQemu) -> None:
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        wait_until("stopped", lambda: silent.state() == "T")
        with opened(silent.pid) as engine:
            with engine.stopped():
                assert silent.state() == "T"
            assert silent.state() == "T"
    finally:
        os.kill(silent.pid, signal.SIGCONT)


DIES_WHILE_STOPPED = """
import os, signal, sys
from dvisor.machine.foreign import open_qemu
engine = open_qemu(sys.argv[1])
with engine.stopped():
    print("stopped", flush=True)
    sys.stdin.read()
"""


def die_while_stopped(target: str | int | Path) -> Iterator[None]:
    """Stop the VM from a process of its own; after the yield that process is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", DIES_WHILE_STOPPED, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "stopped\n"
            yield
        finally:
            process.kill()


def test_killed_dvisor_leaves_no_process_stopped(silent: PlainQemu) -> None:
    with contextlib.contextmanager(die_while_stopped)(silent.pid):
        assert silent.state() == "T"
    wait_until("QEMU runs again", lambda: silent.state() != "T")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainQemu]:
    """A real Linux with two QMP sockets, one for the test, and a human monitor."""
    options = ["-M", "q35", "-m", "512M", "-smp", "2", *linux(), *QMP, *SECOND_QMP]
    options += ["-monitor", "unix:hmp,server=on,wait=off"]
    directory = tmp_path_factory.mktemp("watched")
    with plain_qemu(directory, *options, ready="dvisor: ready") as qemu:
        yield qemu


@pytest.fixture
def truth(watched: PlainQemu) -> Iterator[Truth]:
    truth = Truth(watched.directory / "qmp2")
    yield truth
    truth.close()


def test_registers_are_those_of_a_running_linux(watched: PlainQemu) -> None:
    with opened(watched.directory / "qmp") as engine:
        assert is_qmp_socket(watched.directory / "qmp")
        with engine.stopped():
            cpus = engine.registers()
        assert [cpu.index for cpu in cpus] == [0, 1]
        for cpu in cpus:
            assert cpu.paging
            engine.read(GuestPhysical(cpu.cr3 & ~0xFFF), 4096)


def test_stop_by_monitor_nests_and_restores(watched: PlainQemu, truth: Truth) -> None:
    with opened(watched.directory / "qmp") as engine:
        before = engine.epoch()
        with engine.stopped():
            with engine.stopped():
                assert not truth.running()
            assert not truth.running()
        assert truth.running()
        assert engine.epoch() == before, "a stop of ours is no reset"


def test_vm_that_was_paused_before_stays_paused(watched: PlainQemu, truth: Truth) -> None:
    truth.do("stop")
    try:
        with opened(watched.directory / "qmp") as engine:
            with engine.stopped():
                pass
            assert not truth.running()
    finally:
        truth.do("cont")


def test_killed_dvisor_leaves_no_vm_stopped(watched: PlainQemu, truth: Truth) -> None:
    with contextlib.contextmanager(die_while_stopped)(watched.directory / "qmp"):
        assert not truth.running()
    wait_until("the VM runs again", truth.running)


def test_second_client_of_a_qmp_socket_is_told_so(watched: PlainQemu) -> None:
    path = watched.directory / "qmp"
    with opened(path):
        with pytest.raises(AttachError, match="one client at a time") as caught:
            open_qemu(path, timeout_s=0.2)
        assert "end the other client" in caught.value.todo
    with opened(path):
        pass  # the failed attempt has not kept its place in the queue


def test_human_monitor_will_do(watched: PlainQemu, truth: Truth) -> None:
    with opened(watched.directory / "qmp"), opened(watched.pid, timeout_s=0.2) as engine:
        assert "by HMP" in engine.description
        assert not engine.knows_resets
        assert len(engine.registers()) == 2
        with engine.stopped():
            assert not truth.running()
        assert truth.running()


def test_reset_and_the_stops_of_others_change_the_epoch(watched: PlainQemu, truth: Truth) -> None:
    with opened(watched.directory / "qmp") as engine:
        assert engine.knows_resets
        first = engine.epoch()
        assert engine.epoch() == first
        truth.do("stop")
        truth.do("cont")
        second = engine.epoch()
        assert second != first
        truth.do("system_reset")
        wait_until("epoch changes", lambda: engine.epoch() != second)


@pytest.mark.parametrize("by_monitor", [True, False], ids=["qmp", "ram alone"])
def test_end_of_the_process_is_an_engine_error(by_monitor: bool, tmp_path: Path) -> None:
    options = [*FIRMWARE_ALONE, "-m", "64M", *(QMP if by_monitor else ())]
    with plain_qemu(tmp_path, *options) as qemu, opened(qemu.pid) as engine:
        engine.epoch()
        os.kill(qemu.pid, signal.SIGKILL)
        os.waitid(os.P_PID, qemu.pid, os.WEXITED | os.WNOWAIT)
        for use in (
            engine.epoch,
            engine.registers,
            lambda: engine.read(GuestPhysical(0), 8),
            lambda: list(engine.populated()),
            lambda: engine.stopped().__enter__(),
        ):
            with pytest.raises(EngineError, match="the QEMU process ended"):
                use()


def test_socket_that_another_qemu_has_taken_is_not_used(tmp_path: Path) -> None:
    """Else the memory of one VM would be read by the layout of the other."""
    options = [*FIRMWARE_ALONE, "-m", "64M", *QMP]
    with plain_qemu(tmp_path, *options) as first:
        Truth(tmp_path / "qmp").close()
        (tmp_path / "qmp").unlink()
        with plain_qemu(tmp_path, *options), opened(first.pid) as engine:
            with pytest.raises(UnsupportedError, match="another process listens"):
                engine.registers()
            assert pid_behind(tmp_path / "qmp") != first.pid


def pid_behind(path: Path) -> int:
    with opened(path) as engine:
        return engine.pid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a mount namespace")
def test_qmp_socket_of_another_mount_namespace_is_reached(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    script = f'mount -t tmpfs none {hidden} && exec "$@"'
    with plain_qemu(
        tmp_path,
        *FIRMWARE_ALONE,
        *("-m", "64M", "-qmp", f"unix:{hidden}/qmp,server=on,wait=off"),
        wrapper=["unshare", "--mount", "sh", "-c", script, "sh"],
    ) as qemu:
        assert list(hidden.iterdir()) == []
        with opened(qemu.pid) as engine:
            assert "by QMP" in engine.description


def test_what_is_no_qemu_is_refused_with_the_reason() -> None:
    with pytest.raises(AttachError, match="does not run qemu-system-x86_64"):
        open_qemu(os.getpid())
    with pytest.raises(AttachError, match="there is no process"):
        open_qemu(1 << 22)


def test_socket_of_nobody_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(AttachError, match="No such file"):
        open_qemu(tmp_path / "none")
    with plain_qemu(tmp_path, *FIRMWARE_ALONE, "-m", "64M", *QMP):
        Truth(tmp_path / "qmp").close()
    with pytest.raises(AttachError, match="its QEMU has ended"):
        open_qemu(tmp_path / "qmp")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_user_is_told_what_to_do(silent: PlainQemu) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            open_qemu(silent.pid)
            os.write(writing, b"opened")
        except AttachError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    assert "Permission denied; its owner is root, we are uid 65534" in message
    assert "to do: run dvisor as root" in message
