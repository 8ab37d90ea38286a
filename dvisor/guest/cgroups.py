"""Control groups of tasks: paths in the unified hierarchy (cgroup v2)."""

from __future__ import annotations

from dvisor.errors import GuestDataError
from dvisor.guest.dentries import NAME_MAX
from dvisor.guest.kernel import Kernel

MAX_DEPTH = 2048
_CSS_ONLINE = 2  # include/linux/cgroup-defs.h; the enumeration has no name to look up


class CgroupReader:
    """Reads paths of cgroups; remembers those that it has seen, for tasks share them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._set = kernel.record("css_set", "dfl_cgrp")
        self._cgroup = kernel.record("cgroup", "kn", "self.flags")
        self._node = kernel.record("kernfs_node", "parent|__parent", "name")
        online = kernel.constant("CSS_ONLINE")
        self._online = _CSS_ONLINE if online is None else online
        self._known: dict[int, str] = {}

    def path(self, css_set: int) -> str:
        """As the ``0::`` line of /proc/PID/cgroup in the initial cgroup namespace has it."""
        cgroup = self._set.read(css_set)[0]
        known = self._known.get(cgroup)
        if known is None:
            node, flags = self._cgroup.read(cgroup)
            known = self._node_path(node) + ("" if flags & self._online else " (deleted)")
            self._known[cgroup] = known
        return known

    def _node_path(self, node: int) -> str:
        parts: list[bytes] = []
        parent, name = self._node.read(node)
        while parent:
            parts.append(b"/" + self.kernel.memory.string(name, NAME_MAX + 1))
            if len(parts) > MAX_DEPTH:
                raise GuestDataError(f"cgroups nested deeper than {MAX_DEPTH}, or in a circle")
            parent, name = self._node.read(parent)
        return (b"".join(reversed(parts)) or b"/").decode("utf-8", "backslashreplace")
