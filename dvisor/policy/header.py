"""The table as a C header, for the native side: numbers to flags, arguments and deciders."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from dvisor.policy.prototype import Argument, Direction
from dvisor.policy.syscalls import By, Commands, Decider, Document, SystemCall, Waits, Where

VERSION = 1  # of the layout; raise it when a member changes

_PREAMBLE = """\
/* Made by `python -m dvisor.policy.syscalls --c` from dvisor/policy/syscalls.toml: do not edit. */
#ifndef DVISOR_SYSCALLS_H
#define DVISOR_SYSCALLS_H

#include <stdint.h>

"""
_STRUCTS = """\

/* An argument. length_by: the argument that gives the number of elements, or -1: it is limit.
 * beyond: the errno past limit, or 0: only limit elements are moved. */
struct dv_argument {
	const char *name;
	uint32_t element_bytes; /* 0: a number */
	uint32_t limit;         /* 0: one element */
	uint8_t kind;           /* DV_KIND_* */
	uint8_t direction;      /* DV_VALUE, DV_IN, DV_OUT, DV_INOUT */
	uint8_t flags;          /* DV_NULLABLE, DV_LENGTH_POINTED, DV_NESTED, DV_VARIABLE */
	int8_t length_by;
	uint8_t beyond;
};

/* What decides. argument, base: indices, or -1. */
struct dv_decider {
	uint8_t by; /* DV_BY_* */
	int8_t argument;
	int8_t base;
};

/* An exception: if ((args[argument] & mask) == value), then where and error. */
struct dv_case {
	uint64_t mask;
	uint64_t value;
	uint8_t argument;
	uint8_t where;
	uint8_t error;
	uint8_t if_proxied; /* only where the call would be proxied */
};

struct dv_syscall {
	const char *name; /* NULL: no such call */
	const struct dv_argument *arguments;
	const struct dv_decider *deciders;
	const struct dv_case *cases;
	uint16_t flags; /* DV_FOLLOW, DV_RESTARTS, DV_INTERRUPTS, DV_MIXED_BOTH */
	uint8_t argument_count;
	uint8_t decider_count;
	uint8_t case_count;
	uint8_t where; /* DV_LOCAL, ... */
	uint8_t gives; /* DV_GIVES_* */
	int8_t fills;  /* the array that a count is of, or -1 */
	uint8_t error;            /* where == DV_REFUSED */
	uint8_t mixed_error;      /* deciders of different sides; 0: see DV_MIXED_BOTH */
	uint8_t if_proxied_error; /* a proxied object is refused with it; 0: it is not */
};

/* A sub-command of a proxied descriptor. level: of socket options only. error: refused with it. */
struct dv_command {
	uint32_t level;
	uint32_t number;
	struct dv_argument value; /* name NULL: none */
	uint8_t gives;
	uint8_t error;
};

"""
FLAGS = {
    "DV_NULLABLE": 1,
    "DV_LENGTH_POINTED": 2,
    "DV_NESTED": 4,
    "DV_VARIABLE": 8,
    "DV_FOLLOW": 1,
    "DV_RESTARTS": 2,
    "DV_INTERRUPTS": 4,
    "DV_MIXED_BOTH": 8,
}
_CALL_WAITS = {Waits.NEVER: 0, Waits.RESTARTS: 2, Waits.INTERRUPTS: 4}


def text(document: Document) -> str:
    """The header. It needs C11 and <stdint.h>, and defines only static tables."""
    calls = sorted(
        (call for family in document.families for call in family.calls),
        key=lambda call: call.number,
    )
    taken = [argument for call in calls for argument in call.arguments]
    rows = [row for commands in document.commands.values() for row in commands.rows.values()]
    taken += [row.value for row in rows if row.value]
    kinds = sorted({argument.kind for argument in taken})
    results = sorted({call.gives for call in calls})
    parts = [_PREAMBLE, f"#define DV_SYSCALLS_VERSION {VERSION}\n\n"]
    parts.append(_enum("DV_", (side.value for side in Where)))
    parts.append(_enum("DV_", (direction.value for direction in Direction)))
    parts.append(_enum("DV_BY_", (by.value for by in By)))
    parts.append(_enum("DV_GIVES_", results))
    parts.append(_enum("DV_KIND_", kinds))
    parts += [f"#define {name} {value}\n" for name, value in FLAGS.items()]
    parts.append(_STRUCTS)
    for call in calls:
        parts += _arrays(document, call)
    parts.append("\nstatic const struct dv_syscall dv_syscalls[] = {\n")
    parts += [_row(call) for call in calls]
    parts.append("};\n")
    for name, commands in document.commands.items():
        parts += _commands(document, name, commands)
    parts.append("\n#endif\n")
    return "".join(parts)


def _commands(document: Document, name: str, commands: Commands) -> Iterator[str]:
    unknown = _errno(commands.unknown_errno)
    yield f"\n#define DV_{name.upper()}_UNKNOWN_ERROR {unknown}\n"
    yield f"static const struct dv_command dv_{name}_commands[] = {{\n"
    for row in commands.rows.values():
        value = _argument(document, None, row.value) if row.value else "{0}"
        level = row.key[0] if len(row.key) > 1 else 0
        gives = _word("DV_GIVES_", row.gives)
        yield f"\t{{{level}, {row.key[-1]:#x}, {value}, {gives}, {_errno(row.errno)}}},"
        yield f" /* {row.name} */\n"
    yield "};\n"


def _enum(prefix: str, names: Iterable[str]) -> str:
    return "enum { " + ", ".join(_word(prefix, name) for name in names) + " };\n"


def _word(prefix: str, name: str) -> str:
    return prefix + name.upper().replace(" ", "_")


def _arrays(document: Document, call: SystemCall) -> Iterator[str]:
    if call.arguments:
        rows = ", ".join(_argument(document, call, each) for each in call.arguments)
        yield f"static const struct dv_argument dv_arguments_{call.name}[] = {{{rows}}};\n"
    if call.disposition.deciders:
        rows = ", ".join(_decider(call, each) for each in call.disposition.deciders)
        yield f"static const struct dv_decider dv_deciders_{call.name}[] = {{{rows}}};\n"
    if call.cases:
        rows = ", ".join(
            f"{{{case.mask:#x}, {case.value:#x}, {_index(call, case.argument)},"
            f" {_word('DV_', case.disposition.where.value)}, {_errno(case.disposition.errno)},"
            f" {int(case.if_proxied)}}}"
            for case in call.cases
        )
        yield f"static const struct dv_case dv_cases_{call.name}[] = {{{rows}}};\n"


def _argument(document: Document, call: SystemCall | None, argument: Argument) -> str:
    kind = document.types.get(argument.kind) if argument.element_bytes else None
    length = argument.length
    flags = int(argument.nullable)
    flags |= FLAGS["DV_LENGTH_POINTED"] * bool(length and length.pointed)
    flags |= FLAGS["DV_NESTED"] * bool(kind and kind.nested)
    flags |= FLAGS["DV_VARIABLE"] * bool(kind and kind.variable)
    beyond = None if length is None or length.beyond == "short" else length.beyond
    return (
        f'{{"{argument.name}", {argument.element_bytes}, {length.limit if length else 0},'
        f" {_word('DV_KIND_', argument.kind)}, {_word('DV_', argument.direction.value)},"
        f" {flags}, {_index(call, length.by if length else None)}, {_errno(beyond)}}}"
    )


def _decider(call: SystemCall, decider: Decider) -> str:
    argument = _index(call, decider.argument or None)
    return f"{{{_word('DV_BY_', decider.by.value)}, {argument}, {_index(call, decider.base)}}}"


def _row(call: SystemCall) -> str:
    flags = _CALL_WAITS[call.waits] | FLAGS["DV_FOLLOW"] * call.follow
    flags |= FLAGS["DV_MIXED_BOTH"] * (call.mixed == "both")
    arrays = [
        f"dv_{what}_{call.name}" if having else "0"
        for what, having in (
            ("arguments", call.arguments),
            ("deciders", call.disposition.deciders),
            ("cases", call.cases),
        )
    ]
    mixed = None if call.mixed == "both" else call.mixed
    return (
        f'\t[{call.number}] = {{"{call.name}", {", ".join(arrays)}, {flags},'
        f" {len(call.arguments)}, {len(call.disposition.deciders)}, {len(call.cases)},"
        f" {_word('DV_', call.disposition.where.value)}, {_word('DV_GIVES_', call.gives)},"
        f" {_index(call, call.fills)}, {_errno(call.disposition.errno)}, {_errno(mixed)},"
        f" {_errno(call.if_proxied)}}},\n"
    )


def _index(call: SystemCall | None, name: str | None) -> int:
    if call is None or name is None:
        return -1
    return [each.name for each in call.arguments].index(name)


def _errno(name: str | None) -> int:
    return int(getattr(errno, name)) if name else 0
