"""Where this host gets Debian from: its own apt configuration says so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from dvisor.errors import HostError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
OVERRIDE = "DVISOR_DEBIAN_MIRROR"

_FIELDS = ("$(REPO_URI)", "$(ORIGIN)", "$(LABEL)")
_MAIN_LABELS = ("Debian", "Debian Backports")
_TODO = f"set {OVERRIDE} to the address of a Debian mirror (the directory that has dists/ in it)"


class AptTarget(NamedTuple):
    """One index that apt knows. Origin and label are empty before the first ``apt-get update``."""

    uri: str
    origin: str
    label: str


def debian_mirror() -> str:
    """Address of the Debian archive that this host uses, or that DVISOR_DEBIAN_MIRROR names."""
    if override := os.environ.get(OVERRIDE):
        return override.rstrip("/") + "/"
    mirror = main_archive(_apt_targets())
    if mirror is None:
        raise HostError(f"this host's apt sources name no Debian archive; {_TODO}")
    return mirror


def keyring() -> Path:
    """The keys that Debian signs its archive with."""
    if not KEYRING.exists():
        raise HostError(f"{KEYRING} is missing; apt-get install debian-archive-keyring")
    return KEYRING


def main_archive(targets: list[AptTarget]) -> str | None:
    """The first main Debian archive (neither security nor a third party) among apt's targets."""
    usable = [t for t in targets if not t.uri.startswith("cdrom:")]
    for target in usable:
        if target.origin == "Debian" and target.label in _MAIN_LABELS:
            return target.uri
    # Before the first `apt-get update` only the address is known: Debian's mirrors all end so.
    for target in usable:
        if not target.origin and target.uri.rstrip("/").endswith("/debian"):
            return target.uri
    return None


def parse_targets(text: str) -> list[AptTarget]:
    """Read ``apt-get indextargets`` lines of tab-separated uri, origin and label."""
    rows = (line.split("\t") for line in text.splitlines())
    return [AptTarget(*row) for row in rows if len(row) == len(_FIELDS)]


def proxy_options() -> list[str]:
    """The host's own apt proxy settings, in the form that ``mmdebstrap --aptopt`` takes."""
    names = ("Acquire::http::Proxy", "Acquire::https::Proxy")
    text = _output(["apt-config", "dump", "--format", '%f "%v";%n', *names])
    return [line for line in text.splitlines() if not line.endswith('"";')]


def _apt_targets() -> list[AptTarget]:
    command = ["apt-get", "indextargets", "--format", "\t".join(_FIELDS), "Created-By: Packages"]
    return parse_targets(_output(command))


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise HostError(f"{command[0]} is missing: this is not a Debian host; {_TODO}") from error
    except subprocess.CalledProcessError as error:
        raise HostError(f"{command[0]} failed: {error.stderr.strip()[-500:]}; {_TODO}") from error
    return done.stdout
