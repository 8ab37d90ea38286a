"""What was worked out about a kernel, kept for the next attach.

A record is named by the digest of the very bytes it was computed from (symbol table and BTF, which
KASLR does not change) and of where they stand, never by a name that the guest states: a hostile
guest that claims another kernel's build id gets, and leaves behind, nothing but its own. All of it
may be deleted at any time. Files hold JSON: reading one runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.kallsyms import Image, Tables
from dvisor.guest.records import Place

FORMAT = 2
MAX_ENTRIES = 100_000
MAX_FILES = 256
PROBE_BYTES = 64


class Hint(msgspec.Struct, frozen=True):
    """Where a known kernel has its tables, relative to its image."""

    tables: Tables
    btf: tuple[int, int]
    probe: bytes
    """The first bytes of the symbol names: a cheap test before the digest is computed."""


class Source(NamedTuple):
    """What answers are worked out from, in the kernel's image or in a copy of it."""

    image: Image
    tables: Tables
    btf: tuple[int, int]
    """Positions of its start and end."""

    def copy(self) -> Source:
        """One that the guest cannot change any more."""
        parts = [*self.tables.parts(), self.btf]
        start = min(start for start, end in parts)
        end = max(end for _, end in parts) + 16  # the base address may be the last of all
        image = self.image.part(start, end)
        return Source(image, self.tables.moved(-start), (self.btf[0] - start, self.btf[1] - start))

    def digest(self) -> str:
        """In hexadecimal. GuestDataError where it is not inside the image."""
        parts = [*self.tables.parts(), self.btf]
        low, high = max(self.image.start, 0), self.image.end
        base_at = self.tables.base
        around = parts if base_at is None else [*parts, (base_at, base_at + 8)]
        if not all(low <= start <= end <= high for start, end in around):
            raise GuestDataError("the symbol table or the BTF leaves the kernel image")
        hint, base = self.hint(), self.tables.base_address(self.image)
        # Positions and the base count since addresses are relative to them.
        shift = None if base is None else base - self.image.virtual
        placed = (hint.tables, hint.btf, shift)
        whole = hashlib.sha256(msgspec.json.encode(placed))
        with memoryview(self.image.buffer) as view:
            for start, end in parts:
                whole.update(view[start:end])
        return whole.hexdigest()

    def hint(self) -> Hint:
        at, names = self.image.start, self.tables.names
        probe = bytes(self.image.buffer[names : names + PROBE_BYTES])
        return Hint(self.tables.moved(-at), (self.btf[0] - at, self.btf[1] - at), probe)


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


def find(image: Image) -> tuple[str, Memo, Source] | None:
    """The digest and the record of what this image holds, if there is one, and where it is."""
    for path in _records():
        memo = _load(path)
        if memo is None:
            continue
        at, hint = image.start, memo.hint
        source = Source(image, hint.tables.moved(at), (hint.btf[0] + at, hint.btf[1] + at))
        names = source.tables.names
        if image.buffer[names : names + len(hint.probe)] != hint.probe:
            continue
        with contextlib.suppress(GuestDataError):
            if path.stem == source.digest():
                with contextlib.suppress(OSError):
                    os.utime(path)
                return path.stem, memo, source
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
