"""KVM is chosen on evidence of a booted kernel only; here a shell script says what QEMU would."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dvisor.errors import HostError
from dvisor.machine import accel
from dvisor.machine.spec import LaunchSpec

BOOTED = "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"


@pytest.fixture
def kvm_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVISOR_CACHE_DIR", str(tmp_path / "cache"))
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "_KVM", device)
    return device


def spec(tmp_path: Path, script: str) -> LaunchSpec:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"a kernel")
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\n{script}\n")
    qemu.chmod(0o755)
    return LaunchSpec(name="a", qemu_argv_prefix=(str(qemu),), vmlinuz=str(kernel))


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


def test_a_kernel_that_booted_means_kvm_and_is_remembered(tmp_path: Path, kvm_device: Path) -> None:
    vm = spec(tmp_path, f"echo '{BOOTED}'; sleep 600")
    said: list[str] = []
    assert [accel.choose(vm, said.append) for _ in range(2)] == ["kvm", "kvm"]
    assert runs(tmp_path) == 1


def test_an_internal_error_means_tcg_and_says_so(tmp_path: Path, kvm_device: Path) -> None:
    vm = spec(tmp_path, "echo 'KVM internal error. Suberror: 1' >&2; sleep 600")
    said: list[str] = []
    assert accel.choose(vm, said.append) == "tcg"
    assert "KVM internal error. Suberror: 1" in said[-1]


def test_a_qemu_that_ends_means_tcg(tmp_path: Path, kvm_device: Path) -> None:
    said: list[str] = []
    assert accel.choose(spec(tmp_path, "echo no >&2; exit 1"), said.append) == "tcg"
    assert "'no'" in said[-1]


def test_silence_is_no_evidence(tmp_path: Path, kvm_device: Path) -> None:
    result = accel.probe(spec(tmp_path, "exec sleep 600"), timeout_s=0.3)
    assert not result.usable
    assert result.seen == "no sign of a boot within 0.3 s, and nothing was printed"


def test_another_kernel_is_tried_anew(tmp_path: Path, kvm_device: Path) -> None:
    vm = spec(tmp_path, f"echo '{BOOTED}'")
    accel.choose(vm, print)
    Path(vm.vmlinuz).write_bytes(b"another kernel")
    accel.choose(vm, print)
    assert runs(tmp_path) == 2


def test_no_device_means_tcg_without_a_try(tmp_path: Path, kvm_device: Path) -> None:
    kvm_device.unlink()
    said: list[str] = []
    assert accel.choose(spec(tmp_path, ""), said.append) == "tcg"
    assert "there is no" in said[0]
    assert not (tmp_path / "runs").exists()


def test_kvm_on_demand_needs_the_device(tmp_path: Path, kvm_device: Path) -> None:
    vm = msgspec.structs.replace(spec(tmp_path, ""), accel="kvm")
    assert accel.choose(vm, print) == "kvm"
    kvm_device.unlink()
    with pytest.raises(HostError, match='accel = "kvm", but there is no'):
        accel.choose(vm, print)
