"""What dvisor builds and from what, as typed tables, and the digests that name the results."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from dvisor.errors import NotFoundError

# Raise when the building code itself changes what comes out of an unchanged recipe.
_FORMAT = 2
_HERE = Path(__file__).parent


class RootRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A private Debian root whose programs run on the host without chroot."""

    suites: list[str]
    packages: list[str]
    library_dirs: list[str]
    space_mib: int


class KernelRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Debian kernel package and where it comes from."""

    suites: list[str]
    package: str
    space_mib: int


class FileRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file put into a userland: ``content``, or a ``script`` of this package."""

    path: str
    content: str = ""
    script: str | None = None
    mode: int = 0o644

    def text(self) -> str:
        return script(self.script) if self.script else self.content


class UserlandRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An installed Debian system without a kernel."""

    suites: list[str]
    packages: list[str]
    exclude_paths: list[str]
    space_mib: int
    free_mib: int
    mask: list[str]
    mask_generators: list[str]
    enable: list[str]
    files: list[FileRecipe]


class ImageRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A guest image: a userland on a disk, or an initramfs alone."""

    about: str
    kernel_command_line: str
    userland: str | None = None


class Recipes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of ``recipes.toml``."""

    roots: dict[str, RootRecipe]
    kernels: dict[str, KernelRecipe]
    images: dict[str, ImageRecipe]
    userlands: dict[str, UserlandRecipe]

    def image(self, name: str) -> ImageRecipe:
        """The image of that name. NotFoundError names those that exist."""
        if name not in self.images:
            raise NotFoundError(f"no image {name!r}; there are: {', '.join(self.images)}")
        return self.images[name]

    def kernel(self, key: str) -> KernelRecipe:
        """The kernel of that key. NotFoundError names those that exist."""
        if key not in self.kernels:
            raise NotFoundError(f"no kernel {key!r}; there are: {', '.join(self.kernels)}")
        return self.kernels[key]


@cache
def recipes() -> Recipes:
    """The recipes that dvisor ships."""
    return msgspec.toml.decode((_HERE / "recipes.toml").read_bytes(), type=Recipes)


def script(name: str) -> str:
    """Text of a shell script that goes into a guest."""
    return (_HERE / "scripts" / name).read_text()


def digest(*ingredients: Any) -> str:
    """Name of whatever is made from these recipes, texts and digests: 16 hexadecimal digits."""
    encoded = msgspec.json.encode([_FORMAT, *ingredients], order="sorted")
    return hashlib.sha256(encoded).hexdigest()[:16]
