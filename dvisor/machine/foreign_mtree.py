"""RAM sections out of HMP ``info mtree -f``: QEMU's own word on where guest RAM lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

from dvisor.errors import EngineError
from dvisor.machine.layout import RamSection

_RANGE = re.compile(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio (-?\d+), ([a-z/-]+)\): "
    r"(.*?)(?: @([0-9a-f]{16}))?(?: KVM)?$"
)
_MEMDEV = re.compile(r"^\s*memory backend: (.+)$")
_DEVICE = re.compile(r"^\s*Memory device \[([a-z-]+)\]")
_DEVICE_MEMDEV = re.compile(r"^\s*memdev: (.+)$")
# Firmware lays ROM over RAM here, or makes the RAM read-only, and takes it away again (the PAM
# registers): the RAM object underneath stays the same, and is what Linux sees.
_SHADOW_START, _SHADOW_END = 0xC0000, 0x100000
MAX_SECTIONS = 4096


def parse_memdevs(info_memdev: str, info_memory_devices: str) -> frozenset[str]:
    """Names of the backends that hold RAM: those of ``info memdev`` that are not persistent."""
    names = {m[1].strip() for line in info_memdev.splitlines() if (m := _MEMDEV.match(line))}
    kind = ""
    for line in info_memory_devices.splitlines():
        if device := _DEVICE.match(line):
            kind = device[1]
        elif (memdev := _DEVICE_MEMDEV.match(line)) and kind in {"nvdimm", "sgx-epc"}:
            names.discard(memdev[1].strip().removeprefix("/objects/"))
    return frozenset(names)


def parse_flatview(text: str, memdevs: Set[str]) -> tuple[RamSection, ...]:
    """The RAM in the flat view of the address space "memory", by gpa, neighbours joined.

    Device memory (VGA, flash, ROM files, PCI BARs) is left out: only objects named in ``memdevs``
    count, and of these not what a PCI BAR maps (priority 1), as ivshmem does.
    """
    sections: list[RamSection] = []
    for found in _memory_ranges(text, memdevs):
        if len(sections) >= MAX_SECTIONS:
            raise EngineError(f"QEMU tells of more than {MAX_SECTIONS} RAM sections: not a PC")
        before = sections[-1] if sections else None
        section = _unshadowed(before, found) if before else found
        if before and _same_object(before, section) and before.end == section.gpa:
            size = section.end - before.gpa
            sections[-1] = RamSection(before.gpa, size, before.backend, before.offset)
        else:
            sections.append(section)
    if not sections:
        raise EngineError(
            f"QEMU's `info mtree -f` shows no RAM of the backends {sorted(memdevs)}: "
            "it is too old (before 5.0) or its machine has no RAM"
        )
    return tuple(sections)


def _memory_ranges(text: str, memdevs: Set[str]) -> Iterator[RamSection]:
    ours = False
    for line in text.splitlines():
        if line.startswith("FlatView #"):
            ours = False
        elif line.startswith(' AS "memory", root: '):
            ours = True
        elif ours and (match := _RANGE.match(line)):
            first, last, priority, kind, name, offset = match.groups()
            name = name.removeprefix("/objects/")
            if kind in {"ram", "rom"} and name in memdevs and priority == "0":
                gpa = int(first, 16)
                yield RamSection(gpa, int(last, 16) + 1 - gpa, name, int(offset or "0", 16))


def _unshadowed(before: RamSection, section: RamSection) -> RamSection:
    """``section`` with the RAM that firmware hides at this moment added in front of it."""
    start = max(before.end, _SHADOW_START)
    if start < section.gpa <= _SHADOW_END and _same_object(before, section):
        hidden = section.gpa - start
        return RamSection(start, section.size + hidden, section.backend, section.offset - hidden)
    return section


def _same_object(first: RamSection, then: RamSection) -> bool:
    return first.backend == then.backend and first.gpa - first.offset == then.gpa - then.offset
