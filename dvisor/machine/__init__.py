"""The machine: the only place that knows QEMU (launch, attach, QMP, memory, vCPUs)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvisor.machine.inventory import MachineInfo
    from dvisor.machine.vm_engine import VmEngine


def machines() -> list[MachineInfo]:
    """All VMs of dvisor's that live on this host, by name."""
    from dvisor.machine.inventory import machines as living

    return living()


def open_engine(name: str) -> VmEngine:
    """The memory and registers of the VM ``name``; NotFoundError when no such VM lives."""
    from dvisor.machine.vm_engine import VmEngine

    return VmEngine(name)
