"""A QEMU started by a plain command line, with no option that is meant for dvisor."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp.legacy import QEMUMonitorProtocol

from dvisor import images

FIRMWARE_ALONE = ("-display", "none", "-serial", "none", "-parallel", "none", "-net", "none")


@dataclass
class PlainQemu:
    pid: int
    directory: Path
    console: Path

    def state(self) -> str:
        """The process's state letter: T is stopped."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]


@contextlib.contextmanager
def plain_qemu(
    directory: Path, *options: str, wrapper: Sequence[str] = (), ready: str = ""
) -> Iterator[PlainQemu]:
    """Run it in ``directory`` until the end of the block; wait until its console says ``ready``.

    ``wrapper``: a command that ends in exec, so that the pid stays QEMU's.
    """
    console = directory / "console"
    argv = [*wrapper, *images.qemu_binary().argv_prefix, "-accel", "tcg", *options]
    with console.open("wb") as output:
        process = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 120
        while not (_started(process.pid) and ready in console.read_text(errors="replace")):
            assert process.poll() is None, console.read_text(errors="replace")
            assert time.monotonic() < deadline, console.read_text(errors="replace")
            time.sleep(0.05)
        yield PlainQemu(process.pid, directory, console)
    finally:
        process.kill()
        process.wait()


def _started(pid: int) -> bool:
    """Whether QEMU itself runs there, past its start-up: it has made its vCPU threads."""
    names = []
    for task in Path(f"/proc/{pid}/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            names.append(task.read_text())
    return len(names) >= 3


def linux(kernel: str = "6.12") -> list[str]:
    """Options that boot the tiny image, with its console on standard output."""
    image = images.build("tiny", kernel)
    return [
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-cpu", "max"),
        *("-kernel", str(image.vmlinuz), "-initrd", str(image.initrd)),
        *("-append", f"{image.kernel_command_line} console=ttyS0 quiet"),
    ]


class Truth:
    """QEMU's own word, over a QMP socket that the test holds."""

    def __init__(self, socket: Path) -> None:
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < deadline, f"{socket} does not appear"
            time.sleep(0.02)
        self._qmp = QEMUMonitorProtocol(str(socket))
        self._qmp.connect()
        self._qmp.settimeout(120)

    def do(self, command: str, **arguments: Any) -> Any:
        return self._qmp.cmd(command, **arguments)

    def wait_for_firmware(self) -> None:
        """Until it has copied itself to RAM below 1 MiB, and write-protected that as its last act.

        Before that the guest sees ROM there. Source: SeaBIOS src/fw/shadow.c.
        """
        deadline = time.monotonic() + 20
        while not re.search(r"rom\): \S+ @00000000000f0000", self._hmp("info mtree -f")):
            assert time.monotonic() < deadline, self._hmp("info mtree -f")
            time.sleep(0.02)

    def _hmp(self, command: str) -> str:
        return str(self.do("human-monitor-command", **{"command-line": command}))

    def memory(self, gpa: int, size: int, scratch: Path) -> bytes:
        """What ``pmemsave`` saves."""
        scratch.unlink(missing_ok=True)
        self.do("pmemsave", val=gpa, size=size, filename=str(scratch))
        return scratch.read_bytes()

    def running(self) -> bool:
        return bool(self.do("query-status")["running"])

    def close(self) -> None:
        self._qmp.close()
