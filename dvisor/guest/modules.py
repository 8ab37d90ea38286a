"""Loaded kernel modules.

Two views: the list behind /proc/modules, and the tree by which the kernel finds the module that an
address belongs to (``mod_tree``, kernel/module/tree_lookup.c). A module that hides by leaving the
list stays in the tree, or its faults and traces would break.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.lists import Problem, list_entries, tree_entries

MAX_MODULES = 1 << 14
MAX_USERS = 1 << 12
TRIES = 4

_LIVE, _COMING, _GOING, _UNFORMED = range(4)  # enum module_state
_STATES = {_LIVE: "live", _COMING: "coming", _GOING: "going", _UNFORMED: "unformed"}
_TAINTS = "PFSRMBUDAWCIOELKXTNJ"  # by bit: taint_flags, kernel/panic.c
# enum mod_mem_type, since 6.4 (ac3b43283923); before, two layouts.
_REGIONS = ("text", "data", "rodata", "ro_after_init", "init_text", "init_data", "init_rodata")


class Region(msgspec.Struct, frozen=True):
    """A run of a module's memory."""

    kind: str
    """``text``, ``data``, ``rodata``, ...; of older kernels ``core`` and ``init``."""
    base: int
    size_bytes: int


class Module(msgspec.Struct, frozen=True):
    """One module as it was at one moment. ``address`` (of its struct module) identifies it."""

    name: str
    size_bytes: int
    """Sum of its regions, as /proc/modules prints it."""
    state: str
    """``live``, ``coming`` (its init runs), ``going`` (its exit runs), or ``unformed`` (being
    loaded; /proc/modules leaves it out)."""
    refcount: int
    """-1 where the kernel was built without unloading."""
    used_by: tuple[str, ...]
    """Modules that use its symbols, latest first."""
    permanent: bool
    """It has no exit function, so it cannot be unloaded."""
    base: int
    """Address of its code."""
    regions: tuple[Region, ...]
    taints: str
    """Letters of Documentation/admin-guide/tainted-kernels.rst: O out of tree, E unsigned, ..."""
    version: str
    srcversion: str
    build_id: str
    """GNU build id in hexadecimal; empty where the kernel keeps none."""
    listed: bool
    """False: it is not in the list behind /proc/modules, only in the tree that addresses are
    looked up in. Unless it is just being removed, something hides it."""
    address: int

    def holds(self, address: int) -> bool:
        """Whether ``address`` is in one of its regions."""
        return any(0 <= address - r.base < r.size_bytes for r in self.regions)


def read_modules(kernel: Kernel) -> Listing[Module]:
    """All modules, latest loaded first; then those that only the tree knows."""
    listing: Listing[Module] = Listing()
    for _ in range(TRIES):
        listing = _Reader(kernel).read()
        if listing.complete:
            break
    return listing


class _Reader:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.memory = kernel.memory
        self._head = kernel.record("module", "state", "name[]")
        self._rest = kernel.record(
            "module", "version?", "srcversion?", "build_id[]?", "init", "exit?", "taints"
        )
        self._refcount = kernel.record("module", "refcnt.counter?")

    def read(self) -> Listing[Module]:
        listing: Listing[Module] = Listing()
        link = self.kernel.offset("module", "list")
        head = self.kernel.symbol("modules")
        seen: set[int] = set()
        for address in list_entries(
            self.memory, head, link, listing.problem, "modules", MAX_MODULES
        ):
            seen.add(address)
            self._add(listing, address, True)
        for address in self._in_tree(listing.problem):
            if address not in seen:
                seen.add(address)
                self._add(listing, address, False)
        return listing

    def _add(self, listing: Listing[Module], address: int, listed: bool) -> None:
        try:
            listing.append(self.one(address, listed, listing.problem))
        except GuestDataError as error:
            listing.problem(f"a module cannot be read: {error}")

    def _in_tree(self, problem: Problem) -> Iterator[int]:
        """Modules in the tree of addresses; one has a node for each of some regions."""
        kernel = self.kernel
        tree = kernel.find_symbol("mod_tree")
        root = kernel.place("mod_tree_root", "root.tree")
        if tree is None or root is None:  # built without CONFIG_MODULES_TREE_LOOKUP
            return
        link = kernel.offset("mod_tree_node", "node")
        owner = kernel.offset("mod_tree_node", "mod")
        for node in tree_entries(
            self.memory, tree + root.offset, link, problem, "modules by address", 8 * MAX_MODULES
        ):
            try:
                yield self.memory.u64(node + owner)
            except GuestDataError as error:
                problem(f"a module cannot be read: {error}")

    def one(self, address: int, listed: bool, problem: Problem) -> Module:
        """The module at ``address``; GuestDataError if that cannot be one."""
        state, name = self._head.read(address)
        if state not in _STATES:
            raise GuestDataError(f"no module is in the state {state} ({address:#x})")
        version, srcversion, build_id, init, leave, taints = self._rest.read(address)
        regions = tuple(self._regions(address))
        core = [region.base for region in regions if region.kind in {"text", "core"}]
        (refcount,) = self._refcount.read(address)
        return Module(
            name=_text(name),
            size_bytes=sum(region.size_bytes for region in regions),
            state=_STATES[state],
            refcount=-1 if refcount is None else refcount - 1,  # MODULE_REF_BASE
            used_by=tuple(self._users(address, _text(name), problem)),
            permanent=bool(init) and not leave,
            base=core[0] if core else 0,
            regions=regions,
            taints=taint_letters(taints),
            version=self._string(version),
            srcversion=self._string(srcversion),
            build_id=(build_id or b"").rstrip(b"\0").hex(),
            listed=listed,
            address=address,
        )

    def _regions(self, address: int) -> Iterator[Region]:
        kernel = self.kernel
        memories = kernel.place("module", "mem")
        if memories is not None:
            structure = "module_memory"
            step = kernel.size_of(structure)
            count = min(memories.size // step, len(_REGIONS))
            places = [(_REGIONS[i], memories.offset + i * step) for i in range(count)]
        else:
            structure = "module_layout"
            places = [
                (kind, kernel.offset("module", f"{kind}_layout")) for kind in ("core", "init")
            ]
        record = kernel.record(structure, "base", "size")
        for kind, offset in places:
            base, size = record.read(address + offset)
            if base and size:
                yield Region(kind, base, size)

    def _users(self, address: int, name: str, problem: Problem) -> Iterator[str]:
        """Names of the modules that depend on this one (struct module_use)."""
        kernel = self.kernel
        head = kernel.place("module", "source_list")
        if head is None:
            return
        link = kernel.offset("module_use", "source_list")
        source = kernel.offset("module_use", "source")
        name_at = kernel.offset("module", "name")
        for use in list_entries(
            self.memory, address + head.offset, link, problem, f"users of {name}", MAX_USERS
        ):
            try:
                user = self.memory.u64(use + source)
                yield _text(self.memory.string(user + name_at, 64))
            except GuestDataError as error:
                problem(f"a user of {name} cannot be read: {error}")

    def _string(self, address: Any) -> str:
        try:
            return _text(self.memory.string(address, 256)) if address else ""
        except GuestDataError:
            return ""


def taint_letters(taints: int) -> str:
    """As /proc/modules prints ``module.taints``."""
    return "".join(letter for bit, letter in enumerate(_TAINTS) if taints >> bit & 1)


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")
