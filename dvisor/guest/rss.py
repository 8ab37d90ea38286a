"""Resident memory of processes."""

from __future__ import annotations

from dvisor.addresses import MASK64, PAGE_SIZE
from dvisor.guest.kernel import Kernel

_RESIDENT = (("MM_FILEPAGES", 0), ("MM_ANONPAGES", 1), ("MM_SHMEMPAGES", 3))
_TOGETHER = 64
"""Bytes: per-CPU parts of one mm stand next to each other since 6.6 (14ef95be6f55)."""


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
        """Bytes. A page that is being counted on a CPU at this moment may be missing (before 6.2:
        up to 64 on each thread, TASK_RSS_EVENTS_THRESH)."""
        base = mm + self._counters
        if self._per_cpu:
            counters = [self._counter.read(base + member * self._size) for member in self._members]
            sums = self._sums(counters)
        else:
            u64 = self.kernel.memory.u64
            sums = [_signed(u64(base + 8 * member), 64) for member in self._members]
        return sum(max(pages, 0) for pages in sums) * PAGE_SIZE

    def _sums(self, counters: list[tuple[int, int]]) -> list[int]:
        """percpu_counter_sum() of each: its count, and what CPUs have not yet added to that."""
        sums = [count for count, _ in counters]
        places = [place for _, place in counters]
        first, last = min(places), max(places)
        read = self.kernel.memory.read
        for cpu in self._cpus:
            if last - first < _TOGETHER:
                raw = read(first + cpu & MASK64, last - first + 4)
                parts = [raw[place - first :][:4] for place in places]
            else:
                parts = [read(place + cpu & MASK64, 4) for place in places]
            for i, part in enumerate(parts):
                sums[i] += int.from_bytes(part, "little", signed=True)
        return sums


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
