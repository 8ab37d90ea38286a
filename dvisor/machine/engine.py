"""The one protocol between a machine and everything that looks into it.

An *engine* gives a guest's physical memory and its vCPUs' registers; it knows nothing of Linux.
Three families implement it: a VM that dvisor started, any QEMU that already runs, and a file.
``dvisor.guest`` sees a machine only through this page.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from mmap import mmap
from typing import Protocol, runtime_checkable

from dvisor.addresses import GuestPhysical


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One run of guest RAM that is contiguous both in guest physical space and in its buffer.

    ``buffer[offset + (gpa - self.gpa)]`` is the byte at ``gpa``. ``buffer`` is None where the RAM
    cannot be mapped (another process's anonymous memory): then only ``Engine.read`` reaches it.
    """

    gpa: GuestPhysical
    size: int
    buffer: mmap | memoryview | None = None
    offset: int = 0

    @property
    def end(self) -> int:
        return self.gpa + self.size


@dataclass(frozen=True, slots=True)
class CpuRegisters:
    """The x86-64 registers of one vCPU that introspection needs; unsigned 64-bit numbers."""

    index: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    idt_base: int
    idt_limit: int
    fs_base: int
    gs_base: int
    kernel_gs_base: int
    rip: int
    rsp: int
    rbp: int
    rflags: int
    cpl: int
    halted: bool = False

    @property
    def paging(self) -> bool:
        """CR0.PG and EFER.LMA: the vCPU runs in long mode with paging on."""
        return bool(self.cr0 >> 31 & 1) and bool(self.efer >> 10 & 1)

    @property
    def levels(self) -> int:
        """4 or 5 levels of page tables, by CR4.LA57 (Intel SDM vol. 3A, 4.5)."""
        return 5 if self.cr4 >> 12 & 1 else 4


@runtime_checkable
class Engine(Protocol):
    """Memory and registers of one guest. Reading never changes or stops the guest by itself."""

    @property
    def description(self) -> str:
        """One line for people: what is read, and how."""
        ...

    @property
    def live(self) -> bool:
        """False where the memory can never change (a core file)."""
        ...

    def ram(self) -> tuple[RamBlock, ...]:
        """All RAM, sorted by gpa, without overlap."""
        ...

    def read(self, gpa: GuestPhysical, size: int) -> bytes:
        """Exactly ``size`` bytes at ``gpa``; GuestMemoryError when any of them is not RAM."""
        ...

    def populated(self) -> Iterator[tuple[GuestPhysical, int]]:
        """Runs (gpa, size) of RAM that hold data, by ascending gpa: what a search must look at.

        May include empty pages, never leaves out a page that was written. Reading a hole of a
        sparse RAM file through its mapping would allocate it: searches stay inside these runs.
        """
        ...

    def registers(self) -> tuple[CpuRegisters, ...]:
        """One entry a vCPU, by index; UnsupportedError where the engine has none."""
        ...

    def stopped(self) -> AbstractContextManager[None]:
        """Within it no vCPU runs. Nests; restores the state that was there before."""
        ...

    def epoch(self) -> int:
        """Changes at every guest reset (and replacement of the VMM) that the engine knows of.

        Cheap enough to ask before and after each view. An engine that cannot learn of resets
        returns a constant and says so in ``knows_resets``.
        """
        ...

    @property
    def knows_resets(self) -> bool:
        """Whether ``epoch`` can be relied on."""
        ...

    def close(self) -> None:
        """Give back all descriptors and mappings. Safe to call twice."""
        ...
