"""dvisor's side."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from bench.measure import Row, timed
from dvisor.api import attach


@contextlib.contextmanager
def fresh_cache() -> Iterator[str]:
    """Within it dvisor remembers no kernel from before."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_CACHE_HOME"] = directory
        try:
            yield directory
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def attach_and_list(target: str) -> int:
    """From nothing to the first list of tasks."""
    with attach(target) as vm:
        return len(vm.guest.tasks())


def cold(target: str) -> int:
    with fresh_cache():
        return attach_and_list(target)


def attaching(target: str) -> list[Row]:
    with fresh_cache():
        cached = timed("attach, and a first list", "dvisor", 20, lambda: attach_and_list(target))
    first = timed("attach, kernel never seen", "dvisor", 7, lambda: cold(target))
    return [first, cached]


def listing(target: str) -> list[Row]:
    with attach(target) as vm:
        guest = vm.guest
        return [
            timed("list of tasks", "dvisor", 300, lambda: len(guest.tasks()), discard=20),
            timed("all sockets", "dvisor", 50, lambda: len(guest.sockets()), discard=3),
            timed("all open files", "dvisor", 50, lambda: len(guest.files()), discard=3),
        ]
