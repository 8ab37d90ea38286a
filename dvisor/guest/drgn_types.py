"""drgn's types, made from the guest's BTF when they are asked for.

Imported only where drgn is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import drgn
from drgn import Program, Qualifiers, Type, TypeKind, TypeKindSet

from dvisor.errors import GuestDataError
from dvisor.guest import btf as bt
from dvisor.guest.btf import Btf, Member
from dvisor.guest.kernel import Kernel

_KINDS = (
    (TypeKind.STRUCT, (bt.STRUCT,)),
    (TypeKind.UNION, (bt.UNION,)),
    (TypeKind.ENUM, (bt.ENUM, bt.ENUM64)),
    (TypeKind.TYPEDEF, (bt.TYPEDEF,)),
    (TypeKind.INT, (bt.INT,)),
    (TypeKind.BOOL, (bt.INT,)),
    (TypeKind.FLOAT, (bt.FLOAT,)),
)
_QUALIFIERS = {
    bt.CONST: Qualifiers.CONST,
    bt.VOLATILE: Qualifiers.VOLATILE,
    bt.RESTRICT: Qualifiers.RESTRICT,
}
_INTEGERS = {1: "char", 2: "short", 4: "int", 8: "long"}


class TypeFinder:
    """Callable that drgn asks for a type by kind and name; also gives types by BTF id."""

    def __init__(self, prog: Program, kernel: Kernel) -> None:
        self._prog = prog
        self._kernel = kernel
        self._known: dict[int, Type] = {}

    @property
    def _btf(self) -> Btf:
        return self._kernel.types  # decoded at the first question

    def __call__(
        self, _prog: Program, kinds: TypeKindSet, name: str, filename: str | None
    ) -> Type | None:
        """The type called ``name`` of one of ``kinds``; None if there is none."""
        if filename:  # BTF does not know where a type was defined
            return None
        for kind, numbers in _KINDS:
            type_id = self._btf.find(name, *numbers) if kind in kinds else None
            if type_id is not None:
                found = self.type(type_id)
                if found.kind == kind:
                    return found
        return None

    def type(self, type_id: int, depth: int = bt.MAX_CHAIN) -> Type:
        """The type with this BTF id."""
        found = self._known.get(type_id)
        if found is None:
            if not depth:
                raise GuestDataError("BTF types are nested too deep")
            found = self._known[type_id] = self._make(type_id, depth - 1)
        return found

    def _make(self, type_id: int, depth: int) -> Type:
        prog, btf = self._prog, self._btf
        kind = btf.kind(type_id)
        if kind == bt.PTR:
            return prog.pointer_type(self.type(btf.target(type_id), depth))
        if kind == bt.ARRAY:
            element, count = btf.array(type_id)
            # BTF has a flexible array member as one of no elements.
            return prog.array_type(self.type(element, depth), count or None)
        if kind == bt.TYPEDEF:
            return prog.typedef_type(btf.name(type_id), self.type(btf.target(type_id), depth))
        if kind in bt.TRANSPARENT:
            return self._qualified(kind, self.type(btf.target(type_id), depth))
        if kind in {bt.STRUCT, bt.UNION, bt.FWD}:
            return self._compound(kind, type_id)
        if kind in {bt.ENUM, bt.ENUM64}:
            return self._enumeration(type_id)
        if kind in {bt.FUNC_PROTO, bt.FUNC}:
            return self._function(type_id if kind == bt.FUNC_PROTO else btf.target(type_id), depth)
        return self._number(kind, type_id)

    def _number(self, kind: int, type_id: int) -> Type:
        prog, name, size = self._prog, self._btf.name(type_id), self._btf.size(type_id)
        if kind == bt.FLOAT:
            return prog.float_type(name, size)
        if kind != bt.INT:
            return prog.void_type()
        if name == "_Bool":
            return prog.bool_type(name, size)
        # BTF has char as unsigned; the x86-64 ABI has it signed.
        return prog.int_type(name, size, self._btf.signed(type_id) or name == "char")

    def _qualified(self, kind: int, target: Type) -> Type:
        return target.qualified(target.qualifiers | _QUALIFIERS.get(kind, Qualifiers.NONE))

    def _compound(self, kind: int, type_id: int) -> Type:
        btf = self._btf
        name = btf.name(type_id) or None
        union = kind == bt.UNION or (kind == bt.FWD and btf.is_union_forward(type_id))
        make = self._prog.union_type if union else self._prog.struct_type
        if kind == bt.FWD:
            return make(name)
        return make(name, btf.size(type_id), list(self._members(type_id)))

    def _members(self, type_id: int) -> Iterator[drgn.TypeMember]:
        for name, member in self._btf.members(type_id):
            yield drgn.TypeMember(self._later(member), name or None, member.bit_offset)

    def _later(self, member: Member) -> Callable[[], Type | drgn.Object]:
        """A member's type is made at its first use: it may refer to the structure itself."""
        if not member.bit_size:
            return lambda: self.type(member.type_id)
        return lambda: drgn.Object(
            self._prog, self.type(member.type_id), bit_field_size=member.bit_size
        )

    def _enumeration(self, type_id: int) -> Type:
        prog, btf = self._prog, self._btf
        size, signed = btf.size(type_id), btf.signed(type_id)
        name = _INTEGERS.get(size, "int")
        number = prog.int_type(name if signed else f"unsigned {name}", size, signed)
        values = [drgn.TypeEnumerator(*each) for each in btf.enumerators(type_id)]
        return prog.enum_type(btf.name(type_id) or None, number, values)

    def _function(self, type_id: int, depth: int) -> Type:
        parameters = list(self._btf.parameters(type_id))
        variadic = bool(parameters) and not any(parameters[-1])  # nameless, of type void
        named = [
            drgn.TypeParameter(partial(self.type, each), name or None)
            for name, each in parameters[: len(parameters) - variadic]
        ]
        result = self.type(self._btf.target(type_id), depth)
        return self._prog.function_type(result, named, variadic)
