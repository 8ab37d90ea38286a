"""Traps at system call entry, from outside: choose processes and calls, and give verdicts.

The peer of the library inside QEMU (``native/``). While it is open it beats: a library that hears
nothing for ``PEER_TIMEOUT_MS`` decides by itself, as ``on_loss`` says.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Self

import msgspec

from dvisor.addresses import PAGE_SIZE
from dvisor.errors import EngineError, StateError, UnsupportedError, UsageError
from dvisor.machine.native import PROTOCOL
from dvisor.machine.traps_memory import SharedMemory

_C = PROTOCOL.constants
PEER_TIMEOUT_MS = 1000
LIBRARY_TIMEOUT_S = 2.0
_BEAT_S = 0.1
_ENROL_TIMEOUT_S = 5.0
_MASK = (1 << 64) - 1
_PAGE_BITS = 0x000F_FFFF_FFFF_F000  # of CR3: SDM vol. 3, 2.5


class When(IntEnum):
    """Why there is an event."""

    ENTRY = _C["EVENT_ENTRY"]
    """The process makes the call."""
    RETURNED = _C["EVENT_RETURNED"]
    """The call that was put in its place has returned ``result``."""


_EVENTS = set(When)


class OnLoss(IntEnum):
    """What becomes of a trapped call without a peer, or without a verdict in time."""

    LET_THROUGH = _C["ON_LOSS_LET_THROUGH"]
    """Fail open: the guest kernel does it."""
    EIO = _C["ON_LOSS_EIO"]
    """Fail closed: the process gets -EIO."""


class Event(msgspec.Struct, frozen=True):
    """A thread that waits for a verdict on its system call. Numbers are unsigned 64-bit."""

    when: When
    vcpu: int
    request: int
    """Tells this event from the vCPU's others."""
    number: int
    arguments: tuple[int, ...]
    """RDI, RSI, RDX, R10, R8, R9 as the process set them."""
    rip: int
    """Of the instruction after the ``syscall``."""
    rsp: int
    cr3: int
    """Physical address of the top page table; with page-table isolation, of the user half's."""
    fs_base: int
    time_ns: int
    """CLOCK_MONOTONIC of this host."""
    result: int
    """RETURNED: RAX of the substitute, signed. ENTRY: 0."""


class Traps:
    """The peer of one VM's library. A context manager; one at a time a VM. Not for several threads.

    EngineError once the library is gone (QEMU ended, or hangs).
    """

    def __init__(
        self, fd: int, *, on_loss: OnLoss = OnLoss.LET_THROUGH, verdict_timeout_ms: int = 200
    ) -> None:
        """Take the place of the peer; ``fd`` stays the caller's. StateError if there is one.

        ``verdict_timeout_ms``: the longest that a vCPU stands still for one verdict, 1 to 1000.
        """
        if not 1 <= verdict_timeout_ms <= 1000:
            raise UsageError("verdict_timeout_ms must be 1 to 1000: a vCPU stands still meanwhile")
        self._memory = SharedMemory(fd)
        self._closing = threading.Event()
        # An open file of our own, so that its lock is ours and ends with us.
        self._place = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._take_place()
            self._clear()
            self._memory["header.on_loss"] = on_loss
            self._memory["header.verdict_timeout_ms"] = verdict_timeout_ms
            self._memory["header.peer_timeout_ms"] = PEER_TIMEOUT_MS
            self._memory["header.spins"] = 2000
            self._require_library()
        except BaseException:
            os.close(self._place)
            self._memory.close()
            raise
        self._slots = [self._memory.slot(vcpu) for vcpu in range(self.vcpus)]
        self._seen = [slot["request"] for slot in self._slots]
        self._beat()
        self._beating = threading.Thread(target=self._beat_on, name="traps", daemon=True)
        self._beating.start()

    def _take_place(self) -> None:
        try:
            fcntl.flock(self._place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = self._memory["header.peer_pid"]
            raise StateError(
                f"process {other} decides on this VM's traps already: end it first"
            ) from error
        self._memory["header.peer_pid"] = os.getpid()

    def _clear(self) -> None:
        """Nobody is enrolled, nothing is trapped."""
        for name in ("trapped", "counted", "enrolled"):
            words = self._memory.words(name)
            for index in range(len(words)):
                words[index] = 0
        self._memory["header.enrolled_used"] = 0
        self._memory["header.generation"] = (self._memory["header.generation"] + 1) & 0xFFFF_FFFF
        self._memory.wake("header.generation")

    def close(self) -> None:
        """Withdraw everything and leave; threads that wait get ``on_loss``. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._beating.join()
        self._clear()
        self._memory["header.peer_heartbeat_ns"] = 0
        self._memory["header.peer_pid"] = 0
        self._memory.close()
        os.close(self._place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Choosing.

    def enroll(self, cr3: int, *, isolated: bool = False) -> None:
        """Trap the calls of the address space whose top page table is at physical ``cr3``.

        ``isolated``: the guest uses page-table isolation, so the user half has a table of its own
        (the next page: arch/x86/include/asm/pgtable.h, PTI_PGTABLE_SWITCH_BIT). In force on all
        vCPUs when this returns. StateError when the table of address spaces is full.
        """
        enrolled = self._memory.words("enrolled")
        pages = _pages(cr3, isolated)
        missing = [page for page in pages if page not in enrolled]
        free = [index for index, page in enumerate(enrolled) if page == 0][: len(missing)]
        if len(free) < len(missing):
            raise StateError(f"{len(enrolled)} address spaces are enrolled, and no more fit")
        for index, page in zip(free, missing, strict=True):
            enrolled[index] = page
        self._publish(enrolled)

    def withdraw(self, cr3: int, *, isolated: bool = False) -> None:
        """Undo ``enroll``. StateError if it is not enrolled."""
        enrolled = self._memory.words("enrolled")
        pages = _pages(cr3, isolated)
        if not any(page in enrolled for page in pages):
            raise StateError(f"the address space at {cr3:#x} is not enrolled")
        for index, page in enumerate(enrolled):
            if page in pages:
                enrolled[index] = 0
        self._publish(enrolled)

    def enrolled(self) -> set[int]:
        """The pages that are enrolled."""
        return {page for page in self._memory.words("enrolled") if page}

    def trap(self, numbers: Iterable[int]) -> None:
        """From now on events are made of these system calls only, of enrolled processes."""
        self._choose("trapped", numbers)

    def count(self, numbers: Iterable[int]) -> None:
        """From now on these calls of enrolled processes are counted (``calls``)."""
        self._choose("counted", numbers)

    def hint_entry(self, address: int) -> None:
        """Say where the kernel's entry is, in a guest that was restored and not booted."""
        self._memory["header.lstar_hint"] = address

    # Deciding.

    def next_event(self, timeout_s: float) -> Event | None:
        """The longest waiting thread's event; None when there is none in time.

        Each event is given out once. Without a verdict within ``verdict_timeout_ms``, ``on_loss``
        decides, and what is said of the event afterwards is without effect.
        """
        end = time.monotonic() + timeout_s
        memory = self._memory
        try:
            while True:
                self._require_open()
                memory["header.peer_sleeping"] = 1  # before the number is read: see verdict.c
                bell = memory["header.doorbell"]
                waiting = [found for found in map(self._waiting, range(len(self._slots))) if found]
                if waiting:
                    event = min(waiting, key=lambda each: each.time_ns)
                    self._seen[event.vcpu] = event.request
                    return event
                self._require_library()
                left_s = end - time.monotonic()
                if left_s <= 0:
                    return None
                memory.wait("header.doorbell", bell, min(left_s, 0.5))
        finally:
            if not self._closing.is_set():
                memory["header.peer_sleeping"] = 0

    def let_through(self, event: Event) -> None:
        """The guest kernel does the call that the process made (after RETURNED: now)."""
        self._decide(event, _C["LET_THROUGH"])

    def answer(self, event: Event, value: int) -> None:
        """The process gets ``value`` (negative: -errno); the guest kernel does not see the call."""
        self._decide(event, _C["ANSWER"], value)

    def substitute(self, event: Event, number: int, arguments: Sequence[int] = ()) -> None:
        """The guest kernel does this call instead; a RETURNED event follows when it is done."""
        if len(arguments) > 6:
            raise UsageError("a system call has at most six arguments")
        self._decide(event, _C["SUBSTITUTE"], number, arguments)

    def _decide(
        self, event: Event, kind: int, value: int = 0, arguments: Sequence[int] = ()
    ) -> None:
        self._require_open()
        slot = self._slots[event.vcpu]
        if slot["verdict"] == event.request:
            raise StateError("this event has its verdict already")
        slot["kind"] = kind
        slot["value"] = value & _MASK
        slot.put_six("substitute_arguments", [each & _MASK for each in arguments])
        slot["verdict"] = event.request
        slot.wake()

    # Looking.

    @property
    def vcpus(self) -> int:
        """How many vCPUs can have an event at once."""
        return min(self._memory["header.vcpus"], _C["SLOTS"])

    def counters(self) -> dict[str, int]:
        """What the library has counted since QEMU started, by the names of the description."""
        self._require_open()
        fields = PROTOCOL.structs["counters"].fields
        return {name: self._memory[f"counters.{name}"] for name in fields}

    def calls(self) -> dict[int, int]:
        """How often enrolled processes made each counted call, by number."""
        self._require_open()
        return {number: n for number, n in enumerate(self._memory.words("calls")) if n}

    @property
    def ready(self) -> bool:
        """Whether calls can be answered: the guest's kernel has been seen to enter and return."""
        return bool(self._memory["header.sysret"])

    def _waiting(self, vcpu: int) -> Event | None:
        """The event of a vCPU that has not been given out; None if there is none."""
        slot = self._slots[vcpu]
        request = slot["request"]
        if request in {0, self._seen[vcpu]}:
            return None
        when, arguments = slot["event"], slot.six("arguments")
        names = ("number", "rip", "rsp", "cr3", "fs_base", "time_ns", "result")
        number, rip, rsp, cr3, fs_base, time_ns, result = (slot[name] for name in names)
        if slot["request"] != request:
            return None  # it gave up meanwhile: what was read may be half of its next request
        if when not in _EVENTS:
            raise EngineError(f"the library in QEMU gave an event of unknown kind {when}")
        signed = result - (1 << 64) if result >> 63 else result
        return Event(
            When(when), vcpu, request, number, arguments, rip, rsp, cr3, fs_base, time_ns, signed
        )

    def _choose(self, name: str, numbers: Iterable[int]) -> None:
        self._require_open()
        words = self._memory.words(name)
        chosen = [0] * len(words)
        for number in numbers:
            if not 0 <= number < _C["NUMBERS"]:
                raise UsageError(f"no system call has the number {number}")
            chosen[number // 64] |= 1 << number % 64
        for index, word in enumerate(chosen):
            words[index] = word

    def _publish(self, enrolled: memoryview) -> None:
        self._require_open()
        memory = self._memory
        used = max((index + 1 for index, page in enumerate(enrolled) if page), default=0)
        memory["header.enrolled_used"] = used
        generation = (memory["header.generation"] + 1) & 0xFFFF_FFFF
        memory["header.generation"] = generation
        memory.wake("header.generation")
        end = time.monotonic() + _ENROL_TIMEOUT_S
        while (seen := memory["header.generation_seen"]) != generation:
            self._require_library()
            if time.monotonic() > end:
                raise EngineError("the library in QEMU does not take the enrolment over")
            memory.wait("header.generation_seen", seen, 0.1)

    def _require_open(self) -> None:
        if self._closing.is_set():
            raise StateError("these traps are closed")

    def _require_library(self) -> None:
        state = self._memory["header.library_state"]
        if state == _C["LIBRARY_ENDED"]:
            raise EngineError("QEMU has ended, and its traps with it")
        if state != _C["LIBRARY_READY"]:
            raise UnsupportedError("QEMU has not loaded dvisor's library: start the VM with traps")
        if not self._fresh("header.library_heartbeat_ns", LIBRARY_TIMEOUT_S):
            raise EngineError("the library in QEMU gives no sign of life: QEMU was killed or hangs")

    def _fresh(self, place: str, limit_s: float) -> bool:
        return abs(time.monotonic_ns() - self._memory[place]) <= limit_s * 1e9

    def _beat(self) -> None:
        self._memory["header.peer_heartbeat_ns"] = time.monotonic_ns()

    def _beat_on(self) -> None:
        while not self._closing.wait(_BEAT_S):
            with contextlib.suppress(ValueError):  # unmapped
                self._beat()


def _pages(cr3: int, isolated: bool) -> list[int]:
    if cr3 & ~_PAGE_BITS or not cr3:
        raise UsageError(f"{cr3:#x} is not the physical address of a page table")
    return [cr3, cr3 | PAGE_SIZE] if isolated else [cr3]
