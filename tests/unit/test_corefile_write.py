"""What is written as a core file comes back, and nothing half written stays."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from dvisor.addresses import GuestPhysical, GuestVirtual
from dvisor.errors import EngineError, HostError, UnsupportedError
from dvisor.machine import corefile_write
from dvisor.machine.corefile import open_core
from dvisor.machine.corefile_formats import PROGRAM_HEADER
from dvisor.machine.corefile_write import VirtualMapping, write_core
from dvisor.machine.engine import CpuRegisters, RamBlock
from dvisor.machine.layout import RamMap

MIB = 1 << 20


def registers(index: int) -> CpuRegisters:
    """Each number another one, so that none can take another's place."""
    names = list(CpuRegisters.__dataclass_fields__)[1:-2]
    values = {name: (index + 1) << 32 | at for at, name in enumerate(names)}
    values["idt_limit"] = 0xFFF
    return CpuRegisters(index=index, **values, cpl=3 * (index & 1), halted=bool(index & 1))


class FakeEngine:
    """Two blocks of memory, of which some is known to be empty."""

    live = True
    knows_resets = True
    description = "made for the test"

    def __init__(self) -> None:
        self.memory = {0: bytearray(MIB), 16 * MIB: bytearray(4 * MIB + 4096)}
        self.memory[0][0x1000:0x1004] = b"low!"
        self.memory[16 * MIB][3 * MIB : 3 * MIB + 5] = b"high!"
        self.memory[16 * MIB][-2:] = b"$$"
        self.cpus: tuple[CpuRegisters, ...] = (registers(0), registers(1))
        self.stops = 0
        self._map = RamMap(
            [
                RamBlock(GuestPhysical(gpa), len(data), memoryview(data))
                for gpa, data in self.memory.items()
            ],
            lambda _, __, size: bytes(size),
        )

    def ram(self) -> tuple[RamBlock, ...]:
        return self._map.blocks

    def read(self, gpa: GuestPhysical, size: int) -> bytes:
        assert self.stops, "read while the guest runs"
        return self._map.read(gpa, size)

    def populated(self) -> Iterator[tuple[GuestPhysical, int]]:
        yield GuestPhysical(0x1000), 0x1000
        yield GuestPhysical(18 * MIB), 2 * MIB + 4096

    def registers(self) -> tuple[CpuRegisters, ...]:
        if not self.cpus:
            raise UnsupportedError("none")
        return self.cpus

    def stopped(self) -> AbstractContextManager[None]:
        @contextmanager
        def hold() -> Iterator[None]:
            self.stops += 1
            yield

        return hold()

    def epoch(self) -> int:
        return 0

    def close(self) -> None:
        pass


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def test_memory_registers_and_vmcoreinfo_come_back(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "core"
    write_core(engine, path, vmcoreinfo=b"OSRELEASE=6.12\n")
    back = open_core(path)
    assert [(b.gpa, b.size) for b in back.ram()] == [(b.gpa, b.size) for b in engine.ram()]
    for gpa, data in engine.memory.items():
        assert back.read(GuestPhysical(gpa), len(data)) == data
    assert back.registers() == engine.cpus
    assert back.vmcoreinfo == b"OSRELEASE=6.12\n"


def test_only_the_owner_may_read_it_and_holes_stay_holes(
    engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "core"
    path.write_bytes(b"an old one")
    path.chmod(0o644)
    write_core(engine, path)
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_blocks * 512 < MIB < status.st_size
    assert [p.name for p in tmp_path.iterdir()] == ["core"]


def test_engine_without_registers_can_be_written(engine: FakeEngine, tmp_path: Path) -> None:
    engine.cpus = ()
    write_core(engine, tmp_path / "core")
    with pytest.raises(UnsupportedError):
        open_core(tmp_path / "core").registers()


def test_virtual_mappings_lead_to_the_same_bytes(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "core"
    text = VirtualMapping(GuestVirtual(0xFFFFFFFF81000000), GuestPhysical(19 * MIB), 64 * MIB)
    write_core(engine, path, mappings=[text])
    raw = path.read_bytes()
    (count,) = memoryview(raw)[56:58].cast("H")
    headers = [PROGRAM_HEADER.unpack_from(raw, 64 + 56 * i) for i in range(count)]
    (mapped,) = [h for h in headers if h[3] == text.gva]
    assert (mapped[4], mapped[5]) == (19 * MIB, MIB + 4096)
    assert raw[mapped[2] : mapped[2] + 5] == b"high!"


def test_progress_ends_at_the_total(engine: FakeEngine, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_core(engine, tmp_path / "core", progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (2 * MIB + 0x2000, 2 * MIB + 0x2000)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_full_disk_leaves_nothing(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(corefile_write.os, "pwrite", full)
    with pytest.raises(HostError, match="No space left"):
        write_core(engine, tmp_path / "core")
    assert list(tmp_path.iterdir()) == []


def test_failure_of_the_engine_leaves_the_old_file(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(b"old")

    def gone(gpa: GuestPhysical, size: int) -> bytes:
        raise EngineError("the QEMU process ended")

    engine.read = gone  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="ended"):
        write_core(engine, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["core"]


def test_missing_directory_is_a_host_error(engine: FakeEngine, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot write"):
        write_core(engine, tmp_path / "none" / "core")
