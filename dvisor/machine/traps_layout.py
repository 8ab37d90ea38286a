"""Offsets in the memory that the library inside QEMU shares, from ``traps_protocol.toml``.

Only the standard library is used: ``native/build.py`` loads this file before dvisor is installed.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DESCRIPTION = Path(__file__).with_name("traps_protocol.toml")
_SCALARS = {"u32": 4, "u64": 8}
_STRUCT_ALIGNMENT = 64


@dataclass(frozen=True)
class Field:
    """One member. ``offset``: bytes from the struct's start; ``count``: 1 or an array's length."""

    name: str
    type: str
    offset: int
    count: int
    size: int
    meaning: str
    writer: str

    @property
    def stride(self) -> int:
        return self.size // self.count


@dataclass(frozen=True)
class Struct:
    """A struct of the description, laid out."""

    name: str
    size: int
    fields: dict[str, Field]

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]


@dataclass(frozen=True)
class Protocol:
    """The whole description."""

    version: int
    magic: int
    constants: dict[str, int]
    structs: dict[str, Struct]


def load(path: Path = DESCRIPTION) -> Protocol:
    """Read the description and lay its structs out."""
    description = tomllib.loads(path.read_text())
    structs: dict[str, Struct] = {}
    for name, fields in description["struct"].items():
        structs[name] = _laid_out(name, fields, structs)
    return Protocol(description["version"], description["magic"], description["constants"], structs)


def _laid_out(name: str, fields: dict[str, Any], known: dict[str, Struct]) -> Struct:
    at = 0
    found = {}
    for key, field in fields.items():
        kind = field["type"]
        alignment = _SCALARS.get(kind, _STRUCT_ALIGNMENT)
        count = field.get("count", 1)
        size = count * (_SCALARS[kind] if kind in _SCALARS else known[kind].size)
        at += -at % alignment
        found[key] = Field(key, kind, at, count, size, field.get("is", ""), field.get("writer", ""))
        at += size
    return Struct(name, at + -at % _STRUCT_ALIGNMENT, found)


def c_header(protocol: Protocol) -> str:
    """The description as C: constants, structs of atomics, and what the compiler must agree to."""
    lines = ["/* Made from traps_protocol.toml by native/build.py: do not edit. */", "#pragma once"]
    lines += ["#include <stdatomic.h>", "#include <stddef.h>", "#include <stdint.h>", ""]
    values = {"VERSION": protocol.version, "MAGIC": protocol.magic} | protocol.constants
    lines += [f"#define TRAPS_{name} {value:#x}u" for name, value in values.items()]
    for struct in protocol.structs.values():
        lines += ["", f"struct {struct.name} {{"]
        lines += [_c_field(field) for field in struct.fields.values()]
        lines += [f"}} __attribute__((aligned({_STRUCT_ALIGNMENT})));"]
        what = f"struct {struct.name}"
        lines += [f'_Static_assert(sizeof({what}) == {struct.size}, "size of {struct.name}");']
        lines += [
            f'_Static_assert(offsetof({what}, {field.name}) == {field.offset}, "{field.name}");'
            for field in struct.fields.values()
        ]
    return "\n".join(lines) + "\n"


def _c_field(field: Field) -> str:
    scalar = field.type in _SCALARS
    kind = f"_Atomic uint{_SCALARS[field.type] * 8}_t" if scalar else f"struct {field.type}"
    return f"\t{kind} {field.name}{f'[{field.count}]' if field.count > 1 else ''};"
