"""Tiny VMs for tests of the machine, in directories of their own, and what is left of them.

Run as a program it is `dvisor up` for one spec, to be interrupted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from dvisor import images
from dvisor.machine.console import Console
from dvisor.machine.launch import MachineHandle, launch
from dvisor.machine.spec import LaunchSpec

READY = "dvisor: ready"
BOOT_TIMEOUT_S = 120.0


class Place:
    """Directories for VMs that no other test and no user sees; all of it goes at ``close``."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="dvisor-test-"))
        self.environment = {
            "DVISOR_RUNTIME_DIR": str(self.path / "run"),
            "DVISOR_STATE_DIR": str(self.path / "state"),
        }

    def processes(self) -> dict[int, str]:
        """All processes that belong to VMs of this place, by what they inherited."""
        mark = f"DVISOR_RUNTIME_DIR={self.path}/run".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
            except OSError:
                continue
        found.pop(os.getpid(), None)
        return found

    def entries(self) -> list[str]:
        """What the runtime directory holds."""
        return sorted(entry.name for entry in (self.path / "run").glob("*"))

    def is_empty(self) -> bool:
        """No process, socket or directory is left of any VM."""
        return not self.processes() and not self.entries()

    def close(self) -> None:
        for pid in self.processes():
            os.kill(pid, 9)
        complaints = {
            log.parent.name: log.read_text()
            for log in self.path.glob("state/*/supervisor.log")
            if log.stat().st_size
        }
        shutil.rmtree(self.path)
        assert not complaints, f"a supervisor met what it did not foresee: {complaints}"


def tiny_spec(name: str = "t", **changes: object) -> LaunchSpec:
    """A busybox guest under TCG."""
    image = images.build("tiny")
    spec = LaunchSpec(
        name=name,
        qemu_argv_prefix=images.qemu_binary().argv_prefix,
        vmlinuz=str(image.vmlinuz),
        initrd=str(image.initrd),
        cmdline=image.kernel_command_line,
        memory_bytes=256 << 20,
        accel="tcg",
        powerdown_timeout_s=0,
    )
    return msgspec.structs.replace(spec, **changes)


def started(spec: LaunchSpec) -> MachineHandle:
    """Launch it and wait until its shell answers."""
    return launch(spec, wait_for=READY, wait_timeout_s=BOOT_TIMEOUT_S)


def shell(name: str) -> Console:
    """A console whose shell has answered."""
    console = Console(name)
    console.wait_for_shell(BOOT_TIMEOUT_S)
    return console


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Fail unless ``condition`` comes true; a time-out means a hang, not slowness."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"{what} did not come true in {timeout_s:.0f} s"
        time.sleep(0.02)


def launch_in_child(spec: LaunchSpec, **options: object) -> subprocess.Popen[bytes]:
    """`dvisor up` as a process of its own, for tests that kill it."""
    program = [sys.executable, "-m", "tests.vm.machines", msgspec.json.encode(spec).decode()]
    return subprocess.Popen(program, **options)  # type: ignore[call-overload,no-any-return]


if __name__ == "__main__":
    try:
        started(msgspec.json.decode(sys.argv[1], type=LaunchSpec))
    except KeyboardInterrupt:
        sys.exit(130)
    print("up", flush=True)
