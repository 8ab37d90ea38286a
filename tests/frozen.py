"""A real guest, frozen: RAM and registers as they were at one moment, to be damaged at will.

Booted once a test session and kept in an unlinked file. Each ``FrozenEngine`` maps that file
copy-on-write, so that a test may overwrite anything at no cost and without a trace.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import mmap
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pytest

from dvisor import images
from dvisor.addresses import GuestPhysical
from dvisor.errors import DvisorError, UnsupportedError
from dvisor.guest.guest import Guest
from dvisor.guest.memory import Memory
from dvisor.guest.records import Record
from dvisor.machine.engine import CpuRegisters, RamBlock
from dvisor.machine.layout import RamMap
from dvisor.machine.vm_engine import VmEngine
from tests.vm.machines import Place, shell, started, tiny_spec

MEMORY_HEADROOM = 1 << 30
"""Bytes of address space that views of a damaged guest of 256 MiB may take."""
READS = 4_000_000
"""Reads of guest memory that one view may take; of the sound guest each takes a few thousand."""

# Sockets in several states, a deleted open file, a pipe, a mount and a job with children.
WORKLOAD = """
mount -t tmpfs none /mnt; echo x >/mnt/gone; (exec 9</mnt/gone; exec sleep 100001) &
nc -l -p 80 </dev/null >/dev/null 2>&1 & nc -u -l -p 53 </dev/null >/dev/null 2>&1 &
(sleep 100002 | nc 127.0.0.1 80) >/dev/null 2>&1 & (sh -c 'sleep 100003; :') &
syslogd; klogd; sleep 1; rm /mnt/gone
""".strip().replace("\n", " ")


@dataclass(frozen=True)
class Frozen:
    """One boot of the ``tiny`` image, stopped and saved."""

    file: BinaryIO
    size: int
    blocks: tuple[tuple[int, int, int], ...]
    """(gpa, size, offset in the file)"""
    runs: tuple[tuple[GuestPhysical, int], ...]
    cpus: tuple[CpuRegisters, ...]

    def engine(self, registers: bool = True) -> FrozenEngine:
        return FrozenEngine(self, registers)


class FrozenEngine:
    """The ``Engine`` protocol over a private copy of the frozen guest."""

    description = "a frozen guest"
    live = False
    knows_resets = True

    def __init__(self, frozen: Frozen, registers: bool) -> None:
        self._frozen = frozen
        self._cpus = frozen.cpus if registers else ()
        self.memory = mmap.mmap(frozen.file.fileno(), frozen.size, access=mmap.ACCESS_COPY)
        self._map = RamMap(
            [
                RamBlock(GuestPhysical(gpa), size, self.memory, at)
                for gpa, size, at in frozen.blocks
            ],
            _no_fetch,
        )

    def ram(self) -> tuple[RamBlock, ...]:
        return self._map.blocks

    def read(self, gpa: GuestPhysical, size: int) -> bytes:
        return self._map.read(gpa, size)

    def write(self, gpa: int, data: bytes) -> None:
        """Damage this copy; ``gpa`` must be in RAM."""
        for block in self.ram():
            if block.gpa <= gpa and gpa + len(data) <= block.end:
                at = block.offset + gpa - block.gpa
                self.memory[at : at + len(data)] = data
                return
        raise ValueError(f"{gpa:#x} is not in RAM")

    def populated(self) -> Iterator[tuple[GuestPhysical, int]]:
        yield from self._frozen.runs

    def registers(self) -> tuple[CpuRegisters, ...]:
        if not self._cpus:
            raise UnsupportedError("this frozen guest is opened without registers")
        return self._cpus

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        yield

    def epoch(self) -> int:
        return 0

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # somebody still looks into it: freed after that
            self.memory.close()


@functools.cache
def frozen(kernel: str) -> Frozen:
    """Boot, start some processes, stop, save, end. Once a session and kernel."""
    with pytest.MonkeyPatch.context() as patch:
        place = Place()
        for key, value in place.environment.items():
            patch.setenv(key, value)
        try:
            image = images.build("tiny", kernel, progress=images.PlainProgress())
            boot = {"vmlinuz": str(image.vmlinuz), "initrd": str(image.initrd)}
            handle = started(tiny_spec("frozen", vcpus=2, **boot))
            with shell("frozen") as console:
                console.run(WORKLOAD, 120)
            engine = handle.engine()
            try:
                with engine.stopped():
                    return _save(engine)
            finally:
                engine.close()
                with handle.control() as control:
                    control.quit(force=True)
        finally:
            place.close()


def _save(engine: VmEngine) -> Frozen:
    file = tempfile.TemporaryFile(prefix="dvisor-frozen-")  # noqa: SIM115 (lives on)
    blocks = tuple((block.gpa, block.size, block.offset) for block in engine.ram())
    size = max(offset + size for _, size, offset in blocks)
    file.truncate(size)
    runs = tuple(engine.populated())
    for gpa, length in runs:
        (offset,) = (at + gpa - start for start, n, at in blocks if start <= gpa < start + n)
        os.pwrite(file.fileno(), engine.read(gpa, length), offset)
    return Frozen(file, size, blocks, runs, engine.registers())


def _no_fetch(_block: int, _at: int, _size: int) -> bytes:
    raise AssertionError("all of a frozen guest is mapped")


# -- every view, with its work counted ---------------------------------------------------------


class TooMuchWorkError(BaseException):
    """A view read guest memory without end; no DvisorError, and not to be caught as one."""


class _Reads:
    """Reads of guest memory by the views: how many may still come, and which there were."""

    left = 0
    seen: set[int] | None = None

    def note(self, address: int, size: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooMuchWorkError
        if self.seen is not None:
            self.seen.update(range(address & ~7, address + min(size, 1 << 16), 8))


_reads = _Reads()


@contextlib.contextmanager
def bounded(reads: int = READS, headroom: int = MEMORY_HEADROOM) -> Iterator[None]:
    """Within it a view may take so many reads and bytes: beyond, TooMuchWorkError, MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        now = int(statm.read().split()[0]) * resource.getpagesize()
    _reads.left = reads
    with _counted():
        resource.setrlimit(resource.RLIMIT_AS, (now + headroom, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    """Every way to read kernel memory, those in place included, tells ``_reads``."""
    note = _reads.note

    def wrap(owner: type, name: str, where: Callable[..., tuple[int, int]]) -> None:
        method = getattr(owner, name)

        @functools.wraps(method)
        def counted(self: Any, *args: Any) -> Any:
            note(*where(self, *args))
            return method(self, *args)

        patch.setattr(owner, name, counted)

    with pytest.MonkeyPatch.context() as patch:
        wrap(Memory, "u64", lambda _, at: (at, 8))
        wrap(Memory, "unpack", lambda _, fmt, at: (at, fmt.size))
        wrap(Memory, "read", lambda _, at, size: (at, size))
        wrap(Record, "read", lambda self, at: (at + self._first, self._format.size))
        wrap(FrozenEngine, "read", lambda _, at, size: (at, size))
        yield


def footprint(guest: Guest) -> list[int]:
    """What the views read of a sound guest, in words of 8 bytes: where damage is felt.

    Addresses are kernel virtual, or physical (page tables, user memory).
    """
    guest.kernel.digest  # noqa: B018 (attaching reads other things than viewing)
    _reads.seen = set()
    try:
        survey(guest, views(tables=False))
        ram_end = guest.engine.ram()[-1].end
        return sorted(at for at in _reads.seen if at < ram_end or at >> 63)
    finally:
        _reads.seen = None


View = tuple[str, Callable[[Guest], Any]]

ARGUMENTS: dict[str, Any] = {
    "pid": 1,
    "task.pid": 2,
    "resolve.address": 0xFFFF_FFFF_8100_0000,
    "structure.name": "task_struct",
    "symbols.wanted": "tcp_*",
    "read.address": 1 << 20,
    "read.physical": True,
    "size_bytes": 64,
    "size": 64,
}
"""What views are called with, by ``parameter`` or ``view.parameter``."""
TABLE_VIEWS = {"symbols", "structure"}
"""Those that decode a whole table of names or types, and so take long."""


def views(tables: bool = True) -> list[View]:
    """Every public method of Guest, with what it is to be called with.

    A view with a parameter that has neither a value in ARGUMENTS nor a default fails the test: a
    new view must be tried too. What is off by default is tried on as well. ``tables``: with those
    of TABLE_VIEWS.
    """
    found: list[View] = []
    for name, method in inspect.getmembers(Guest, inspect.isfunction):
        if name.startswith("_") or name == "view" or (name in TABLE_VIEWS and not tables):
            continue
        given: dict[str, Any] = {}
        switches: list[str] = []
        for parameter in list(inspect.signature(method).parameters.values())[1:]:
            own = f"{name}.{parameter.name}"
            required = parameter.default is parameter.empty
            if own in ARGUMENTS or (required and parameter.name in ARGUMENTS):
                given[parameter.name] = ARGUMENTS.get(own, ARGUMENTS.get(parameter.name))
                continue
            assert not required, f"give tests.frozen.ARGUMENTS a value for {own}"
            if parameter.default is False:
                switches.append(parameter.name)
        found.append((name, functools.partial(method, **given)))
        found += [
            (f"{name}({switch}=True)", functools.partial(method, **{**given, switch: True}))
            for switch in switches
        ]
    return found


def survey(guest: Guest, calls: list[View]) -> dict[str, Any]:
    """Call every view within bounds: its answer, or the DvisorError that it ended with.

    Whatever else is raised goes on to the test, and fails it.
    """
    answers: dict[str, Any] = {}
    for name, call in calls:
        try:
            with bounded():
                answer = call(guest)
                if inspect.isgenerator(answer):
                    answer = list(answer)
        except DvisorError as error:
            answer = error
        answers[name] = answer
    return answers
