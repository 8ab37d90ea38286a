"""One page about the guest: which kernel, since when, how it was started, how it is protected."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeVar

import msgspec

from dvisor.addresses import PAGE_SIZE
from dvisor.errors import GuestDataError, NotFoundError
from dvisor.guest import paging
from dvisor.guest.kernel import MAX_CPUS, Kernel, timekeeper
from dvisor.guest.listing import Listing
from dvisor.guest.locate import LINKED_AT
from dvisor.guest.modules import Module, read_modules
from dvisor.guest.tasks import read_tasks

T = TypeVar("T")

_TRIES = 8
_MAX_NOTES = 1 << 16
_MAX_COMMAND_LINE = 4096  # COMMAND_LINE_SIZE is 2048 on x86, bootconfig may add to it
_NT_GNU_BUILD_ID = 3
_NS_PER_S = 1_000_000_000

TAINTS = (
    ("P", "proprietary module"),
    ("F", "module loaded by force"),
    ("S", "CPU out of specification"),
    ("R", "module unloaded by force"),
    ("M", "machine check"),
    ("B", "bad page"),
    ("U", "requested by user space"),
    ("D", "died recently (oops or BUG)"),
    ("A", "ACPI table overridden"),
    ("W", "warning issued"),
    ("C", "staging driver"),
    ("I", "firmware bug worked around"),
    ("O", "out-of-tree module"),
    ("E", "unsigned module"),
    ("L", "soft lockup"),
    ("K", "live patched"),
    ("X", "auxiliary, by the distribution"),
    ("T", "built with randomised structures"),
    ("N", "in-kernel test"),
    ("J", "firmware control used"),
)
"""By bit of ``tainted_mask``: user space's view of them is fixed
(Documentation/admin-guide/tainted-kernels.rst)."""


class Way(msgspec.Struct, frozen=True):
    """What one independent way of finding the kernel said (``locate.Evidence``)."""

    way: str
    agrees: bool
    detail: str


class Info(msgspec.Struct, frozen=True):
    """The guest in one page. Times are of the kernel's last tick: an idle guest may be seconds
    behind."""

    release: str
    version: str
    """The rest of the banner: compiler, build number, date."""
    build_id: str
    hostname: str
    """Of the initial UTS namespace."""
    command_line: str
    uptime_ns: int
    """Since boot, suspended time included (CLOCK_BOOTTIME)."""
    realtime_ns: int
    """The guest's own clock, since 1970 (CLOCK_REALTIME)."""
    booted_ns: int
    """By that clock."""
    cpus_online: list[int]
    cpus_possible: int
    memory_bytes: int
    """RAM that the machine gives it, and the part of it that its page allocator manages."""
    managed_bytes: int
    tasks: int
    modules: int
    page_table_levels: int
    page_table_isolation: bool | None
    """None where no process has page tables to tell it from."""
    kaslr_offset: int
    """Virtual, from where the kernel was linked to; ``image`` is where it is, ``physical`` the
    same in guest physical memory."""
    image: int
    physical: int
    tainted: list[str]
    """``letter: reason`` each."""
    lockdown: str
    """``none``, ``integrity``, ``confidentiality``, or empty without that security module."""
    evidence: list[Way]
    engine: str
    live: bool
    knows_resets: bool
    """False: the engine cannot tell when the guest was reset."""
    from_cache: bool
    """Whether symbols and types were known from an earlier attach."""
    problems: list[str]
    """What could not be read; its fields are empty."""


def read_info(kernel: Kernel) -> Info:
    """The summary; never fails for a part of it (see ``Info.problems``)."""
    problems: list[str] = []
    release, _, version = (
        kernel.banner.decode("utf-8", "backslashreplace")
        .removeprefix("Linux version ")
        .partition(" ")
    )

    def attempt(what: str, read: Callable[[Kernel], T], otherwise: T) -> T:
        try:
            return read(kernel)
        except (GuestDataError, NotFoundError) as error:
            problems.append(f"{what} cannot be read: {error}")
            return otherwise

    realtime_ns, uptime_ns = attempt("the time", read_clocks, (0, 0))
    tasks = read_tasks(kernel)
    nothing: Listing[Module] = Listing()
    modules = attempt("the modules", read_modules, nothing)
    problems += [*tasks.problems, *modules.problems]
    ram = kernel.engine.ram()
    return Info(
        release=release,
        version=version.strip(),
        build_id=attempt("the build id", read_build_id, ""),
        hostname=attempt("the host name", _hostname, ""),
        command_line=attempt("the command line", _command_line, ""),
        uptime_ns=uptime_ns,
        realtime_ns=realtime_ns,
        booted_ns=realtime_ns - uptime_ns,
        cpus_online=kernel.cpus(),
        cpus_possible=attempt("the possible CPUs", _possible, 0),
        memory_bytes=sum(block.size for block in ram),
        managed_bytes=attempt("the managed memory", _managed, 0),
        tasks=len(tasks),
        modules=len([module for module in modules if module.listed]),
        page_table_levels=kernel.levels,
        page_table_isolation=attempt("the page-table isolation", read_isolation, None),
        kaslr_offset=kernel.image.virtual - LINKED_AT,
        image=kernel.image.virtual,
        physical=kernel.memory.physical(kernel.image.virtual),
        tainted=attempt("the taint flags", _tainted, []),
        lockdown=attempt("the lockdown state", _lockdown, ""),
        evidence=[Way(e.way, e.agrees, e.detail) for e in kernel.evidence],
        engine=kernel.engine.description,
        live=kernel.engine.live,
        knows_resets=kernel.engine.knows_resets,
        from_cache=kernel.from_cache,
        problems=problems,
    )


def read_clocks(kernel: Kernel) -> tuple[int, int]:
    """(CLOCK_REALTIME, CLOCK_BOOTTIME) in nanoseconds, as of the kernel's last tick.

    From the timekeeper, under its sequence count (kernel/time/timekeeping.c).
    """
    start, address = timekeeper(kernel)
    record = kernel.record(
        "timekeeper",
        "tkr_mono.shift",
        "tkr_mono.xtime_nsec",
        "tkr_mono.base",
        "xtime_sec",
        "offs_boot",
    )
    for _ in range(_TRIES):
        before = kernel.memory.u32(start)
        shift, fraction, base, seconds, suspended = record.read(address)
        if before == kernel.memory.u32(start) and not before & 1:
            break
    if shift > 32:
        raise GuestDataError(f"the timekeeper's shift cannot be {shift}")
    since_base = fraction >> shift
    return seconds * _NS_PER_S + since_base, base + since_base + suspended


def read_build_id(kernel: Kernel) -> str:
    """The GNU build id, in hexadecimal, of the ELF notes in the image; empty where it has none."""
    start, stop = kernel.symbol("__start_notes"), kernel.symbol("__stop_notes")
    raw = kernel.memory.read(start, min(max(stop - start, 0), _MAX_NOTES))
    at = 0
    while at + 12 <= len(raw):
        name_size, size, kind = struct.unpack_from("<III", raw, at)
        name, content = at + 12, at + 12 + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and raw[name : name + name_size] == b"GNU\0":
            return raw[content : content + size].hex()
        at = content + (size + 3 & ~3)
    return ""


def read_isolation(kernel: Kernel) -> bool | None:
    """Page-table isolation (PTI), told from page tables; None if no process has any yet.

    Under it the kernel's half of a process's tables maps user space as not executable
    (__pti_set_user_pgtbl(), arch/x86/mm/pti.c), elsewhere the top level never does.
    """
    pgd_at = kernel.offset("mm_struct", "pgd")
    for task in read_tasks(kernel):
        if not task.mm:
            continue
        try:
            pgd = kernel.memory.u64(task.mm + pgd_at)
            entries = struct.unpack("<256Q", kernel.memory.read(pgd, 2048))
        except GuestDataError:
            continue
        used = [entry for entry in entries if entry & paging.PRESENT and entry & paging.USER]
        if used:
            return all(entry & paging.NO_EXECUTE for entry in used)
    return None


def _hostname(kernel: Kernel) -> str:
    (name,) = kernel.record("uts_namespace", "name.nodename[]").read(kernel.symbol("init_uts_ns"))
    return _text(name)


def _command_line(kernel: Kernel) -> str:
    pointer = kernel.memory.u64(kernel.symbol("saved_command_line"))
    return _text(kernel.memory.string(pointer, _MAX_COMMAND_LINE))


def _possible(kernel: Kernel) -> int:
    size = -(-min(kernel.cpu_limit(), MAX_CPUS) // 64) * 8
    return int.from_bytes(
        kernel.memory.read(kernel.symbol("__cpu_possible_mask"), size), "little"
    ).bit_count()


def _managed(kernel: Kernel) -> int:
    return kernel.memory.u64(kernel.symbol("_totalram_pages")) * PAGE_SIZE


def _tainted(kernel: Kernel) -> list[str]:
    mask = kernel.memory.u64(kernel.symbol("tainted_mask"))
    return [
        ": ".join(TAINTS[bit]) if bit < len(TAINTS) else f"bit {bit}: unknown to dvisor"
        for bit in range(64)
        if mask >> bit & 1
    ]


def _lockdown(kernel: Kernel) -> str:
    symbol = kernel.find_symbol("kernel_locked_down")
    if symbol is None:
        return ""
    reason = kernel.memory.u32(symbol)  # enum lockdown_reason: levels stand between reasons
    confidentiality = kernel.constant("LOCKDOWN_CONFIDENTIALITY_MAX")
    if confidentiality is not None and reason >= confidentiality:
        return "confidentiality"
    return "integrity" if reason else "none"


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")
