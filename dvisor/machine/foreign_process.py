"""A QEMU process that somebody else started: is it one, does it live, why can it not be had."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import socket
import struct
from pathlib import Path

from dvisor.errors import EngineError
from dvisor.machine.foreign_cmdline import (
    CommandLine,
    MonitorAddress,
    is_emulator,
    parse_command_line,
)
from dvisor.machine.procmem import Mapping, ProcessMemory, read_mappings


class UnreachableError(Exception):
    """One attempt that failed: ``seen`` and, when it is known, ``todo``. Becomes an AttachError."""

    def __init__(self, seen: str, todo: str = "") -> None:
        super().__init__(seen)
        self.seen = seen
        self.todo = todo


class QemuProcess:
    """A living QEMU for x86_64; the pid cannot come to mean another process."""

    def __init__(self, pid: int) -> None:
        """UnreachableError when the process is not there, is no QEMU, or may not be read."""
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            raise UnreachableError(
                f"there is no process {pid} that can be seen from here",
                "give the pid as this pid namespace has it (for a VM in a container: "
                "the pid that `ps` shows on the host)",
            ) from error
        self._poll = select.poll()
        self._poll.register(self.pidfd, select.POLLIN)
        try:
            self.memory = self._open(pid)
        except BaseException:
            os.close(self.pidfd)
            raise

    def _open(self, pid: int) -> ProcessMemory:
        try:
            self.mappings = read_mappings(pid)
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            programs = {m.path for m in self.mappings if "x" in m.permissions and m.path}
            if not any(is_emulator(path) for path in programs):
                name = os.fsdecode(words[0]) or f"process {pid}"
                raise UnreachableError(
                    f"{name!r} (pid {pid}) does not run qemu-system-x86_64",
                    "give the pid of the QEMU itself, not of the script or tool that started it",
                )
            self.argv = [os.fsdecode(word) for word in words[:-1]]
            return ProcessMemory(pid)
        except PermissionError as error:
            raise UnreachableError(*_denied(pid, error)) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            raise UnreachableError(f"process {pid} ended meanwhile", "start the VM") from error

    def command_line(self) -> CommandLine:
        """DvisorError when it says what is not understood here."""
        return parse_command_line(self.argv)

    def refresh_mappings(self) -> list[Mapping]:
        """The mappings as they are now."""
        self.mappings = read_mappings(self.pid)
        return self.mappings

    @property
    def alive(self) -> bool:
        return not self._poll.poll(0)

    def check_alive(self) -> None:
        """EngineError when it has ended."""
        if self._poll.poll(0):
            raise EngineError(f"the QEMU process ended (pid {self.pid})")

    def close(self) -> None:
        """Safe to call twice."""
        if self.pidfd >= 0:
            self.memory.close()
            os.close(self.pidfd)
            self.pidfd = -1


class MonitorSocket:
    """A way to a monitor that still leads there when paths have changed (an O_PATH descriptor)."""

    def __init__(self, path: Path | None, tcp: tuple[str, int] | None = None) -> None:
        """OSError when ``path`` cannot be opened."""
        self.tcp = tcp
        self.fd = -1 if path is None else os.open(path, os.O_PATH | os.O_CLOEXEC)

    @property
    def address(self) -> str | tuple[str, int]:
        """For connect(2), also from a child that inherited ``fd``."""
        # /proc/self/fd also frees the path of sockaddr_un's limit of 107 bytes.
        return self.tcp or f"/proc/self/fd/{self.fd}"

    def connect(self, timeout_s: float) -> socket.socket:
        """A connection; UnreachableError with the reason."""
        family = socket.AF_INET if self.tcp else socket.AF_UNIX
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(timeout_s)
            connection.connect(self.address)
        except (TimeoutError, BlockingIOError) as error:  # AF_UNIX: EAGAIN when the queue is full
            connection.close()
            raise UnreachableError(
                "busy: others already wait to be served (it serves one client at a time)",
                "end the other client of this monitor, or give the VM's pid",
            ) from error
        except ConnectionRefusedError as error:
            connection.close()
            raise UnreachableError(
                "nobody listens there: its QEMU has ended", "start the VM"
            ) from error
        except PermissionError as error:
            connection.close()
            raise UnreachableError(
                "permission denied", "run as root or as the user whom the socket belongs to"
            ) from error
        except OSError as error:
            connection.close()
            raise UnreachableError(f"{error.strerror or error}") from error
        return connection

    def close(self) -> None:
        """Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def monitor_socket(process: QemuProcess, monitor: MonitorAddress) -> MonitorSocket:
    """The socket of ``monitor`` as ``process`` sees it: its root, directory and network."""
    proc = Path(f"/proc/{process.pid}")
    try:
        if monitor.tcp:
            if (proc / "ns/net").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino:
                raise UnreachableError("its TCP port is in another network namespace")
            return MonitorSocket(None, monitor.tcp)
        path = monitor.path if monitor.fd is None else _listening_path(process.pid, monitor.fd)
        start = proc / ("root" if path.startswith("/") else "cwd")
        return MonitorSocket(start / path.lstrip("/"))
    except OSError as error:
        raise UnreachableError(f"{error.strerror}") from error


def peer_pid(connection: socket.socket) -> int:
    """The process that listens at the other end of a unix socket; UnreachableError if unseen."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", raw)[0]
    if pid == 0:
        raise UnreachableError(
            "its process is in a pid namespace that cannot be seen from here",
            "run dvisor on the host, or in the same container as QEMU",
        )
    return pid


def _listening_path(pid: int, fd: int) -> str:
    """The path of a unix socket that QEMU inherited as a descriptor, as libvirt gives it."""
    link = str(Path(f"/proc/{pid}/fd/{fd}").readlink())  # socket:[INODE]
    inode = link.removeprefix("socket:[").removesuffix("]")
    for line in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines():
        words = line.split()
        if len(words) >= 8 and words[6] == inode:
            return words[7]
    raise UnreachableError(f"its socket (descriptor {fd}) has no path")


def _denied(pid: int, error: OSError) -> tuple[str, str]:
    owner = "another user"
    with contextlib.suppress(OSError, KeyError):
        owner = pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name
    seen = f"{error.filename}: {error.strerror}; its owner is {owner}, we are uid {os.geteuid()}"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    yama = scope.read_text().strip() if scope.exists() else "0"
    todo = "run dvisor as root"
    if yama != "0":
        seen += f"; kernel.yama.ptrace_scope is {yama}"
        todo += " (kernel.yama.ptrace_scope forbids it to others, even to the same user)"
    return seen, f"{todo}, or with CAP_SYS_PTRACE"
