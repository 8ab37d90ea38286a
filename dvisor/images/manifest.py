"""What a built thing was made from, and what that resolved to: ``manifest.json`` beside it."""

from __future__ import annotations

import datetime
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from dvisor.images.bootstrap import PACKAGE_LIST

_FILE_NAME = "manifest.json"
_STATUS = "./var/lib/dpkg/status"


class Manifest(msgspec.Struct, frozen=True):
    """``packages`` maps Debian package names to the versions that were taken."""

    recipe: Any
    digest: str
    built: datetime.datetime
    packages: dict[str, str]

    @classmethod
    def of(cls, recipe: Any, digest: str, packages: dict[str, str]) -> Manifest:
        """The manifest of a thing built now."""
        return cls(recipe, digest, datetime.datetime.now(datetime.UTC), packages)

    def write(self, directory: Path) -> None:
        encoded = msgspec.json.format(msgspec.json.encode(self), indent=1)
        (directory / _FILE_NAME).write_bytes(encoded)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        return msgspec.json.decode((directory / _FILE_NAME).read_bytes(), type=cls)


def listed_packages(directory: Path) -> dict[str, str]:
    """Name and version of each unpacked package, from the list that the build left in its tree."""
    listing = directory / PACKAGE_LIST
    names = [line.removesuffix(".deb").split("_") for line in listing.read_text().split()]
    listing.unlink()
    return {name: unquote(version) for name, version, _architecture in names}


def installed_packages(archive: Path) -> dict[str, str]:
    """Name and version of each installed package in a tar archive of a Debian root."""
    with tarfile.open(archive) as tar:
        status = tar.extractfile(_STATUS)
        assert status is not None
        text = status.read().decode()
    packages = {}
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
        if fields.get("Status", "").endswith(" installed"):
            packages[fields["Package"]] = fields["Version"]
    return packages
