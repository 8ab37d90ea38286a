"""Which parts of a sparse file hold data, so that nothing reads (and so allocates) its holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

Run = tuple[int, int]
"""(start, size)"""


def data_runs(fd: int, start: int, size: int) -> Iterator[Run]:
    """Runs of [start, start + size) of a file that are not holes, by offset.

    A file system without SEEK_DATA (hugetlbfs) tells that all is data. Source: lseek(2).
    """
    end = start + size
    at = start
    while at < end:
        try:
            first = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end of the file
                return
            raise
        if first >= end:
            return
        at = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        yield first, at - first


def united(first: Iterable[Run], second: Iterable[Run]) -> Iterator[Run]:
    """What is in either of two series of runs, by offset, touching runs joined."""
    start = end = -1
    for run_start, run_size in sorted([*first, *second]):
        if run_start > end:
            if end > start:
                yield start, end - start
            start, end = run_start, run_start + run_size
        else:
            end = max(end, run_start + run_size)
    if end > start:
        yield start, end - start
