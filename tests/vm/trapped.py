"""Tiny guests whose calls can be trapped, and a program in them that makes calls when told to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dvisor import images
from dvisor.guest.guest import Guest
from dvisor.images import cpio
from dvisor.machine.console import Console
from dvisor.machine.control import Control
from dvisor.machine.launch import MachineHandle, launch
from dvisor.machine.spec import LaunchSpec
from dvisor.machine.traps import Event, Traps

GETPPID = 110


@dataclass
class AddressSpace:
    """What ``Traps.enroll`` takes."""

    cr3: int
    isolated: bool


@dataclass
class TrappedGuest:
    """A guest started with traps (or, to compare, without)."""

    handle: MachineHandle
    guest: Guest
    console: Console

    def shell(self, command: str, timeout_s: float = 60) -> str:
        result = self.console.run(command, timeout_s)
        assert result.status == 0, f"{command!r} in the guest: {result.text}"
        return result.text.strip()

    def start(self, name: str) -> int:
        """Start one more victim; its pid."""
        self.shell(f"mkfifo /{name}.in /{name}.out; (/victim {name} &) </dev/null")
        self.tell(name, "getpid")  # it is up
        return int(self.tell(name, "getpid"))

    def tell(self, name: str, command: str, timeout_s: float = 120) -> int:
        """What the victim answers."""
        line = f"echo '{command}' > /{name}.in; read -r line < /{name}.out; echo $line"
        return int(self.shell(line, timeout_s).split()[-1])

    def address_space(self, pid: int) -> AddressSpace:
        """Where the process's top page table is in physical memory."""
        kernel = self.guest.kernel
        task = self.guest.task(pid)
        pgd = kernel.memory.u64(task.mm + kernel.offset("mm_struct", "pgd"))
        isolated = self.guest.info().page_table_isolation
        return AddressSpace(kernel.memory.physical(pgd), bool(isolated))

    def traps(self, **options: object) -> contextlib.AbstractContextManager[Traps]:
        """A peer of this VM's library."""
        return peer(self.handle.name, **options)

    def enroll(self, traps: Traps, pid: int) -> AddressSpace:
        space = self.address_space(pid)
        traps.enroll(space.cr3, isolated=space.isolated)
        return space


@contextlib.contextmanager
def peer(name: str, **options: object) -> Iterator[Traps]:
    with Control(name) as control:
        fd = control.traps_memory()
    try:
        with Traps(fd, **options) as traps:  # type: ignore[arg-type]
            yield traps
    finally:
        os.close(fd)


@contextlib.contextmanager
def deciding(traps: Traps, decide: Callable[[Event], None]) -> Iterator[list[Event]]:
    """Within it a thread gives each event to ``decide``; the events so far."""
    seen: list[Event] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def serve() -> None:
        try:
            while not over.is_set():
                if event := traps.next_event(0.05):
                    seen.append(event)
                    decide(event)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


def victim(scratch: Path) -> bytes:
    """The program, built for a guest without libraries."""
    built = scratch / "victim"
    source = Path(__file__).with_name("victim.c")
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", str(built), str(source)], check=True)
    return built.read_bytes()


def trapped_spec(name: str, scratch: Path, kernel: str, cpu: str, vcpus: int) -> LaunchSpec:
    """The image "tiny" with the victim in it. Linux takes several archives as one initramfs."""
    image = images.build("tiny", kernel)
    assert image.initrd is not None
    initrd = scratch / f"initrd-{name}"
    base = image.initrd.read_bytes()
    added = cpio.archive([cpio.file("victim", victim(scratch), 0o755)])
    initrd.write_bytes(base + bytes(-len(base) % 4) + added)
    return LaunchSpec(
        name=name,
        qemu_argv_prefix=images.qemu_binary().argv_prefix,
        vmlinuz=str(image.vmlinuz),
        initrd=str(initrd),
        cmdline=image.kernel_command_line,
        memory_bytes=512 << 20,
        vcpus=vcpus,
        cpu=cpu,
        accel="tcg",
        powerdown_timeout_s=0,
        traps=True,
    )


@contextlib.contextmanager
def trapped_guest(spec: LaunchSpec) -> Iterator[TrappedGuest]:
    """Boot, wait for the shell, and end it whatever happens."""
    handle = launch(spec, wait_for="dvisor: ready", wait_timeout_s=180)
    try:
        with contextlib.closing(handle.console()) as console:
            console.wait_for_shell(60)
            engine = handle.engine()
            with contextlib.closing(engine):
                found = TrappedGuest(handle, Guest(engine), console)
                found.shell("stty -echo cols 500")
                yield found
    finally:
        with contextlib.suppress(Exception), handle.control() as control:
            control.quit(force=True)
