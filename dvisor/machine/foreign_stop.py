"""Two ways to keep a foreign VM's vCPUs from running: its monitor, or signals to its process."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from dvisor.errors import EngineError
from dvisor.machine.foreign_guard import Guard
from dvisor.machine.foreign_monitor import Monitor
from dvisor.machine.foreign_process import MonitorSocket, QemuProcess

_STOP_TIMEOUT_S = 5.0


class Brake(Protocol):
    """Stops the vCPUs and lets them run again."""

    def running(self) -> bool: ...
    def stop(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class MonitorBrake:
    """``stop`` and ``cont``: the guest's clocks stand still meanwhile."""

    def __init__(self, monitor: Monitor, way: MonitorSocket) -> None:
        self._monitor = monitor
        address = way.address
        words = [address] if isinstance(address, str) else [address[0], str(address[1])]
        self._guard = Guard([monitor.protocol.lower(), *words], way.fd)

    def running(self) -> bool:
        return "VM status: running" in self._monitor.command("info status")

    def stop(self) -> None:
        self._guard.note("stopped")
        self._monitor.command("stop")

    def resume(self) -> None:
        self._monitor.command("cont")
        self._guard.note("running")

    def close(self) -> None:
        self._guard.close()


class SignalBrake:
    """SIGSTOP and SIGCONT: the whole QEMU stands still, and its virtual clocks jump afterwards."""

    def __init__(self, process: QemuProcess) -> None:
        self._process = process
        self._guard = Guard(["signal", str(process.pidfd)], process.pidfd)

    def running(self) -> bool:
        return "T" not in self._thread_states()

    def stop(self) -> None:
        self._guard.note("stopped")
        signal.pidfd_send_signal(self._process.pidfd, signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self._thread_states() - set("TtZX"):  # a stop reaches the threads one by one
            if time.monotonic() > deadline:
                raise EngineError(f"QEMU (pid {self._process.pid}) does not stop on SIGSTOP")
            time.sleep(0.0001)

    def resume(self) -> None:
        signal.pidfd_send_signal(self._process.pidfd, signal.SIGCONT)
        self._guard.note("running")

    def close(self) -> None:
        self._guard.close()

    def _thread_states(self) -> set[str]:
        """Source: proc_pid_stat(5), field 3, which follows the name in parentheses."""
        states = set()
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            try:
                states.add(
                    (task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
                )
            except (FileNotFoundError, ProcessLookupError):  # the thread has ended
                continue
        return states


class Stopping:
    """Nested stops over a brake; leaves a VM that was stopped before as it was."""

    def __init__(self, process: QemuProcess, brake: Brake) -> None:
        self._process = process
        self._brake = brake
        self._depth = 0
        self._ours = False
        self.stops = 0
        """How often the brake was pulled: as many STOP events are of our own making."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """EngineError when the process has ended, or ends meanwhile."""
        if self._depth == 0:
            self._guarded(self._stop)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._ours:
                self._ours = False
                self._guarded(self._brake.resume)

    def _stop(self) -> None:
        if not self._brake.running():
            return
        self.stops += 1
        try:
            self._brake.stop()
        except BaseException:
            with suppress(OSError, EngineError):
                self._brake.resume()
            raise
        self._ours = True

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run ``step``; where it fails because the process has ended, say that instead."""
        self._process.check_alive()
        try:
            step()
        except (OSError, EngineError) as error:
            self._process.check_alive()
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"cannot stop or continue QEMU: {error}") from error

    def close(self) -> None:
        """Also ends a stop that is still held."""
        if self._ours:
            self._ours = False
            with suppress(OSError, EngineError):
                self._brake.resume()
        self._brake.close()
