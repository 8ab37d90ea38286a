"""dvisor: security and dependability services beneath an unmodified guest.

A guest event meets a policy, which returns a verdict, which the machine carries out. The packages
are those words: ``machine`` (the only place that knows QEMU), ``guest`` (the only place that knows
Linux), ``policy``, ``runtime``, ``monitors``, ``services``; ``images`` makes what they run on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvisor.errors import DvisorError

if TYPE_CHECKING:
    from dvisor.api import Vm, attach, machines, up

__version__ = "0.1.0"
__all__ = ["DvisorError", "Vm", "attach", "machines", "up"]


def __getattr__(name: str) -> object:
    """The API, loaded at first use: the supervisor and the command line start without it."""
    if name in {"Vm", "attach", "up", "machines"}:
        from dvisor import api

        return getattr(api, name)
    raise AttributeError(f"module 'dvisor' has no attribute {name!r}")
