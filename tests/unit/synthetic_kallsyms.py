"""Kernel images with a symbol table, in every layout that scripts/kallsyms.c has written."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from dvisor.guest.kallsyms import Image

VIRTUAL = 0xFFFF_FFFF_9A00_0000
HEAD_BYTES = 0x3000
"""What stands in the image before the tables."""


@dataclass(frozen=True)
class Layout:
    new_order: bool = True
    base: bool = True
    absolute_percpu: bool = False
    seqs: bool = True
    alignment: int = 8

    def __str__(self) -> str:
        parts = ["new" if self.new_order else "old", f"aligned{self.alignment}"]
        parts += ["based" if self.base else "place-relative"]
        parts += ["percpu"] * self.absolute_percpu + ["seqs"] * self.seqs
        return "-".join(parts)


LAYOUTS = [
    Layout(new_order=False, absolute_percpu=True, seqs=False),  # up to 6.1
    Layout(new_order=False, absolute_percpu=True, seqs=True),  # 6.1 stable, 6.2
    Layout(new_order=False, absolute_percpu=False, seqs=True),
    Layout(absolute_percpu=True),  # 6.4 to 6.14
    Layout(),
    Layout(seqs=False),
    Layout(base=False),  # 6.19
    Layout(base=False, alignment=4),
    Layout(alignment=4),
]

Symbol = tuple[str, int]
"""(type letter and name, address)"""


def some_symbols(count: int, seed: int, percpu: bool = False) -> list[Symbol]:
    """Ascending by address, with names short, long (two bytes of length) and alike."""
    chance = random.Random(seed)
    found: list[Symbol] = []
    if percpu:
        found += [(f"Dper_cpu_{i}", 0x40 * i) for i in range(12)]
    address = VIRTUAL
    while len(found) < count:
        words = chance.choices(["tcp_", "init", "vm", "x86_", "q", "do_", "9", "Z.k"], k=3)
        name = chance.choice("tTdDbBrR") + "".join(words) + str(chance.randrange(4))
        if len(found) % 97 == 0:
            name += "_long" * 40
        found.append((name, address))
        address += chance.choice([0, 16, 64, 4096])
    return found


def token_table() -> list[str]:
    """By code: characters stand for themselves, the other codes for what is frequent."""
    frequent = ["tcp_", "init", "_long", "x86_", "do_", "per_cpu_"]
    table = [chr(code) if 32 < code < 127 else "" for code in range(256)]
    for code, text in zip([1, 2, 3, 128, 200, 255], frequent, strict=True):
        table[code] = text
    return table


def compress(name: str, tokens: list[str]) -> bytes:
    codes = sorted(
        ((text, code) for code, text in enumerate(tokens) if text), key=lambda pair: -len(pair[0])
    )
    found, at = bytearray(), 0
    while at < len(name):
        text, code = next(pair for pair in codes if name.startswith(pair[0], at))
        found.append(code)
        at += len(text)
    size = len(found)
    length = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
    return length + bytes(found)


def image_with(symbols: list[Symbol], layout: Layout, tail: int = 4096) -> Image:
    """An image at VIRTUAL whose symbol table is ``symbols``."""
    tokens = token_table()
    names, markers = b"", []
    for i, (name, _) in enumerate(symbols):
        if i % 256 == 0:
            markers.append(len(names))
        names += compress(name, tokens)
    order = sorted(range(len(symbols)), key=lambda i: symbols[i][0][1:])
    text = [token.encode() + b"\0" for token in tokens]
    starts = [sum(map(len, text[:code])) for code in range(256)]
    parts = {
        "count": struct.pack("<I", len(symbols)),
        "names": names,
        "markers": struct.pack(f"<{len(markers)}I", *markers),
        "seqs": b"".join(i.to_bytes(3, "big") for i in order) if layout.seqs else b"",
        "tokens": b"".join(text),
        "index": struct.pack("<256H", *starts),
        "offsets": bytes(4 * len(symbols)),
        "base": struct.pack("<Q", VIRTUAL) if layout.base else b"",
    }
    if layout.new_order:
        sequence = ["count", "names", "markers", "tokens", "index", "offsets", "base", "seqs"]
    else:
        sequence = ["offsets", "base", "count", "names", "markers", "seqs", "tokens", "index"]
    raw, places = bytearray(HEAD_BYTES * b"\xcc"), {}
    for part in sequence:
        alignment = 8 if part == "base" else layout.alignment
        raw += bytes(-len(raw) % alignment)
        places[part] = len(raw)
        raw += parts[part]
    raw += bytes(-len(raw) % 8) + tail * b"\xcc"
    for i, (_, address) in enumerate(symbols):
        at = places["offsets"] + 4 * i
        struct.pack_into("<i", raw, at, offset(layout, address, VIRTUAL + at))
    return Image(bytes(raw), 0, len(raw), VIRTUAL)


def offset(layout: Layout, address: int, place: int) -> int:
    """The number that stands for an address (kernel/kallsyms.c, kallsyms_sym_address())."""
    if not layout.base:
        return address - place
    if layout.absolute_percpu:
        return address if address < VIRTUAL else VIRTUAL - 1 - address
    return address - VIRTUAL
