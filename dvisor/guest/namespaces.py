"""Namespaces of tasks, by the inode numbers that /proc/PID/ns shows."""

from __future__ import annotations

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.records import Record

MAX_PID_LEVEL = 32  # MAX_PID_NS_LEVEL, include/linux/pid_namespace.h

# What /proc/PID/ns calls it, the member of struct nsproxy, and the structure that it points to.
_PROXIED = (
    ("cgroup", "cgroup_ns", "cgroup_namespace"),
    ("ipc", "ipc_ns", "ipc_namespace"),
    ("mnt", "mnt_ns", "mnt_namespace"),
    ("net", "net_ns", "net"),
    ("pid_for_children", "pid_ns_for_children", "pid_namespace"),
    ("time", "time_ns", "time_namespace"),
    ("time_for_children", "time_ns_for_children", "time_namespace"),
    ("uts", "uts_ns", "uts_namespace"),
)


class NamespaceReader:
    """Reads namespaces and process ids; remembers those that it has seen, for tasks share them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        # A kernel built without a kind of namespace lacks its member or its structure.
        present = [
            row
            for row in _PROXIED
            if kernel.place("nsproxy", row[1]) and kernel.place(row[2], "ns.inum")
        ]
        self._proxy = kernel.record("nsproxy", *(member for _, member, _ in present))
        self._proxied = [(name, kernel.offset(kind, "ns.inum")) for name, _, kind in present]
        self._user = kernel.record("cred", "user_ns")
        self._user_number = kernel.offset("user_namespace", "ns.inum")
        self._pid_number = kernel.offset("pid_namespace", "ns.inum")
        self._level = kernel.record("pid", "level")
        self._numbers_at = kernel.offset("pid", "numbers")
        self._upid_size = kernel.size_of("upid")
        self._upid: Record = kernel.record("upid", "nr", "ns")
        self._known: dict[int, dict[str, int]] = {}

    def read(self, nsproxy: int, thread_pid: int, cred: int) -> dict[str, int]:
        """Inode number by kind, in the order of /proc/PID/ns. A task that has exited (``nsproxy``
        0) has no more than its pid and user namespaces."""
        found = dict(self._of_proxy(nsproxy)) if nsproxy else {}
        u32 = self.kernel.memory.u32
        if thread_pid:
            found["pid"] = u32(self._pid_namespace(thread_pid) + self._pid_number)
        found["user"] = u32(self._user.read(cred)[0] + self._user_number)
        return dict(sorted(found.items()))

    def _of_proxy(self, nsproxy: int) -> dict[str, int]:
        known = self._known.get(nsproxy)
        if known is None:
            u32 = self.kernel.memory.u32
            pointers = self._proxy.read(nsproxy)
            known = self._known[nsproxy] = {
                name: u32(pointer + number_at)
                for (name, number_at), pointer in zip(self._proxied, pointers, strict=True)
                if pointer
            }
        return known

    def pid_numbers(self, pid: int) -> tuple[int, ...]:
        """The id in each pid namespace, from the initial one inwards, of a ``struct pid``."""
        return tuple(
            self._upid.read(self._upid_at(pid, level))[0] for level in range(self._depth(pid) + 1)
        )

    def pid_number(self, pid: int) -> int:
        """The id in the initial pid namespace; 0 for none (a null pointer)."""
        number: int = self._upid.read(self._upid_at(pid, 0))[0] if pid else 0
        return number

    def _pid_namespace(self, pid: int) -> int:
        namespace: int = self._upid.read(self._upid_at(pid, self._depth(pid)))[1]
        return namespace

    def _upid_at(self, pid: int, level: int) -> int:
        return pid + self._numbers_at + level * self._upid_size

    def _depth(self, pid: int) -> int:
        level: int = self._level.read(pid)[0]
        if level > MAX_PID_LEVEL:
            raise GuestDataError(f"a process id at level {level} of pid namespaces")
        return level
