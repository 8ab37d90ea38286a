"""Symbols as people write them: names, patterns, addresses, and sums of them."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import msgspec

from dvisor.addresses import MASK64
from dvisor.errors import GuestDataError, NotFoundError, UsageError
from dvisor.guest.kallsyms import TEXT_START
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.module_symbols import module_symbols
from dvisor.guest.modules import read_modules
from dvisor.guest.resolve import Resolver


class Symbol(msgspec.Struct, frozen=True):
    """A symbol, or an address that lies in one."""

    name: str
    address: int
    """For an absolute per-CPU symbol, its offset in each CPU's area."""
    offset: int
    """Of the address asked for, from ``name``; 0 for a name."""
    size_bytes: int
    """Up to the next symbol; 0 where that is not known."""
    type: str
    """The letter that nm prints: t code, d data, r read-only, b zeroed, a absolute; in upper case
    where it is global. ``?`` where an address was asked for."""
    module: str
    """Empty for the kernel itself, ``bpf`` for a BPF program."""


def find_symbols(kernel: Kernel, wanted: str) -> Listing[Symbol]:
    """What ``wanted`` stands for: an address (``0x...``), a name, or a pattern (``tcp_*``).

    A name may have several addresses, of static functions or in modules. NotFoundError.
    """
    if wanted[:2].lower() == "0x":
        found = Listing([at_address(kernel, number(wanted))])
    else:
        found = Listing()
        found.extend(_in_image(kernel, wanted))
        found.extend(_in_modules(kernel, wanted, found))
    if not found:
        raise NotFoundError(f"this kernel has no symbol {wanted}, nor have its modules")
    return found


def at_address(kernel: Kernel, address: int) -> Symbol:
    """The symbol that ``address`` lies in; NotFoundError."""
    found = Resolver(kernel).find(address)
    if found is None or not found.name:
        raise NotFoundError(f"no symbol of the kernel or a module is at {address:#x}")
    return Symbol(found.name, address, found.distance, found.size_bytes, "?", found.module)


def address_of(kernel: Kernel, expression: str) -> int:
    """The address that ``0xffff...``, ``init_task`` or ``init_task+0x10`` stands for.

    NotFoundError for an unknown name; UsageError for one with several addresses.
    """
    name, plus, distance = expression.replace(" ", "").partition("+")
    if name[:1].isdigit():
        start = number(name)
    else:
        places = sorted({symbol.address for symbol in find_symbols(kernel, name)})
        if len(places) > 1:
            listed = ", ".join(f"{place:#x}" for place in places[:8])
            raise UsageError(f"{name} is at several addresses, give one: {listed}")
        start = places[0]
    return (start + (number(distance) if plus else 0)) & MASK64


def number(text: str) -> int:
    """A number as C writes it: ``4096``, ``0x1000``; UsageError."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value <= MASK64:
        raise UsageError(f"{text!r} is no number of 64 bits: write 4096 or 0x1000")
    return value


def _matches(name: str, wanted: str, pattern: bool) -> bool:
    return fnmatchcase(name, wanted) if pattern else name == wanted


def _is_pattern(wanted: str) -> bool:
    return any(sign in wanted for sign in "*?[")


def _in_image(kernel: Kernel, wanted: str) -> Iterator[Symbol]:
    symbols = kernel.symbols
    if _is_pattern(wanted):
        every = zip(symbols.names, symbols.addresses, strict=True)
        found = [(full, at) for full, at in every if fnmatchcase(full[1:], wanted)]
    else:
        found = [(letter + wanted, at) for letter, at in symbols.all_named(wanted)]
    for full, address in found:
        size = symbols.after(address) - address if address >= TEXT_START else 0
        yield Symbol(full[1:], address, 0, size, full[0], "")


def _in_modules(kernel: Kernel, wanted: str, listing: Listing[Symbol]) -> Iterator[Symbol]:
    pattern = _is_pattern(wanted)
    for module in read_modules(kernel):
        try:
            symbols = module_symbols(kernel, module)
        except GuestDataError as error:
            listing.problem(f"the symbols of module {module.name} cannot be read: {error}")
            continue
        for name, letter, address, size in symbols:
            if _matches(name, wanted, pattern):
                yield Symbol(name, address, 0, size, letter, module.name)
