"""Any QEMU that already runs, with nothing prepared for us: by a QMP socket's path, or by pid.

With a monitor QEMU itself tells where RAM is, and gives registers; without one, RAM is found by
QEMU's command line and mappings, and there are no registers.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from dvisor.addresses import PAGE_SIZE, GuestPhysical
from dvisor.errors import AttachError, DvisorError, EngineError, UnsupportedError
from dvisor.machine.engine import CpuRegisters, RamBlock
from dvisor.machine.foreign_monitor import HmpMonitor, Monitor, QmpMonitor
from dvisor.machine.foreign_mtree import parse_flatview, parse_memdevs
from dvisor.machine.foreign_process import (
    MonitorSocket,
    QemuProcess,
    UnreachableError,
    monitor_socket,
    peer_pid,
)
from dvisor.machine.foreign_ram import ForeignRam, Placed, find_ram
from dvisor.machine.foreign_stop import MonitorBrake, SignalBrake, Stopping
from dvisor.machine.layout import MIB, RamSection, board_sections
from dvisor.machine.registers import parse_registers

_HVA = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is 0x([0-9a-f]+)")


class ForeignEngine:
    """Memory and registers of a VM that somebody else started. Made by ``open_qemu``."""

    live = True

    def __init__(
        self,
        process: QemuProcess,
        ram: ForeignRam,
        stopping: Stopping,
        monitor: Monitor | None,
        why_no_monitor: str,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._ram = ram
        self._stopping = stopping
        self._monitor = monitor
        self._why_no_monitor = why_no_monitor
        self._resources = ExitStack()
        self._changes = 0

    @property
    def description(self) -> str:
        size = sum(block.size for block in self.ram())
        how = "RAM alone" if self._monitor is None else self._monitor.protocol
        return f"QEMU pid {self.pid} by {how}, {round(size / MIB)} MiB of RAM {self._ram.kind}"

    def ram(self) -> tuple[RamBlock, ...]:
        return self._ram.map.blocks

    def read(self, gpa: GuestPhysical, size: int) -> bytes:
        return self._ram.map.read(gpa, size)

    def populated(self) -> Iterator[tuple[GuestPhysical, int]]:
        return self._ram.populated()

    def registers(self) -> tuple[CpuRegisters, ...]:
        self._process.check_alive()
        if self._monitor is None:
            raise UnsupportedError(
                f"no registers: this VM is read by its RAM alone ({self._why_no_monitor}); "
                "start QEMU with -qmp unix:PATH,server=on,wait=off to have them"
            )
        return parse_registers(self._ask(self._monitor, "info registers -a"))

    def stopped(self) -> AbstractContextManager[None]:
        return self._stopping.hold()

    def epoch(self) -> int:
        """Also changes when somebody else stops the VM: ``loadvm`` sends no other event.

        EngineError once the QEMU process has ended.
        """
        self._process.check_alive()
        if self._monitor is None or not self._monitor.knows_events:
            return 0
        try:
            events = self._monitor.events()
        except EngineError:
            self._process.check_alive()
            raise
        self._changes += sum(name in {"RESET", "STOP"} for name in events)
        return self._changes - self._stopping.stops

    @property
    def knows_resets(self) -> bool:
        return self._monitor is not None and self._monitor.knows_events

    def own(self, resources: ExitStack) -> None:
        """Close these together with the engine."""
        self._resources = resources

    def close(self) -> None:
        self._resources.close()

    def _ask(self, monitor: Monitor, command: str) -> str:
        try:
            return monitor.command(command)
        except EngineError:
            self._process.check_alive()  # says that it has ended, if that is why
            raise


def is_qmp_socket(path: str | Path) -> bool:
    """Whether ``path`` is a unix socket, and so may be a QMP socket.

    Does not connect: a stranger's connection disturbs what else may listen on a socket.
    """
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def open_qemu(target: str | int | Path, timeout_s: float = 2.0) -> ForeignEngine:
    """The QEMU with the pid or the QMP socket ``target``; AttachError tells all that was tried.

    ``timeout_s``: how long to wait for a monitor's greeting.
    """
    tried: list[tuple[str, str]] = []
    with ExitStack() as undo:
        try:
            if str(target).isdecimal():
                engine = _by_pid(int(str(target)), tried, undo, timeout_s)
            else:
                engine = _by_socket(Path(str(target)), undo, timeout_s)
        except UnreachableError as error:
            tried.append((_what(target), error.seen))
            todo = error.todo or "attach by a QMP socket (-qmp unix:PATH,server=on,wait=off)"
            raise AttachError(str(target), tried, todo) from error
        except (DvisorError, OSError) as error:
            tried.append((_what(target), str(error)))
            raise AttachError(str(target), tried, "see the reason above") from error
        engine.own(undo.pop_all())
    return engine


def _what(target: str | int | Path) -> str:
    return f"process {target}" if str(target).isdecimal() else f"QMP at {target}"


def _by_socket(path: Path, undo: ExitStack, timeout_s: float) -> ForeignEngine:
    try:
        way = MonitorSocket(path)
    except OSError as error:
        raise UnreachableError(f"{error.strerror}", "give the path after -qmp unix:") from error
    undo.callback(way.close)
    connection = way.connect(timeout_s)
    undo.callback(connection.close)
    process = QemuProcess(peer_pid(connection))
    undo.callback(process.close)
    try:
        monitor = QmpMonitor(connection, timeout_s)
    except EngineError as error:
        raise UnreachableError(
            str(error), "end the other client, or give the VM's pid to read its RAM alone"
        ) from error
    return _with_monitor(process, monitor, way, undo)


def _by_pid(
    pid: int, tried: list[tuple[str, str]], undo: ExitStack, timeout_s: float
) -> ForeignEngine:
    process = QemuProcess(pid)
    undo.callback(process.close)
    line = process.command_line()
    for address in sorted(line.monitors, key=lambda each: not each.control):
        with ExitStack() as attempt:
            try:
                way = monitor_socket(process, address)
                attempt.callback(way.close)
                connection = way.connect(timeout_s)
                attempt.callback(connection.close)
                if address.path and peer_pid(connection) != process.pid:
                    raise UnreachableError("another process listens at this path now")
                kind = QmpMonitor if address.control else HmpMonitor
                monitor = kind(connection, timeout_s)
                engine = _with_monitor(process, monitor, way, attempt)
            except (UnreachableError, EngineError) as error:
                tried.append((str(address), str(error)))
            else:
                undo.push(attempt.pop_all())
                return engine
    if not line.monitors:
        tried.append(("its command line", "names no monitor that listens on a socket"))
    why = "; ".join(f"{what}: {seen}" for what, seen in tried)
    tried += [("its command line", f"it has {each}") for each in line.surprises]
    start = find_ram(process, line.ram_bytes)
    sections = board_sections(line.board, line.ram_bytes, line.max_below_4g)
    placed = [Placed(section, start + section.offset) for section in sections]
    return _assemble(process, placed, None, why, SignalBrake(process), undo)


def _with_monitor(
    process: QemuProcess, monitor: Monitor, way: MonitorSocket, undo: ExitStack
) -> ForeignEngine:
    memdevs = parse_memdevs(monitor.command("info memdev"), monitor.command("info memory-devices"))
    sections = parse_flatview(monitor.command("info mtree -f"), memdevs)
    process.refresh_mappings()
    placed = [Placed(section, _hva(monitor, section)) for section in sections]
    return _assemble(process, placed, monitor, "", MonitorBrake(monitor, way), undo)


def _hva(monitor: Monitor, section: RamSection) -> int:
    """Asked of the last page: over the first one the firmware may have laid a ROM just now."""
    last_page = max(section.gpa, section.end - PAGE_SIZE)
    answer = monitor.command(f"gpa2hva {last_page:#x}")
    match = _HVA.search(answer)
    if match is None:
        raise EngineError(f"QEMU answers gpa2hva {last_page:#x} with {answer.strip()!r}")
    return int(match[1], 16) - (last_page - section.gpa)


def _assemble(
    process: QemuProcess,
    placed: list[Placed],
    monitor: Monitor | None,
    why_no_monitor: str,
    brake: MonitorBrake | SignalBrake,
    undo: ExitStack,
) -> ForeignEngine:
    ram = ForeignRam(process, placed)
    undo.callback(ram.close)
    stopping = Stopping(process, brake)
    undo.callback(stopping.close)
    return ForeignEngine(process, ram, stopping, monitor, why_no_monitor)
