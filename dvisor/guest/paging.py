"""x86-64 page tables, 4 and 5 levels, walked in guest physical memory.

Source: Intel SDM vol. 3A, 4.5. Tables are guest data: every entry may be a lie, so an entry that
leaves RAM is an error of the walk, and a walk is never longer than the number of levels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dvisor.addresses import GuestPhysical, GuestVirtual
from dvisor.errors import GuestMemoryError

PRESENT, WRITABLE, USER, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
NO_EXECUTE = 1 << 63
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
PTI_USER_BIT = 1 << 12
"""Under page-table isolation the kernel's top table is two pages aligned to their size, and this
bit of CR3 selects the second, the user's (arch/x86/entry/calling.h, PTI_USER_PGTABLE_BIT).
Without isolation it is an ordinary bit of the address."""

ReadPhysical = Callable[[GuestPhysical, int], bytes]


class Mapping(NamedTuple):
    """One translation: ``size`` bytes of page from ``virtual`` stand at ``physical``."""

    virtual: GuestVirtual
    physical: GuestPhysical
    size: int
    writable: bool
    user: bool
    executable: bool


def shifts(levels: int) -> tuple[int, ...]:
    """Bit position of each level's index, from the root: 48 (5 levels only), 39, 30, 21, 12."""
    return (48, 39, 30, 21, 12)[5 - levels :]


def translate(read: ReadPhysical, root: int, levels: int, address: int) -> Mapping:
    """The page that ``address`` is in; GuestMemoryError where nothing is mapped."""
    table = root & ADDRESS_MASK
    writable = user = executable = True
    for shift in shifts(levels):
        index = address >> shift & 0x1FF
        (entry,) = struct.unpack("<Q", read(GuestPhysical(table + index * 8), 8))
        if not entry & PRESENT:
            break
        writable = writable and bool(entry & WRITABLE)
        user = user and bool(entry & USER)
        executable = executable and not entry & NO_EXECUTE
        if shift == 12 or (shift <= 30 and entry & LARGE):
            size = 1 << shift
            physical = GuestPhysical(entry & ADDRESS_MASK & -size)
            virtual = GuestVirtual(address & -size)
            return Mapping(virtual, physical, size, writable, user, executable)
        table = entry & ADDRESS_MASK
    raise GuestMemoryError(f"no page is mapped at {address:#x}", address)


def large_pages(read: ReadPhysical, root: int, levels: int, gib: int) -> Iterator[tuple[int, int]]:
    """The (virtual, physical) 2 MiB slots in use in the GiB that starts at ``gib``, ascending.

    A slot that is split into 4 KiB pages counts with the address that its first present page
    implies. Nothing is yielded where the GiB has no table.
    """
    table = root & ADDRESS_MASK
    for shift in shifts(levels)[:-2]:
        (entry,) = struct.unpack("<Q", read(GuestPhysical(table + (gib >> shift & 0x1FF) * 8), 8))
        if not entry & PRESENT or (shift == 30 and entry & LARGE):
            return
        table = entry & ADDRESS_MASK
    for index, entry in enumerate(struct.unpack("<512Q", read(GuestPhysical(table), 4096))):
        if not entry & PRESENT:
            continue
        virtual = gib + (index << 21)
        if entry & LARGE:
            yield virtual, entry & ADDRESS_MASK & -(1 << 21)
            continue
        try:
            pages = struct.unpack("<512Q", read(GuestPhysical(entry & ADDRESS_MASK), 4096))
        except GuestMemoryError:
            continue
        first = next((i for i, page in enumerate(pages) if page & PRESENT), None)
        if first is not None:
            yield virtual, (pages[first] & ADDRESS_MASK) - first * 4096
