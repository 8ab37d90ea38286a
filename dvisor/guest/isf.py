"""The running kernel as a volatility3 symbol file (ISF 6.2.0), from its own BTF and kallsyms.

Names are those of volatility's dwarf2json, which plugins rely on: ``unnamed_field_<offset>`` for an
anonymous member, ``unnamed_<id>`` for an anonymous type; typedefs and qualifiers are looked
through. Addresses are as linked, because volatility finds and adds the KASLR shift itself.
Source: volatility3/schemas/schema-6.2.0.json.
"""

from __future__ import annotations

import base64
import gzip
import lzma
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from dvisor import __version__
from dvisor.addresses import MASK64
from dvisor.errors import GuestDataError, HostError, UsageError
from dvisor.guest import btf as bt
from dvisor.guest import variables
from dvisor.guest.btf import Btf, Member
from dvisor.guest.kallsyms import TEXT_START
from dvisor.guest.kernel import Kernel
from dvisor.guest.locate import LINKED_AT

FORMAT = "6.2.0"
MAX_MEMBERS = 4_000_000
"""Members of all types together: twenty times what a large kernel has."""

_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    ".json.xz": lambda raw: lzma.compress(raw, preset=2),  # a higher one takes ten times as long
    ".json.gz": lambda raw: gzip.compress(raw, compresslevel=6),
    ".json": lambda raw: raw,
}

Json = dict[str, Any]
_VOID: Json = {"kind": "base", "name": "void"}
_CHARS = frozenset({"char", "signed char", "unsigned char"})
# BTF does not name an enumeration's integer type; the ABI's names, by (size, signed).
_ENUM_BASES = {
    (1, False): "unsigned char",
    (1, True): "signed char",
    (2, False): "short unsigned int",
    (2, True): "short int",
    (4, False): "unsigned int",
    (4, True): "int",
    (8, False): "long unsigned int",
    (8, True): "long int",
}


def document(kernel: Kernel) -> Json:
    """The symbol file of ``kernel``, ready to be encoded as JSON."""
    types = _Types(kernel.types)
    user_types = dict(types.user_types())
    symbols = _symbols(kernel, types)
    _add_timekeeper(user_types, symbols)
    return {
        "metadata": {
            "format": FORMAT,
            "producer": {"name": "dvisor", "version": __version__},
            "linux": {"symbols": [{"kind": "symtab", "name": "kallsyms"}]},
        },
        "base_types": types.base_types(),
        "user_types": user_types,
        "enums": dict(types.enums()),
        "symbols": symbols,
    }


def write(kernel: Kernel, path: Path) -> None:
    """Write the symbol file to ``path``, all of it or nothing; compressed as its name says.

    UsageError for a name by which volatility3 would not find it; HostError if it cannot be written.
    """
    endings = [ending for ending in _ENCODERS if path.name.endswith(ending)]
    if not endings:
        raise UsageError(f"{path}: volatility3 looks for names that end in {', '.join(_ENCODERS)}")
    raw = _ENCODERS[endings[0]](msgspec.json.encode(document(kernel)))
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            try:
                file.write(raw)
                file.close()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


class _Types:
    """One BTF blob in ISF's terms."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._known: dict[int, Json] = {}
        self._members = 0
        self._ids: dict[int, list[int]] = {}
        for type_id in range(1, btf.end_id):
            self._ids.setdefault(btf.kind(type_id), []).append(type_id)
        self._typedefs = {btf.target(i): btf.name(i) for i in reversed(self._of(bt.TYPEDEF))}
        self._names = dict(self._unique_names(bt.STRUCT, bt.UNION))
        self._names |= dict(self._unique_names(bt.ENUM, bt.ENUM64))

    def _of(self, *kinds: int) -> list[int]:
        return sorted(type_id for kind in kinds for type_id in self._ids.get(kind, ()))

    def _unique_names(self, *kinds: int) -> Iterator[tuple[int, str]]:
        """(type id, name); an anonymous type takes its typedef's name. Different files of the
        kernel may define different types of one name: the first keeps it, as in ``Btf.find``."""
        btf = self._btf
        found = self._of(*kinds)
        tagged = {btf.name(type_id) for type_id in found}
        taken: set[str] = set()
        for type_id in found:
            name = btf.name(type_id)
            if not name:
                name = self._typedefs.get(type_id, "")
                if not name or name in tagged:
                    name = f"unnamed_{type_id:x}"
            if name in taken:
                name = f"{name}_{type_id:x}"
            taken.add(name)
            yield type_id, name

    def base_types(self) -> Json:
        btf = self._btf
        found = {
            "void": _base_type(0, False, "void"),
            "pointer": _base_type(8, False, "int"),
        }
        for (size, signed), name in _ENUM_BASES.items():
            found[name] = _base_type(size, signed, "char" if name in _CHARS else "int")
        for type_id in self._of(bt.INT, bt.FLOAT):
            name, size = btf.name(type_id), btf.size(type_id)
            if btf.kind(type_id) == bt.FLOAT:
                found[name] = _base_type(size, True, "float")
            elif name == "_Bool":
                found[name] = _base_type(size, False, "bool")
            else:  # BTF has char as unsigned; the x86-64 ABI has it signed
                signed = btf.signed(type_id) or name == "char"
                found[name] = _base_type(size, signed, "char" if name in _CHARS else "int")
        return found

    def user_types(self) -> Iterator[tuple[str, Json]]:
        btf = self._btf
        for type_id in self._of(bt.STRUCT, bt.UNION):
            kind = "struct" if btf.kind(type_id) == bt.STRUCT else "union"
            fields = dict(self._fields(type_id))
            yield self._names[type_id], {"kind": kind, "size": btf.size(type_id), "fields": fields}

    def _fields(self, type_id: int) -> Iterator[tuple[str, Json]]:
        taken: set[str] = set()
        for name, member in self._btf.members(type_id):
            self._members += 1
            if self._members > MAX_MEMBERS:
                raise GuestDataError(f"the kernel's BTF has more than {MAX_MEMBERS} members")
            label = name or f"unnamed_field_{member.offset:x}"
            if label in taken:  # two anonymous members may share an offset, when one is empty
                label = f"{label}_{len(taken)}"
            taken.add(label)
            field = self._bit_field(member) if member.bit_size else None
            field = field or {"type": self.descriptor(member.type_id), "offset": member.offset}
            if not name:
                field["anonymous"] = True
            yield label, field

    def _bit_field(self, member: Member) -> Json | None:
        """Inside the aligned number of its declared type, if that holds all of it."""
        type_id = self._btf.resolve(member.type_id)
        if self._btf.kind(type_id) not in {bt.INT, bt.ENUM, bt.ENUM64}:
            return None
        unit = max(self._btf.size(type_id), 1)
        start = member.bit_offset // (8 * unit) * unit
        if member.bit_offset - 8 * start + member.bit_size > 8 * unit:  # a packed structure
            start = member.bit_offset // 8
        bits = {
            "kind": "bitfield",
            "bit_position": member.bit_offset - 8 * start,
            "bit_length": member.bit_size,
            "type": self.descriptor(type_id),
        }
        return {"type": bits, "offset": start}

    def enums(self) -> Iterator[tuple[str, Json]]:
        btf = self._btf
        for type_id in self._of(bt.ENUM, bt.ENUM64):
            size = btf.size(type_id)
            yield (
                self._names[type_id],
                {
                    "size": size,
                    "base": _ENUM_BASES.get((size, btf.signed(type_id)), "unsigned int"),
                    "constants": dict(btf.enumerators(type_id)),
                },
            )

    def descriptor(self, type_id: int, depth: int = bt.MAX_CHAIN) -> Json:
        """How a member or symbol refers to the type."""
        type_id = self._btf.resolve(type_id)
        if type_id not in self._known:
            if not depth:
                raise GuestDataError("BTF types are nested too deep")
            self._known[type_id] = self._describe(type_id, depth - 1)
        return self._known[type_id]

    def _describe(self, type_id: int, depth: int) -> Json:
        btf = self._btf
        kind = btf.kind(type_id)
        if kind == bt.PTR:
            return {"kind": "pointer", "subtype": self.descriptor(btf.target(type_id), depth)}
        if kind == bt.ARRAY:
            element, count = btf.array(type_id)
            return {"kind": "array", "count": count, "subtype": self.descriptor(element, depth)}
        if kind in {bt.STRUCT, bt.UNION, bt.FWD}:
            word = "union" if kind == bt.UNION else "struct"
            return {"kind": word, "name": self._names.get(type_id) or btf.name(type_id)}
        if kind in {bt.ENUM, bt.ENUM64}:
            return {"kind": "enum", "name": self._names[type_id]}
        if kind in {bt.INT, bt.FLOAT}:
            return {"kind": "base", "name": btf.name(type_id)}
        return {"kind": "function"} if kind == bt.FUNC_PROTO else _VOID

    def variable_names(self) -> set[str]:
        """Those that ``variable`` may know."""
        per_cpu = (self._btf.name(type_id) for type_id in self._of(bt.VAR))
        return {*variables.names(), *per_cpu}

    def variable(self, name: str, room_bytes: int) -> Json:
        """The type of a global variable; void where nobody knows it."""
        found = variables.declared(self._btf, name, room_bytes)
        if found is None:
            return _VOID
        described = self.descriptor(found.type_id)
        for _ in range(found.pointers):
            described = {"kind": "pointer", "subtype": described}
        if found.length is not None:
            described = {"kind": "array", "count": found.length, "subtype": described}
        return described


def _base_type(size: int, signed: bool, kind: str) -> Json:
    return {"size": size, "signed": signed, "kind": kind, "endian": "little"}


def _symbols(kernel: Kernel, types: _Types) -> Json:
    shift = kernel.image.virtual - LINKED_AT
    addresses = kernel.symbols.addresses
    ascending = sorted(set(addresses))
    typed = types.variable_names()
    found: Json = {}
    for full, address in zip(kernel.symbols.names, addresses, strict=True):
        name = full[1:]
        if name in found:  # static functions share names; the first counts, as for nm
            continue
        linked = (address - shift) & MASK64 if address >= TEXT_START else address
        entry: Json = {"address": linked, "type": _VOID}
        if name in typed:
            after = bisect_right(ascending, address)
            end = ascending[after] if after < len(ascending) else address
            entry["type"] = types.variable(name, end - address)
        found[name] = entry
    # Volatility recognises the kernel by it; with its ending zero, as dwarf2json has it.
    banner = base64.b64encode(kernel.banner + b"\0").decode()
    found.setdefault("linux_banner", {"address": 0, "type": _VOID})["constant_data"] = banner
    return found


def _add_timekeeper(user_types: Json, symbols: Json) -> None:
    """Volatility takes the boot time from a symbol ``tk_core`` with a member ``timekeeper``.

    It is an anonymous structure, which BTF omits, up to 6.12; and a macro for the first element of
    timekeeper_data where that is an array (kernel/time/timekeeping.c).
    """
    if "timekeeper_data" in symbols and "tk_data" in user_types:
        core = symbols.setdefault("tk_core", {**symbols["timekeeper_data"]})
        core["type"] = {"kind": "struct", "name": "tk_data"}
    elif "tk_core" in symbols and "tk_data" not in user_types and "timekeeper" in user_types:
        # {seqcount_raw_spinlock_t seq; struct timekeeper timekeeper;}: the first holds a pointer to
        # its lock too with PREEMPT_RT (include/linux/seqlock.h); the second is 8-aligned.
        offset = -(-user_types.get("seqcount_raw_spinlock", {"size": 4})["size"] // 8) * 8
        field = {"type": {"kind": "struct", "name": "timekeeper"}, "offset": offset}
        size = offset + user_types["timekeeper"]["size"]
        user_types["tk_data"] = {"kind": "struct", "size": size, "fields": {"timekeeper": field}}
        symbols["tk_core"]["type"] = {"kind": "struct", "name": "tk_data"}
