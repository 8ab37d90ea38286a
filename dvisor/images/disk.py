"""A guest's disk: an installed Debian userland, made once, and per kernel an ext4 of it."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

from dvisor.images import bootstrap, host
from dvisor.images.kernels import Kernel
from dvisor.images.manifest import Manifest, installed_packages
from dvisor.images.progress import Progress
from dvisor.images.recipes import UserlandRecipe, digest, recipes
from dvisor.images.roots import PrivateRoot
from dvisor.images.store import Store, disk_full

_MIB = 1 << 20
_ARCHIVE = "userland.tar"
_MODULES = "usr/lib/modules"
_UNITS = "etc/systemd/system"
_GENERATORS = "etc/systemd/system-generators"
_WANTS = f"{_UNITS}/multi-user.target.wants"


def userland(name: str, store: Store, progress: Progress) -> Path:
    """Tar archive of that userland, installed now if it is not in the cache."""
    recipe = recipes().userlands[name]

    def make(stage: Path) -> None:
        with progress.stage(f"userland {name}"):
            _install(stage, recipe, progress)
            packages = installed_packages(stage / _ARCHIVE)
            Manifest.of(recipe, userland_digest(name), packages).write(stage)

    path = store.obtain(
        "userlands",
        name,
        userland_digest(name),
        make,
        space_mib=recipe.space_mib,
        on_wait=progress.waiting(f"userland {name}"),
    )
    return path / _ARCHIVE


def userland_digest(name: str) -> str:
    """Digest of the recipe of that userland and of the files that it puts in."""
    recipe = recipes().userlands[name]
    return digest(recipe, [file.text() for file in recipe.files])


def write_ext4(
    disk: Path, userland: Path, free_mib: int, kernel: Kernel, tools: PrivateRoot
) -> None:
    """Write a raw ext4 file system of a userland and a kernel's modules; owners are kept."""
    archive = disk.with_suffix(".tar")
    shutil.copyfile(userland, archive)
    with tarfile.open(archive, "a") as tar:
        # mke2fs makes no parent directories, and names none that exist twice.
        if f"./{_MODULES}" not in tar.getnames():
            tar.addfile(_directory(f"./{_MODULES}"))
        tar.add(kernel.modules, f"./{_MODULES}/{kernel.release}", filter=_owned_by_root)
    # A tenth on top for inodes and block maps.
    size_mib = archive.stat().st_size * 11 // 10 // _MIB + free_mib
    command = [*tools.argv("usr/sbin/mke2fs"), "-t", "ext4", "-q", "-F", "-L", "dvisor"]
    # Inode tables are initialised here, or else a kernel thread of the guest does it at each boot.
    command += ["-O", "^has_journal", "-E", "lazy_itable_init=0", "-d", str(archive)]
    env = {"MKE2FS_CONFIG": str(tools.path / "etc/mke2fs.conf")}
    try:
        host.run([*command, str(disk), f"{size_mib}M"], name="mke2fs", env=env)
    except host.CommandError as error:
        if "No space left on device" in error.output:
            raise disk_full(disk.parent) from error
        raise
    archive.unlink()


def _install(stage: Path, recipe: UserlandRecipe, progress: Progress) -> None:
    overlay = stage / "overlay.tar"
    _write_overlay(overlay, recipe)
    bootstrap.install(
        stage / _ARCHIVE, recipe.suites, recipe.packages, overlay, recipe.exclude_paths, progress
    )
    overlay.unlink()


def _write_overlay(path: Path, recipe: UserlandRecipe) -> None:
    with tarfile.open(path, "w") as tar:
        for file in recipe.files:
            data = file.text().encode()
            member = tarfile.TarInfo(file.path)
            member.mode, member.size = file.mode, len(data)
            tar.addfile(member, io.BytesIO(data))
        masked = [f"{_UNITS}/{unit}" for unit in recipe.mask]
        masked += [f"{_GENERATORS}/{generator}" for generator in recipe.mask_generators]
        for place in masked:
            tar.addfile(_symlink(place, "/dev/null"))
        for unit in recipe.enable:
            tar.addfile(_symlink(f"{_WANTS}/{unit}", f"../{unit}"))


def _directory(path: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    return member


def _symlink(path: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
