"""Which modules a kernel needs for a purpose, in the order in which insmod can load them.

Tables: modules.builtin(5), modules.dep(5), and modules.softdep and modules.alias as depmod(8)
writes them.
"""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

from dvisor.errors import UnsupportedError


class ModuleTables:
    """What depmod knows of the modules in one ``lib/modules/RELEASE``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        builtin = (directory / "modules.builtin").read_text().split()
        self._builtin = {_name(path) for path in builtin}
        self._path: dict[str, str] = {}
        self._needs: dict[str, list[str]] = {}
        for line in self._lines("modules.dep"):
            path, _, needs = line.partition(":")
            self._path[_name(path)] = path
            self._needs[_name(path)] = [_name(need) for need in needs.split()]
        self._softly_needs = self._softdeps()
        self._alias = {words[1]: words[2] for words in map(str.split, self._lines("modules.alias"))}

    def load_order(self, names: list[str]) -> list[Path]:
        """Files of these modules and of all they need; none for what is built in.

        UnsupportedError if the kernel has one of ``names`` in neither form.
        """
        order: dict[str, None] = {}
        for name in names:
            if name not in self._builtin and name not in self._path:
                raise UnsupportedError(
                    f"the kernel of {self._directory} has no module {name}; "
                    "choose another kernel for this image"
                )
            self._visit(name, order, set())
        return [self._directory / self._path[name] for name in order]

    def _visit(self, name: str, order: dict[str, None], above: set[str]) -> None:
        name = self._alias.get(name, name)
        if name in self._builtin or name not in self._path or name in order or name in above:
            return
        for need in self._softly_needs.get(name, []) + self._needs[name]:
            self._visit(need, order, above | {name})
        order[name] = None

    def _softdeps(self) -> dict[str, list[str]]:
        """What each module wants loaded before it: ``softdep NAME pre: A B post: C``."""
        wanted = {}
        for line in self._lines("modules.softdep"):
            _, name, *words = line.split()
            if words and words[0] == "pre:":
                end = words.index("post:") if "post:" in words else len(words)
                wanted[name] = words[1:end]
        return wanted

    def _lines(self, table: str) -> list[str]:
        lines = (self._directory / table).read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]


def contents(path: Path) -> bytes:
    """A module's ELF file, decompressed."""
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
    raise UnsupportedError(
        f"{path} is compressed in a way that dvisor does not know ({path.suffix})"
    )


def _name(path: str) -> str:
    """Module name of a file: modprobe takes - and _ for the same."""
    return Path(path).name.split(".ko")[0].replace("-", "_")
