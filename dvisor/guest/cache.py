"""What was worked out about a kernel, kept for the next attach.

A record is named by the digest of the very bytes it was computed from (symbol table and BTF, which
KASLR does not change), never by a name that the guest states: a hostile guest that claims another
kernel's build id gets, and leaves behind, nothing but its own. All of it may be deleted at any
time. Files hold JSON: reading one runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import msgspec

from dvisor.guest.kallsyms import Image, Tables
from dvisor.guest.records import Place

FORMAT = 1
MAX_ENTRIES = 100_000
MAX_FILES = 256


class Hint(msgspec.Struct, frozen=True):
    """Where a known kernel has its tables, relative to its image."""

    count: int
    places: tuple[int, int, int, int, int]
    base: int
    btf: tuple[int, int]
    probe: bytes
    """The first bytes of the symbol names: a cheap test before the digest is computed."""


class Memo(msgspec.Struct):
    """Answers by question. Symbols: (``t``ext-relative or ``a``bsolute, number), None = absent."""

    format: int
    hint: Hint
    symbols: dict[str, tuple[str, int] | None] = {}
    places: dict[str, Place | None] = {}
    numbers: dict[str, int | None] = {}


def directory() -> Path:
    """Where the records are: ``$XDG_CACHE_HOME/dvisor/symbols``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dvisor" / "symbols"


def digest(image: Image, tables: Tables, btf: tuple[int, int]) -> str:
    """Of the symbol table and the BTF, in hexadecimal; ``btf``: its two positions."""
    whole = hashlib.sha256()
    view = memoryview(image.buffer)
    try:
        for start, end in (
            (tables.names - 8, tables.index + 512),
            (tables.offsets, tables.offsets + 4 * tables.count),
            btf,
        ):
            whole.update((end - start).to_bytes(8, "little"))
            whole.update(view[max(start, 0) : end])
    finally:
        view.release()
    return whole.hexdigest()


def find(image: Image) -> tuple[str, Memo, Tables] | None:
    """The record whose bytes this image holds, if there is one."""
    for path in _records():
        memo = _load(path)
        if memo is None:
            continue
        tables, btf = _placed(image, memo.hint)
        probe = memo.hint.probe
        if not image.start <= tables.names <= image.end - len(probe) or btf[1] > image.end:
            continue
        if image.buffer[tables.names : tables.names + len(probe)] != probe:
            continue
        name = digest(image, tables, btf)
        if path.stem == name:
            with contextlib.suppress(OSError):
                os.utime(path)
            return name, memo, tables
    return None


def _records() -> list[Path]:
    """Known kernels, the last used first."""
    try:
        found = [
            (entry.stat().st_mtime_ns, entry.path)
            for entry in os.scandir(directory())
            if entry.name.endswith(".json")
        ]
    except OSError:
        return []
    return [Path(path) for _, path in sorted(found, reverse=True)]


def _load(path: Path) -> Memo | None:
    try:
        memo = msgspec.json.decode(path.read_bytes(), type=Memo)
    except (OSError, msgspec.DecodeError):
        return None
    return memo if memo.format == FORMAT else None


def hint(image: Image, tables: Tables, btf: tuple[int, int]) -> Hint:
    """The inverse of what ``find`` does."""
    at = image.start
    return Hint(
        tables.count,
        (
            tables.names - at,
            tables.markers - at,
            tables.tokens - at,
            tables.index - at,
            tables.offsets - at,
        ),
        tables.base and tables.base - at,
        (btf[0] - at, btf[1] - at),
        bytes(image.buffer[tables.names : tables.names + 64]),
    )


def _placed(image: Image, known: Hint) -> tuple[Tables, tuple[int, int]]:
    at = image.start
    names, markers, tokens, index, offsets = (place + at for place in known.places)
    base = known.base and known.base + at
    tables = Tables(known.count, names, markers, tokens, index, offsets, base)
    return tables, (known.btf[0] + at, known.btf[1] + at)


def save(name: str, memo: Memo) -> None:
    """Write the record, whole or not at all. A cache that cannot be written is no error."""
    folder = directory()
    entries = len(memo.symbols) + len(memo.places) + len(memo.numbers)
    if entries > MAX_ENTRIES:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in _records()[MAX_FILES:]:
            old.unlink(missing_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(memo))
            Path(temporary).replace(folder / f"{name}.json")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
