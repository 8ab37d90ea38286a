"""Where RAM lies in guest physical space: the rule of a PC board, and reading across its blocks.

Pure arithmetic. A *section* places one run of a RAM object at a guest physical address.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dvisor.addresses import GuestPhysical
from dvisor.errors import GuestMemoryError, UnsupportedError
from dvisor.machine.engine import RamBlock

MIB = 1 << 20
ABOVE_4G = 1 << 32

# The legacy VGA window hides the RAM behind it ("vga-lowmem" in `info mtree`).
VGA_WINDOW = (0xA0000, 0xC0000)


@dataclass(frozen=True, slots=True)
class RamSection:
    """``size`` bytes at ``gpa`` are the bytes from ``offset`` on of the RAM object ``backend``."""

    gpa: int
    size: int
    backend: str = ""
    offset: int = 0

    @property
    def end(self) -> int:
        return self.gpa + self.size


def low_ram_limit(board: str, size: int, max_below_4g: int | None = None) -> int:
    """Bytes of RAM that ``board`` (q35, pc, microvm) places below 4 GiB; the rest starts there.

    Source: QEMU hw/i386/pc_q35.c (pc_q35_init), pc_piix.c (pc_init1), microvm.c
    (microvm_memory_init). ``max_below_4g`` is the machine option max-ram-below-4g.
    """
    if board == "q35":
        limit = 0x80000000 if size >= 0xB0000000 else 0xB0000000
        limit = min(limit, max_below_4g or ABOVE_4G)
    elif board == "pc":
        limit = max_below_4g or 0xE0000000
        if size >= limit:
            limit = min(limit, 0xC0000000)
    elif board == "microvm":
        limit = 0xC0000000
    else:
        raise UnsupportedError(
            f"where the board {board!r} has its RAM is not known here (known: q35, pc, microvm): "
            "attach by a QMP socket, which tells it"
        )
    return min(size, limit)


def board_sections(
    board: str, size: int, max_below_4g: int | None = None
) -> tuple[RamSection, ...]:
    """The sections of one RAM object of ``size`` bytes on ``board``, by ascending gpa."""
    low = low_ram_limit(board, size, max_below_4g)
    if board == "microvm":  # no VGA, so no window
        sections = [RamSection(0, low)]
    else:
        hole, hole_end = VGA_WINDOW
        sections = [RamSection(0, min(low, hole))]
        if low > hole_end:
            sections.append(RamSection(hole_end, low - hole_end, offset=hole_end))
    if size > low:
        sections.append(RamSection(ABOVE_4G, size - low, offset=low))
    return tuple(sections)


class RamMap:
    """RAM blocks as one address space, in which a read may cross from one block to the next.

    ``fetch(i, at, size)`` reads from block ``i``, from its byte ``at`` on, where it has no buffer.
    """

    def __init__(self, blocks: Sequence[RamBlock], fetch: Callable[[int, int, int], bytes]) -> None:
        self.blocks = tuple(blocks)
        self._fetch = fetch
        self._starts = [block.gpa for block in self.blocks]

    def read(self, gpa: GuestPhysical, size: int) -> bytes:
        """``size`` bytes at ``gpa``, or GuestMemoryError naming the first byte that is no RAM."""
        index = bisect_right(self._starts, gpa) - 1
        if index >= 0 and size >= 0:
            block = self.blocks[index]
            at = gpa - block.gpa
            if at + size <= block.size:
                if block.buffer is None:
                    return self._fetch(index, at, size)
                start = block.offset + at
                return bytes(block.buffer[start : start + size])
        return self._read_across(gpa, size)

    def _read_across(self, gpa: int, size: int) -> bytes:
        pieces = [
            self.read(GuestPhysical(start), length) for start, length in self._split(gpa, size)
        ]
        return b"".join(pieces)

    def _split(self, gpa: int, size: int) -> list[tuple[int, int]]:
        """Cut a range at block borders; checked whole before the first byte is read."""
        if size < 0:
            raise GuestMemoryError(f"a read of {size} bytes at {gpa:#x} makes no sense", gpa)
        parts = []
        end = gpa + size
        while gpa < end:
            index = bisect_right(self._starts, gpa) - 1
            if index < 0 or gpa >= self.blocks[index].end:
                raise GuestMemoryError(f"guest physical {gpa:#x} is not RAM", gpa)
            stop = min(end, self.blocks[index].end)
            parts.append((gpa, stop - gpa))
            gpa = stop
        return parts
