"""Resident memory of processes."""

from __future__ import annotations

from dvisor.addresses import PAGE_SIZE
from dvisor.guest.kernel import Kernel

_RESIDENT = (("MM_FILEPAGES", 0), ("MM_ANONPAGES", 1), ("MM_SHMEMPAGES", 3))


class RssReader:
    """Adds up an mm_struct's counters of resident pages."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        members = [(kernel.constant(name), usual) for name, usual in _RESIDENT]
        self._members = [usual if number is None else number for number, usual in members]
        # A percpu_counter each since 6.2 (f1a7941243c1), an atomic_long_t each before.
        self._per_cpu = kernel.place("mm_struct", "rss_stat.count") is None
        self._counters = kernel.offset("mm_struct", "rss_stat.count|rss_stat")
        if self._per_cpu:
            self._size = kernel.size_of("percpu_counter")
            self._counter = kernel.record("percpu_counter", "count", "counters")
            self._cpus = [kernel.per_cpu(0, cpu) for cpu in kernel.cpus()]

    def read(self, mm: int) -> int:
        """Bytes. A page that is being counted on a CPU at this moment may be missing (6.1: up to
        64 on each thread, TASK_RSS_EVENTS_THRESH)."""
        base = mm + self._counters
        pages = 0
        for member in self._members:
            if self._per_cpu:
                pages += max(self._sum(base + member * self._size), 0)
            else:
                pages += max(_signed(self.kernel.memory.u64(base + 8 * member), 64), 0)
        return pages * PAGE_SIZE

    def _sum(self, counter: int) -> int:
        """percpu_counter_sum(): the shared part and what each CPU has not yet added to it."""
        count, counters = self._counter.read(counter)
        u32 = self.kernel.memory.u32
        mask = (1 << 64) - 1
        parts = (_signed(u32(counters + offset & mask), 32) for offset in self._cpus)
        return int(count) + (sum(parts) if counters else 0)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
