"""What QEMU prints of a vCPU, captured from QEMU 11.1.3 in each mode, becomes numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvisor.errors import EngineError
from dvisor.machine.registers import parse_registers

DATA = Path(__file__).parent / "data"


def captured(vcpus: int, mode: str) -> str:
    return (DATA / f"registers-{vcpus}-{mode}.txt").read_text()


def test_long_mode_registers_are_64_bit() -> None:
    (cpu,) = parse_registers(captured(1, "long"))
    assert (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) == (0x80050033, 0x47DC000, 0x1020, 0x500)
    assert (cpu.rip, cpu.rsp, cpu.rbp, cpu.rflags) == (0x1002AA, 0x477C000, 0x1000000, 0x10406)
    assert (cpu.idt_base, cpu.idt_limit) == (0xC24050, 0x1FF)
    assert cpu.paging
    assert cpu.levels == 5


def test_protected_mode_registers_have_32_bit_names() -> None:
    (cpu,) = parse_registers(captured(1, "prot"))
    assert (cpu.rip, cpu.rsp, cpu.idt_base, cpu.cr0) == (0xECE47, 0x6FD8, 0xF61DE, 0x11)
    assert not cpu.paging


def test_real_mode_is_not_paging() -> None:
    (cpu,) = parse_registers(captured(1, "real"))
    assert not cpu.cr0 & 1
    assert not cpu.paging


@pytest.mark.parametrize("mode", ["real", "prot", "long"])
def test_each_vcpu_has_its_own_registers(mode: str) -> None:
    first, second = parse_registers(captured(2, mode))
    assert (first.index, second.index) == (0, 1)
    assert first.rip != second.rip
    assert second.halted == (mode == "real")


def test_gs_base_of_a_running_kernel_is_read() -> None:
    cpus = parse_registers(captured(2, "long"))
    assert all(cpu.kernel_gs_base == 0 for cpu in cpus)
    text = captured(1, "long").replace("GS =0000 0000000000000000", "GS =0000 ffff893ddf400000")
    assert parse_registers(text)[0].gs_base == 0xFFFF893DDF400000


def test_carriage_returns_do_not_matter() -> None:
    text = captured(2, "long")
    assert parse_registers(text.replace("\n", "\r\n")) == parse_registers(text)


def test_an_answer_without_vcpus_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="names 0 vCPUs"):
        parse_registers("unknown command: 'info registers'")


def test_a_missing_register_is_named() -> None:
    with pytest.raises(EngineError, match="no EFER for vCPU 0"):
        parse_registers(captured(1, "long").replace("EFER=", "REFE="))
