"""dvisor: security and dependability services beneath an unmodified guest.

A guest event meets a policy, which returns a verdict, which the machine carries out. The packages
are those words: ``machine`` (the only place that knows QEMU), ``guest`` (the only place that knows
Linux), ``policy``, ``runtime``, ``monitors``, ``services``; ``images`` makes what they run on.
"""

from __future__ import annotations

__version__ = "0.1.0"
