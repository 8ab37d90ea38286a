"""Private Debian roots: newer or more able tools than the host's, without touching the host.

A root is only unpacked, never installed, and its programs run without chroot, by its own dynamic
linker on its own libraries.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from dvisor.errors import HostError
from dvisor.images import bootstrap, host
from dvisor.images.manifest import Manifest, listed_packages
from dvisor.images.progress import Progress
from dvisor.images.recipes import RootRecipe, digest, recipes
from dvisor.images.store import Store

_LINKER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


class PrivateRoot(msgspec.Struct, frozen=True):
    """An unpacked Debian root at ``path``."""

    path: Path
    library_dirs: tuple[Path, ...]

    def argv(self, program: str) -> tuple[str, ...]:
        """How to start a program, given by its path in the root (``usr/bin/NAME``)."""
        libraries = ":".join(str(directory) for directory in self.library_dirs)
        return (
            str(self.path / _LINKER),
            "--library-path",
            libraries,
            str(self.path / program),
        )


def private_root(name: str, store: Store, progress: Progress) -> PrivateRoot:
    """The private root of that name in ``recipes.toml``, made now if it is not there yet."""
    recipe = recipes().roots[name]
    key = digest(recipe)

    def make(stage: Path) -> None:
        with progress.stage(f"tools: {name}"):
            _unpack(stage, recipe, progress)
            Manifest.of(recipe, key, listed_packages(stage)).write(stage)

    path = store.obtain(
        "roots", name, key, make, space_mib=recipe.space_mib, on_wait=progress.waiting(name)
    )
    return PrivateRoot(path, tuple(path / directory for directory in recipe.library_dirs))


def _unpack(stage: Path, recipe: RootRecipe, progress: Progress) -> None:
    archive = stage / "root.tar"
    bootstrap.extract(archive, recipe.suites, recipe.packages, progress)
    unpack(archive, stage)
    archive.unlink()
    if not (stage / _LINKER).exists():
        raise HostError(f"the packages {recipe.packages} brought no {_LINKER}; report this")


def unpack(archive: Path, directory: Path, *members: str) -> None:
    """Unpack (those members of) a tar archive as files of this user, without device nodes."""
    command = [host.program("tar", "tar"), "--extract", "--no-same-owner", "--exclude=./dev/*"]
    host.run([*command, f"--file={archive}", f"--directory={directory}", "--wildcards", *members])
