"""Timing a piece of work, and what the machine does meanwhile."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec


class Row(msgspec.Struct):
    """One line of a table: how long ``what`` took ``who``, in milliseconds."""

    what: str
    who: str
    median_ms: float
    min_ms: float
    n: int
    items: int | None
    """Entries of the answer, so that it is seen that both did the same work."""
    ratio: float | None = None
    """Median over dvisor's median for the same work."""


class Machine(msgspec.Struct):
    """Where and under what noise the figures were taken."""

    cpu: str
    cpus: int
    python: str
    load_before: float
    load_after: float
    noise: str


def timed(what: str, who: str, n: int, work: Callable[[], object], discard: int = 1) -> Row:
    """Do ``work`` ``n`` times, after ``discard`` times that do not count."""
    print(f"measuring {what} by {who}", file=sys.stderr)
    times: list[float] = []
    answer: object = None
    gc.collect()
    gc.freeze()  # what others have left in this process is not searched for garbage meanwhile
    for i in range(discard + n):
        started = time.perf_counter()
        answer = work()
        elapsed = time.perf_counter() - started
        if i >= discard:
            times.append(elapsed * 1000)
    items = answer if isinstance(answer, int) else None
    return Row(what, who, statistics.median(times), min(times), n, items)


def with_ratios(rows: list[Row]) -> list[Row]:
    """Each row compared with dvisor's row of the same work."""
    ours = {row.what: row.median_ms for row in rows if row.who == "dvisor"}
    for row in rows:
        if row.what in ours:
            row.ratio = row.median_ms / ours[row.what]
    return rows


class Noise:
    """A fixed piece of Python, timed before and after: how far the machine's own speed varies."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._times = self._sample()

    @staticmethod
    def _sample() -> list[float]:
        times = []
        for _ in range(30):
            started = time.perf_counter()
            sum(i * i for i in range(100_000))
            times.append((time.perf_counter() - started) * 1000)
        return times

    def machine(self) -> Machine:
        """The verdict, when all has been measured."""
        times = self._times + self._sample()
        median, low, high = statistics.median(times), min(times), max(times)
        return Machine(
            cpu=_cpu_name(),
            cpus=os.cpu_count() or 0,
            python=platform.python_version(),
            load_before=self._load,
            load_after=os.getloadavg()[0],
            noise=f"a fixed loop took {median:.1f} ms, from {low:.1f} to {high:.1f}",
        )


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
