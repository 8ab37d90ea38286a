"""Memory of processes: their command line and environment."""

from __future__ import annotations

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.memory import Memory

MAX_ARGUMENTS = 2 << 20  # ARG_MAX is a quarter of the stack's limit, 2 MiB by default
MAX_TITLE = 4096  # get_mm_proctitle(), fs/proc/base.c: one page


class UserMemoryReader:
    """Reads what processes keep in memory of their own.

    A page that is swapped out or was never touched is not in the guest's RAM; then the answer is
    None. It cannot be told apart from a wild pointer.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._fields = kernel.record(
            "mm_struct", "pgd", "arg_start", "arg_end", "env_start", "env_end"
        )

    def command_line(self, mm: int) -> tuple[str, ...] | None:
        """The arguments, as /proc/PID/cmdline; those that the process wrote over with a title
        (setproctitle) as one."""
        try:
            pgd, start, end, env_start, env_end = self._fields.read(mm)
            if not env_end or not start < end:
                return ()
            memory = self.memory(pgd)
            raw = _arguments(memory, start, end)
            if raw.endswith(b"\0"):
                return _split(raw)
            limit = env_end if env_start == end and env_start <= env_end else end
            return (_text(memory.string(start, min(MAX_TITLE, limit - start))),)
        except GuestDataError:
            return None

    def environment(self, mm: int) -> tuple[str, ...] | None:
        """``NAME=value`` strings as they were when the process began, as /proc/PID/environ."""
        try:
            pgd, _, _, start, end = self._fields.read(mm)
            return _split(_arguments(self.memory(pgd), start, end)) if start < end else ()
        except GuestDataError:
            return None

    def memory(self, pgd: int) -> Memory:
        """An address space by the kernel's address of its top page table."""
        memory = self.kernel.memory
        return memory.user(memory.physical(pgd))


def _arguments(memory: Memory, start: int, end: int) -> bytes:
    if end - start > MAX_ARGUMENTS:
        raise GuestDataError(f"{end - start} bytes of arguments")
    return memory.read(start, end - start)


def _split(raw: bytes) -> tuple[str, ...]:
    return tuple(_text(part) for part in raw.removesuffix(b"\0").split(b"\0"))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
