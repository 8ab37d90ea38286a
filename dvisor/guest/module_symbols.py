"""Symbols and types that modules brought along."""

from __future__ import annotations

import struct
from typing import NamedTuple

from dvisor.errors import GuestDataError
from dvisor.guest.btf import Btf
from dvisor.guest.kernel import Kernel
from dvisor.guest.lists import Problem, xarray_entries
from dvisor.guest.modules import Module

MAX_SYMBOLS = 1 << 20
MAX_STRING_BYTES = 32 << 20
MAX_BTFS = 1 << 16

_ELF_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, shndx, value, size


class ModuleSymbol(NamedTuple):
    """One symbol of a module's own table."""

    name: str
    type: str
    """The letter that nm prints, in lower case even where the symbol is exported."""
    address: int
    size_bytes: int
    """0 where the assembler gave none."""


def module_symbols(kernel: Kernel, module: Module) -> list[ModuleSymbol]:
    """The module's symbols by address, those that /proc/kallsyms lists; GuestDataError."""
    memory = kernel.memory
    (tables,) = kernel.record("module", "kallsyms").read(module.address)
    symtab, count, strtab, typetab = kernel.record(
        "mod_kallsyms", "symtab", "num_symtab", "strtab", "typetab?"
    ).read(tables)
    if not 0 <= count <= MAX_SYMBOLS:
        raise GuestDataError(f"module {module.name} claims {count} symbols")
    entries = list(_ELF_SYMBOL.iter_unpack(memory.read(symtab, count * _ELF_SYMBOL.size)))
    letters = memory.read(typetab, count) if typetab else b"?" * count
    last = max((entry[0] for entry in entries), default=0)
    if last > MAX_STRING_BYTES:
        raise GuestDataError(f"the symbol names of module {module.name} are {last} bytes long")
    strings = memory.read(strtab, last) + memory.string(strtab + last, 512) + b"\0"
    found = []
    for (name, _, _, _, value, size), letter in zip(entries, letters, strict=True):
        text = strings[name : strings.index(0, name)]
        if text:
            decoded = text.decode("utf-8", "backslashreplace")
            found.append(ModuleSymbol(decoded, chr(letter).lower(), value, size))
    return sorted(found, key=lambda symbol: symbol.address)


def module_types(kernel: Kernel, problem: Problem | None = None) -> dict[str, Btf]:
    """Each module's BTF by the module's name, split on ``kernel.types``.

    ``problem`` is told what could not be read. Decoded at first use, so this costs copies only.
    """
    report = problem or (lambda text: None)
    found: dict[str, Btf] = {}
    for name, raw in module_btf(kernel, report).items():
        try:
            found[name] = Btf(raw, kernel.types)
        except GuestDataError as error:
            report(f"the types of module {name} cannot be read: {error}")
    return found


def module_btf(kernel: Kernel, problem: Problem) -> dict[str, bytes]:
    """The same, as the bytes of /sys/kernel/btf/MODULE."""
    found: dict[str, bytes] = {}
    for address in _btf_objects(kernel, problem):
        try:
            one = _one_btf(kernel, address)
        except GuestDataError as error:
            problem(f"the types of a module cannot be read: {error}")
            continue
        if one is not None:
            found[one[0]] = one[1]
    return found


def _btf_objects(kernel: Kernel, problem: Problem) -> list[int]:
    """Addresses of all struct btf, vmlinux's and those of BPF programs among them (btf_idr)."""
    symbol = kernel.find_symbol("btf_idr")
    if symbol is None:
        return []
    head = kernel.memory.u64(symbol + kernel.offset("idr", "idr_rt.xa_head"))
    slots, shift = kernel.offset("xa_node", "slots"), kernel.offset("xa_node", "shift")
    entries = xarray_entries(kernel.memory, head, slots, shift, problem, "types", MAX_BTFS)
    return [address for _, address in entries]


def _one_btf(kernel: Kernel, address: int) -> tuple[str, bytes] | None:
    """(module, its BTF), or None for the BTF of the kernel itself or of a BPF program."""
    data, size, base, first_id, first_string, name, is_kernel = kernel.record(
        "btf",
        "data",
        "data_size",
        "base_btf",
        "start_id",
        "start_str_off",
        "name[]",
        "kernel_btf",
    ).read(address)
    if not is_kernel or not base:
        return None
    name = name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
    types = kernel.types
    if (first_id, first_string) != (types.end_id, types.end_string):
        raise GuestDataError(
            f"the types of {name} go on from id {first_id}, string {first_string}, "
            f"vmlinux's end at {types.end_id}, {types.end_string}"
        )
    return name, kernel.memory.read(data, size)
