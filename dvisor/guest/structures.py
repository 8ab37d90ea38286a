"""Structures of the kernel, with the place of each member, as the guest's own types tell."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from dvisor.errors import NotFoundError
from dvisor.guest import btf
from dvisor.guest.btf import Btf
from dvisor.guest.kernel import Kernel
from dvisor.guest.module_symbols import module_types

MAX_DEPTH = 16
MAX_MEMBERS = 20_000
"""Members shown of one structure, those of anonymous ones inside it included."""

_COMPOSITE = {btf.STRUCT, btf.UNION}
_QUALIFIERS = {btf.CONST: "const", btf.VOLATILE: "volatile"}


class StructureMember(msgspec.Struct, frozen=True):
    """One member, in the order of declaration."""

    declaration: str
    """In C, without the semicolon; ``{...}`` stands for what has no type name. Where that is a
    struct or union itself, its members follow, one deeper."""
    offset: int
    """In bytes from the start of the outermost structure."""
    size_bytes: int
    bit_offset: int
    """Of a bit-field, in the byte at ``offset``."""
    bits: int
    """Width of a bit-field; 0 for all else."""
    depth: int
    """How many structures without a name it is inside of."""


class Structure(msgspec.Struct, frozen=True):
    """A struct or union."""

    name: str
    """With its keyword."""
    size_bytes: int
    members: list[StructureMember]


def read_structure(kernel: Kernel, name: str) -> Structure:
    """``struct NAME``, ``union NAME`` or a typedef of one, of the kernel or else of a module.

    NotFoundError.
    """
    plain = name.rpartition(" ")[2]
    try:
        return structure(kernel.types, plain)
    except NotFoundError:
        for types in module_types(kernel).values():
            if types.find(plain, btf.STRUCT, btf.UNION) is not None:
                return structure(types, plain)
        raise


def structure(types: Btf, name: str) -> Structure:
    """The same out of one set of types."""
    type_id = types.structure(name)
    members: list[StructureMember] = []
    for member in _members(types, type_id, 0, 0):
        members.append(member)
        if len(members) >= MAX_MEMBERS:
            break
    keyword = "union" if types.kind(type_id) == btf.UNION else "struct"
    return Structure(f"{keyword} {types.name(type_id)}".strip(), types.size(type_id), members)


def _members(types: Btf, type_id: int, base_bits: int, depth: int) -> Iterator[StructureMember]:
    for name, member in types.members(type_id):
        bits = base_bits + member.bit_offset
        yield StructureMember(
            declaration(types, member.type_id, name),
            bits // 8,
            types.size(member.type_id),
            bits % 8 if member.bit_size else 0,
            member.bit_size,
            depth,
        )
        inner = types.resolve(member.type_id)
        if not types.name(inner) and depth < MAX_DEPTH and types.kind(inner) in _COMPOSITE:
            yield from _members(types, inner, bits, depth + 1)


def declaration(types: Btf, type_id: int, name: str, depth: int = MAX_DEPTH) -> str:
    """``name`` declared as C writes it: ``struct list_head *name[2]``. Parameters of functions
    are left out."""
    kind = types.kind(type_id)
    if depth == 0:
        return f"... {name}"
    if kind == btf.PTR:
        target = types.target(type_id)
        through = f"*{name}"
        if types.kind(target) in {btf.ARRAY, btf.FUNC_PROTO}:
            through = f"({through})"
        return declaration(types, target, through, depth - 1)
    if kind == btf.ARRAY:
        element, count = types.array(type_id)
        return declaration(types, element, f"{name}[{count}]", depth - 1)
    if kind == btf.FUNC_PROTO:
        return declaration(types, types.target(type_id), f"{name}(...)", depth - 1)
    if kind in _QUALIFIERS:
        target = types.target(type_id)
        if types.kind(target) == btf.PTR:  # the pointer itself is const
            spaced = f"{_QUALIFIERS[kind]} {name}".rstrip()
            return declaration(types, target, spaced, depth - 1)
        return f"{_QUALIFIERS[kind]} {declaration(types, target, name, depth - 1)}"
    if kind in {btf.RESTRICT, btf.TYPE_TAG}:
        return declaration(types, types.target(type_id), name, depth - 1)
    return f"{_base(types, type_id, kind)} {name}".rstrip()


def _base(types: Btf, type_id: int, kind: int) -> str:
    keyword = {btf.STRUCT: "struct", btf.FWD: "struct", btf.UNION: "union"}
    keyword |= {btf.ENUM: "enum", btf.ENUM64: "enum"}
    return f"{keyword.get(kind, '')} {types.name(type_id) or '{...}'}".strip()
