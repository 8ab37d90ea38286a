"""A Debian guest under dvisor for tests, seen from both sides."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dvisor import images
from dvisor.guest.guest import Guest
from dvisor.machine.console import Console
from dvisor.machine.launch import launch
from dvisor.machine.spec import Disk, LaunchSpec
from dvisor.machine.vm_engine import VmEngine

_numbers = itertools.count()


@dataclass
class RunningGuest:
    """A Debian guest under dvisor, seen from both sides: ``guest`` beneath, ``shell`` inside."""

    name: str
    kernel_key: str
    engine: VmEngine
    guest: Guest
    console: Console

    def shell(self, command: str, timeout_s: float = 60) -> str:
        """What ``command`` prints, run by root in the guest; fails the test if it fails."""
        result = self.console.run(command, timeout_s)
        assert result.status == 0, f"{command!r} in the guest: {result.text}"
        return result.text

    def python(self, code: str, timeout_s: float = 60) -> str:
        """What a Python program prints in the guest. It may not hold single quotes."""
        assert "'" not in code
        return self.shell(f"python3 -c '{code}'", timeout_s)

    def stopped(self) -> contextlib.AbstractContextManager[None]:
        return self.engine.stopped()


@contextlib.contextmanager
def running_guest(
    kernel: str,
    cpu: str,
    vcpus: int,
    scratch: Path,
    *,
    workload: bool = True,
    traps: bool = False,
) -> Iterator[RunningGuest]:
    """Boot, wait until it is ready, and end it whatever happens."""
    image = images.build("debian", kernel, progress=images.PlainProgress())
    name = f"test-{os.getpid()}-{next(_numbers)}"
    assert image.disk is not None
    spec = LaunchSpec(
        name=name,
        qemu_argv_prefix=tuple(images.qemu_binary().argv_prefix),
        vmlinuz=str(image.vmlinuz),
        initrd=str(image.initrd),
        disks=(Disk(str(image.disk)), Disk(str(_payload(scratch)), readonly=True)),
        cmdline=f"{image.kernel_command_line} quiet init=/sbin/dvisor-init",
        memory_bytes=1 << 30,
        vcpus=vcpus,
        cpu=cpu,
        accel="tcg",
        traps=traps,
    )
    handle = launch(spec, wait_for="dvisor: ready", wait_timeout_s=180)
    try:
        with contextlib.closing(handle.console()) as console:
            console.wait_for_shell(60)
            engine = handle.engine()
            with contextlib.closing(engine):
                found = RunningGuest(name, kernel, engine, Guest(engine), console)
                found.shell(
                    "dmesg -n 1; stty -echo cols 500; "
                    "mkdir -p /run/test; tar -xf /dev/vdb -C /run/test"
                )
                if workload:
                    found.shell(
                        "setsid python3 /run/test/workload.py >/run/test/log 2>&1 & "
                        "i=0; until grep -q 'workload: ready' /run/test/log; do "
                        "i=$((i+1)); [ $i -lt 600 ] || { cat /run/test/log; exit 1; }; "
                        "sleep 0.2; done",
                        180,
                    )
                yield found
    finally:
        with contextlib.suppress(Exception), handle.control() as control:
            control.quit(force=True)


def _payload(scratch: Path) -> Path:
    """A disk that is a tar archive of the programs that tests run in the guest."""
    path = scratch / "payload.tar"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.add(Path(__file__).parent / "workload.py", "workload.py")
    data = raw.getvalue()
    path.write_bytes(data + bytes(-len(data) % 4096))
    return path
