"""Debian's kernels, unchanged: image, configuration and modules."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from dvisor.errors import HostError
from dvisor.folders import cache_directory
from dvisor.images import bootstrap, host
from dvisor.images.manifest import Manifest, listed_packages
from dvisor.images.progress import Progress
from dvisor.images.recipes import KernelRecipe, digest, recipes
from dvisor.images.roots import private_root, unpack
from dvisor.images.store import Store


class Kernel(msgspec.Struct, frozen=True):
    """A kernel in the cache.

    ``key``: its name in ``recipes.toml``; ``release``: what its ``uname -r`` says; ``modules``:
    its ``lib/modules/RELEASE``, with depmod's tables.
    """

    key: str
    release: str
    vmlinuz: Path
    config: Path
    modules: Path


def kernel(key: str, *, store: Store | None = None, progress: Progress | None = None) -> Kernel:
    """The kernel of that key, fetched now if it is not in the cache."""
    store, progress = store or Store(cache_directory()), progress or Progress()
    recipe = recipes().kernel(key)

    def make(stage: Path) -> None:
        depmod = private_root("build", store, progress).argv("usr/sbin/depmod")
        with progress.stage(f"kernel {key}"):
            packages = _fetch(stage, recipe, depmod, progress)
            Manifest.of(recipe, kernel_digest(key), packages).write(stage)

    path = store.obtain(
        "kernels",
        key,
        kernel_digest(key),
        make,
        space_mib=recipe.space_mib,
        on_wait=progress.waiting(f"kernel {key}"),
    )
    modules = next((path / "lib/modules").iterdir())
    return Kernel(key, modules.name, path / "vmlinuz", path / "config", modules)


def kernel_digest(key: str) -> str:
    """Digest of the recipe of that kernel."""
    return digest(recipes().kernel(key))


def _fetch(
    stage: Path, recipe: KernelRecipe, depmod: tuple[str, ...], progress: Progress
) -> dict[str, str]:
    tree = stage / "tree"
    tree.mkdir()
    archive = stage / "kernel.tar"
    bootstrap.extract(archive, recipe.suites, [recipe.package], progress)
    unpack(archive, tree)
    archive.unlink()
    packages = listed_packages(tree)
    release = _lay_out(tree, stage, recipe.package)
    shutil.rmtree(tree)
    progress.at(0.9, "depmod")
    # The packages leave this to their installation, which never happened.
    host.run([*depmod, "-b", str(stage), release], name="depmod")
    return packages


def _lay_out(tree: Path, stage: Path, package: str) -> str:
    """Move what is wanted out of an unpacked kernel package; returns the kernel's release."""
    modules = _one(tree, package, "usr/lib/modules/*", "lib/modules/*")
    release = modules.name
    # Until 6.x the image is in /boot; 7.2's package keeps it with the modules.
    vmlinuz = _one(tree, package, f"boot/vmlinuz-{release}", f"{modules.relative_to(tree)}/vmlinuz")
    config = _one(tree, package, f"boot/config-{release}", f"{modules.relative_to(tree)}/config")
    vmlinuz.rename(stage / "vmlinuz")
    config.rename(stage / "config")
    (stage / "lib/modules").mkdir(parents=True)
    modules.rename(stage / "lib/modules" / release)
    return release


def _one(tree: Path, package: str, *patterns: str) -> Path:
    found = [path for pattern in patterns for path in sorted(tree.glob(pattern))]
    if not found:
        raise HostError(f"the package {package} holds none of {', '.join(patterns)}; report this")
    return found[0]
