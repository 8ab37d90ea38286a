"""The images boot: QEMU alone on each of them, no dvisor machine between."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dvisor import images
from dvisor.images import GuestImage

pytestmark = pytest.mark.vm

READY = "dvisor: ready"
PROMPT = "dvisor# "
TIMEOUT_S = 120.0
KERNELS = [*("6.1", "6.12", "7.2"), pytest.param("rt", marks=pytest.mark.full)]
SYSTEMD_KERNELS = [
    "6.12",
    *(pytest.param(kernel, marks=pytest.mark.full) for kernel in ("6.1", "7.2", "rt")),
]


class Serial:
    """The serial console of a guest on QEMU's standard input and output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._seen = ""

    def wait_for(self, text: str) -> str:
        """All that the guest says up to ``text``."""
        assert self._process.stdout is not None
        give_up = time.monotonic() + TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while text not in self._seen:
                assert time.monotonic() < give_up, f"no {text!r} in: {self._seen[-2000:]}"
                if selector.select(1.0):
                    data = os.read(self._process.stdout.fileno(), 1 << 16)
                    assert data, f"QEMU ended; it said: {self._seen[-2000:]}"
                    self._seen += data.decode(errors="replace")
        before, _, self._seen = self._seen.partition(text)
        return before

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def run(self, command: str) -> str:
        """What a command prints in the guest's root shell."""
        # Quotes split the words, so that the terminal's echo of the command does not hold them.
        self.send(f"echo BE''GIN; {command}; echo EN''D")
        self.wait_for("BEGIN")
        return re.sub(r"\x1b\[[0-9;]*[a-z]", "", self.wait_for("END")).strip()


@contextmanager
def booted(image: GuestImage, *options: str, append: str = "") -> Iterator[Serial]:
    """QEMU on that image; its serial console, ready."""
    command = [*images.qemu_binary().argv_prefix, "-nodefaults", "-no-user-config", "-nographic"]
    command += ["-accel", "tcg", "-cpu", "max", "-m", "512M", "-serial", "stdio", "-no-reboot"]
    command += ["-kernel", str(image.vmlinuz), "-initrd", str(image.initrd), *options]
    if image.disk:
        command += ["-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on"]
    command += ["-append", f"{image.kernel_command_line} {append}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            serial = Serial(process)
            serial.wait_for(READY)
            yield serial
        finally:
            process.kill()


@pytest.mark.parametrize("kernel", KERNELS)
def test_tiny_boots_to_a_root_shell(kernel: str) -> None:
    image = images.build("tiny", kernel)
    with booted(image) as guest:
        assert guest.run("uname -r; id -u").split() == [image.kernel_release, "0"]
        assert guest.run("lsmod | grep -c virtio") == "0"


def test_tiny_loads_virtio_modules_when_there_is_a_device() -> None:
    network = ["-nic", "user,model=virtio-net-pci,restrict=on"]
    with booted(images.build("tiny"), *network) as guest:
        assert "10.0.2.15/24" in guest.run("ip address show eth0")


@pytest.mark.parametrize(
    ("name", "append"), [("tiny", ""), ("debian", "init=/sbin/dvisor-init"), ("debian", "")]
)
def test_console_comes_back_after_exit(name: str, append: str) -> None:
    with booted(images.build(name), append=append) as guest:
        first = guest.run("echo $$")
        # Past the prompt that follows that answer, so that the next one is the new shell's.
        guest.wait_for(PROMPT)
        guest.send("exit")
        guest.wait_for(PROMPT)
        assert guest.run("echo $$") != first


@pytest.mark.parametrize("kernel", SYSTEMD_KERNELS)
def test_debian_boots_under_systemd(kernel: str) -> None:
    image = images.build("debian", kernel)
    with booted(image) as guest:
        assert guest.run("uname -r; cat /proc/1/comm").split() == [image.kernel_release, "systemd"]
        services = "rsyslog nginx ssh dvisor-net dvisor-console"
        assert set(guest.run(f"systemctl is-active {services}").split()) == {"active"}
        assert guest.run("systemctl --failed --plain --no-legend | wc -l") == "0"
        assert guest.run("modprobe overlay && lsmod | grep -c ^overlay") == "1"


def test_debian_boots_with_the_small_init() -> None:
    image = images.build("debian")
    network = ["-nic", "user,model=virtio-net-pci,restrict=on"]
    with booted(image, *network, append="init=/sbin/dvisor-init") as guest:
        assert guest.run("cat /proc/1/comm") == "dvisor-init"
        assert "10.0.2.15/24" in guest.run("ip -color=never address show eth0")
        assert guest.run("python3 -c 'import socket; print(6 * 7)'") == "42"
        assert guest.run("unshare --pid --mount --fork sh -c 'echo $$'") == "1"
        assert guest.run("stat -c %U:%a /etc/shadow /bin/su").split() == ["root:640", "root:4755"]


def test_guest_does_not_write_to_the_image() -> None:
    image = images.build("debian")
    assert image.disk is not None
    before = image.disk.stat().st_mtime_ns
    with booted(image, append="init=/sbin/dvisor-init") as guest:
        guest.run("echo changed > /etc/motd; sync")
    assert image.disk.stat().st_mtime_ns == before
