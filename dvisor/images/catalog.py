"""The guest images in the cache: build, find, list and remove them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from dvisor.errors import HostError, NotFoundError
from dvisor.folders import cache_directory
from dvisor.images import disk, initramfs
from dvisor.images.kernels import kernel as obtain_kernel
from dvisor.images.kernels import kernel_digest
from dvisor.images.progress import Progress
from dvisor.images.recipes import ImageRecipe, digest, recipes, script
from dvisor.images.roots import private_root
from dvisor.images.store import Store, disk_usage

DEFAULT_KERNEL = "6.12"
_RECORD = "image.json"
_INITRAMFS_SCRIPTS = ["tiny-init.sh", "mount-root.sh", "dvisor-net.sh"]
# An initramfs and what is around it; the disk's own need is that of its userland.
_SPACE_MIB = 100


class GuestImage(msgspec.Struct, frozen=True):
    """A bootable guest. Its files are shared: start VMs with a snapshot or overlay of ``disk``.

    ``kernel``: key in the recipes; ``kernel_release``: what the guest's ``uname -r`` says;
    ``initrd`` and ``disk`` (raw ext4, for a virtio disk): None if the image has none;
    ``size_bytes``: taken on the host's disk; ``digest``: of all that it was made from.
    """

    name: str
    kernel: str
    kernel_release: str
    vmlinuz: Path
    initrd: Path | None
    disk: Path | None
    kernel_command_line: str
    size_bytes: int
    digest: str


class _Record(msgspec.Struct, frozen=True):
    """What is kept of an image beside its files; ``parts`` are paths in the store."""

    name: str
    kernel: str
    kernel_release: str
    kernel_command_line: str
    digest: str
    parts: list[str]


def build(
    name: str,
    kernel: str = DEFAULT_KERNEL,
    *,
    progress: Progress | None = None,
    store: Store | None = None,
) -> GuestImage:
    """The image of that name with that kernel, built now if the cache does not hold it.

    Raises NotFoundError for an unknown name or kernel, HostError for what the host lacks. After
    any error, interruption or kill the cache holds only whole things.
    """
    store, progress = store or Store(cache_directory()), progress or Progress()
    recipe, key = recipes().image(name), _image_digest(name, kernel)

    def make(stage: Path) -> None:
        _compose(stage, name, recipe, kernel, store, progress)

    with store.in_use():
        space_mib = _SPACE_MIB
        if recipe.userland:
            space_mib += recipes().userlands[recipe.userland].space_mib
        path = store.obtain(
            "images",
            f"{name}-{kernel}",
            key,
            make,
            space_mib=space_mib,
            on_wait=progress.waiting(f"image {name} {kernel}"),
        )
    return _load(path)


def find(name: str, kernel: str = DEFAULT_KERNEL, *, store: Store | None = None) -> GuestImage:
    """The image as today's recipes make it. NotFoundError if it is not built."""
    store = store or Store(cache_directory())
    path = store.path("images", f"{name}-{kernel}", _image_digest(name, kernel))
    if not path.is_dir():
        raise NotFoundError(
            f"image {name} with kernel {kernel} is not built; "
            f"build it: dvisor image build {name} --kernel {kernel}"
        )
    return _load(path)


def ls(*, store: Store | None = None) -> list[GuestImage]:
    """All images in the cache, also those of older recipes."""
    store = store or Store(cache_directory())
    return [_load(path) for path in store.things("images")]


def is_current(image: GuestImage) -> bool:
    """Whether today's recipes would make this image, and not another in its place."""
    known = image.name in recipes().images and image.kernel in recipes().kernels
    return known and image.digest == _image_digest(image.name, image.kernel)


def rm(
    name: str | None = None,
    kernel: str | None = None,
    *,
    tools: bool = False,
    store: Store | None = None,
) -> int:
    """Remove images (all, if no name is given) and the parts that no other image is made of.

    Returns the bytes freed. ``tools`` removes the private roots too. Raises NotFoundError if no
    image fits, StateError while a build is under way.
    """
    store = store or Store(cache_directory())
    with store.alone():
        gone = [
            path
            for path in store.things("images")
            if name in {None, _record(path).name} and kernel in {None, _record(path).kernel}
        ]
        if not gone and name is not None:
            raise NotFoundError(f"no image {name} {kernel or ''} in {store.root}; see: image ls")
        freed_bytes = sum(store.remove(path) for path in gone)
        needed = {part for path in store.things("images") for part in _record(path).parts}
        kinds = ["kernels", "userlands", *(["roots"] if tools else [])]
        for part in [thing for kind in kinds for thing in store.things(kind)]:
            if tools or str(part.relative_to(store.root)) not in needed:
                freed_bytes += store.remove(part)
        store.sweep()
    return freed_bytes


def _image_digest(name: str, kernel: str) -> str:
    recipe = recipes().image(name)
    parts = [kernel_digest(kernel)]
    if recipe.userland:
        parts.append(disk.userland_digest(recipe.userland))
    scripts = [script(each) for each in _INITRAMFS_SCRIPTS]
    return digest(recipe, recipes().roots["build"], parts, scripts)


def _compose(
    stage: Path, name: str, recipe: ImageRecipe, key: str, store: Store, progress: Progress
) -> None:
    tools = private_root("build", store, progress)
    kernel = obtain_kernel(key, store=store, progress=progress)
    parts = [kernel.vmlinuz.parent]
    busybox = tools.path / "usr/bin/busybox"
    if recipe.userland is None:
        (stage / "initrd").write_bytes(initramfs.tiny(kernel, busybox))
    else:
        archive = disk.userland(recipe.userland, store, progress)
        parts.append(archive.parent)
        with progress.stage(f"disk of {name} {key}"):
            free_mib = recipes().userlands[recipe.userland].free_mib
            disk.write_ext4(stage / "disk.ext4", archive, free_mib, kernel, tools)
        (stage / "initrd").write_bytes(initramfs.mount_root(kernel, busybox))
    _link(kernel.vmlinuz, stage / "vmlinuz")
    record = _Record(
        name,
        key,
        kernel.release,
        recipe.kernel_command_line,
        _image_digest(name, key),
        [str(part.relative_to(store.root)) for part in parts],
    )
    (stage / _RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # A file system without hard links.
        shutil.copyfile(source, target)


def _record(path: Path) -> _Record:
    try:
        return msgspec.json.decode((path / _RECORD).read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError) as error:
        raise HostError(f"the image in {path} is damaged ({error}); remove that folder") from error


def _load(path: Path) -> GuestImage:
    record = _record(path)
    initrd, disk_file = path / "initrd", path / "disk.ext4"
    return GuestImage(
        record.name,
        record.kernel,
        record.kernel_release,
        path / "vmlinuz",
        initrd if initrd.exists() else None,
        disk_file if disk_file.exists() else None,
        record.kernel_command_line,
        disk_usage(path),
        record.digest,
    )
