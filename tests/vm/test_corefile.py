"""Core files of a real guest: QEMU's own read back, and ours opened by the tools people use."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from dvisor.addresses import GuestPhysical, GuestVirtual
from dvisor.machine.corefile import is_core, open_core
from dvisor.machine.corefile_write import VirtualMapping, write_core
from dvisor.machine.engine import Engine, RamBlock
from dvisor.machine.foreign import open_qemu
from tests.vm.plain_qemu import PlainQemu, Truth, linux, plain_qemu

pytestmark = pytest.mark.vm

MIB = 1 << 20
KERNEL_TEXT = 0xFFFFFFFF80000000  # __START_KERNEL_map, arch/x86/include/asm/page_64_types.h


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainQemu]:
    """A Linux with RAM on both sides of the PCI hole, paused; its memory stays as it is."""
    options = ["-M", "q35,max-ram-below-4g=256M", "-m", "512M", "-smp", "2", *linux()]
    options += ["-qmp", "unix:qmp,server=on,wait=off", "-qmp", "unix:qmp2,server=on,wait=off"]
    directory = tmp_path_factory.mktemp("machine")
    with plain_qemu(directory, *options, ready="dvisor: ready") as qemu:
        with contextlib.closing(Truth(directory / "qmp2")) as truth:
            truth.do("stop")
        yield qemu


@pytest.fixture(scope="module")
def live(machine: PlainQemu) -> Iterator[Engine]:
    with contextlib.closing(open_qemu(machine.directory / "qmp")) as engine:
        yield engine


@pytest.fixture(scope="module")
def vmcoreinfo(live: Engine) -> bytes:
    for gpa, size in live.populated():
        data = live.read(gpa, size)
        for at in range(0, size, 4096):
            if data[at : at + 10] == b"OSRELEASE=":
                return data[at : at + 4096].partition(b"\0")[0]
    raise AssertionError("no VMCOREINFO in the guest")


def value(vmcoreinfo: bytes, key: str, base: int) -> int:
    (line,) = (x for x in vmcoreinfo.splitlines() if x.startswith(f"{key}=".encode()))
    return int(line.partition(b"=")[2], base)


def same_memory(blocks: Iterable[RamBlock], one: Engine, other: Engine) -> None:
    """What both hold in these blocks is the same, byte for byte."""
    for block in blocks:
        for at in range(block.gpa, block.end, 4 * MIB):
            length = min(4 * MIB, block.end - at)
            same = one.read(GuestPhysical(at), length) == other.read(GuestPhysical(at), length)
            assert same, f"differs in {length} bytes from {at:#x}"


@pytest.mark.parametrize("paging", [False, True], ids=["paging off", "paging on"])
def test_qemus_own_dump_equals_the_live_memory(
    paging: bool, machine: PlainQemu, live: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    with contextlib.closing(Truth(machine.directory / "qmp2")) as truth:
        truth.do("dump-guest-memory", paging=paging, protocol=f"file:{path}")
    assert is_core(path)
    with contextlib.closing(open_core(path)) as core:
        if paging:  # it holds what some page table maps: not, for one, the firmware's tables
            held = [block for block in core.ram() if block.gpa in (0, 4 << 30)]
            assert sum(block.size for block in held) > 500 * MIB
            same_memory(held, live, core)
        else:
            same_memory(live.ram(), live, core)
        for dumped, seen in zip(core.registers(), live.registers(), strict=True):
            for name in (
                "cr0",
                "cr3",
                "cr4",
                "idt_base",
                "gs_base",
                "kernel_gs_base",
                "rip",
                "rsp",
            ):
                assert getattr(dumped, name) == getattr(seen, name), name
            assert dumped.paging
            assert dumped.levels == seen.levels


@pytest.fixture(scope="module")
def written(
    live: Engine, vmcoreinfo: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("written") / "core"
    write_core(live, path, vmcoreinfo=vmcoreinfo, mappings=[kernel_text(vmcoreinfo)])
    yield path
    path.unlink()


def kernel_text(vmcoreinfo: bytes) -> VirtualMapping:
    start = value(vmcoreinfo, "SYMBOL(_stext)", 16)
    gpa = start - KERNEL_TEXT + value(vmcoreinfo, "NUMBER(phys_base)", 10)
    return VirtualMapping(GuestVirtual(start), GuestPhysical(gpa), 8 * MIB)


def test_written_core_equals_the_live_machine(
    live: Engine, written: Path, vmcoreinfo: bytes
) -> None:
    with contextlib.closing(open_core(written)) as core:
        same_memory(live.ram(), live, core)
        assert core.registers() == live.registers()
        assert core.vmcoreinfo == vmcoreinfo.rstrip(b"\0")
        assert [(b.gpa, b.size) for b in core.ram()] == [(b.gpa, b.size) for b in live.ram()]
    status = written.stat()
    assert status.st_blocks * 512 < status.st_size * 3 // 4, "holes stay holes"


def test_drgn_opens_it(live: Engine, written: Path, vmcoreinfo: bytes) -> None:
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    program.set_core_dump(str(written))
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    text = kernel_text(vmcoreinfo)
    assert program.read(text.gva, 4096) == live.read(text.gpa, 4096)
    assert program.read(5 * MIB, 64, physical=True) == live.read(GuestPhysical(5 * MIB), 64)
    # Through the guest's page tables, where no segment of the file tells the virtual address.
    percpu = live.registers()[0].gs_base or live.registers()[0].kernel_gs_base
    assert len(program.read(percpu, 4096)) == 4096


@pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
def test_gdb_opens_it(live: Engine, written: Path, vmcoreinfo: bytes) -> None:
    text = kernel_text(vmcoreinfo)
    command = ["gdb", "-nx", "-q", "-batch", "-ex", f"core-file {written}"]
    command += ["-ex", "info threads", "-ex", f"x/2xg {text.gva:#x}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for cpu in live.registers():
        assert f"LWP {cpu.index + 1}" in output
        assert f"{cpu.rip:#x}"[2:] in output
    assert f"{int.from_bytes(live.read(text.gpa, 8), 'little'):016x}" in output


def test_volatility_opens_it(written: Path) -> None:
    pytest.importorskip("volatility3")
    vol = Path(sys.executable).parent / "vol"
    result = subprocess.run(
        [vol, "-q", "-f", str(written), "banners.Banners"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Linux version 6.12" in result.stdout
