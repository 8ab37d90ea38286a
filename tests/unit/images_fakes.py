"""Fake host programs, so that whole builds run in a blink and fail where a test wants them to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dvisor.images import mirror

# Stands for mmdebstrap: writes the archive named on its command line, with packages that hold just
# what dvisor looks for, and logs each call. The root's dynamic linker is a script that stands for
# the programs that it would start.
MMDEBSTRAP = r'''
import io, os, re, sys, tarfile

LINKER = """#!/bin/sh
case "$3" in
    */depmod)
        for table in dep softdep alias; do : > "$5/lib/modules/$6/modules.$table"; done ;;
    */mke2fs) eval "disk=\${$(($# - 1))}"; echo ext4 > "$disk" ;;
    */qemu-system-x86_64) echo "QEMU emulator version $FAKE_PRIVATE_QEMU (Debian)" ;;
esac
"""
MODULES = ["virtio_pci", "virtio_blk", "virtio_net", "ext4"]
STATUS = "Package: base\nStatus: install ok installed\nVersion: 1:2.3\n"

archive = next(word for word in sys.argv if word.endswith(".tar"))
packages = next(word for word in sys.argv if word.startswith("--include="))
with open(os.environ["FAKE_LOG"], "a") as log:
    print(packages, file=log)
print("I: running apt-get update...")
if said := os.environ.get("FAKE_FAILURE"):
    print(said)
    sys.exit(1)

with tarfile.open(archive, "w") as tar:
    def put(path, text, mode=0o644):
        data = text.encode()
        member = tarfile.TarInfo("./" + path)
        member.size, member.mode = len(data), mode
        tar.addfile(member, io.BytesIO(data))

    put("dvisor-packages", "some-package_1%3a2.3-4_amd64.deb\n")
    put("var/lib/dpkg/status", STATUS)
    put("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", LINKER, 0o755)
    put("usr/bin/busybox", "#!/bin/sh\necho sh\necho mount\n", 0o755)
    if "linux-image" in packages:
        builtin = "".join(f"kernel/{name}.ko\n" for name in MODULES)
        put("usr/lib/modules/9.9-fake/modules.builtin", builtin)
        put(os.environ.get("FAKE_VMLINUZ", "boot/vmlinuz-9.9-fake"), "kernel")
        put("boot/config-9.9-fake", "CONFIG_X86_64=y\n")
'''


class FakeHost:
    """``calls``: the package lists of the mmdebstrap runs so far."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._log = directory / "log"
        self._monkeypatch = monkeypatch
        self.put("mmdebstrap", f"#!{sys.executable}\n{MMDEBSTRAP}")
        self.set("PATH", f"{directory}:/usr/bin:/bin")
        self.set("FAKE_LOG", str(self._log))
        self.set("FAKE_PRIVATE_QEMU", "11.1.3")
        self.set(mirror.OVERRIDE, "http://mirror.example/debian/")
        key = directory / "keyring.gpg"
        key.touch()
        monkeypatch.setattr(mirror, "KEYRING", key)

    def put(self, name: str, text: str) -> None:
        """Put a program first on PATH."""
        (self._directory / name).write_text(text)
        (self._directory / name).chmod(0o755)

    def set(self, name: str, value: str) -> None:
        """Set an environment variable; FAKE_FAILURE makes mmdebstrap say that and fail."""
        self._monkeypatch.setenv(name, value)

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []
