"""Children that cannot outlive us."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_libc = ctypes.CDLL(None)


def die_with_this_process() -> Callable[[], None]:
    """A ``preexec_fn`` whose child is killed when the thread that starts it ends.

    The setting survives execve(2), so a wrapper script that ends in ``exec`` does no harm; a
    wrapper that forks would lose it (prctl(2), PR_SET_PDEATHSIG).
    """
    parent = os.getpid()

    def prepare_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return prepare_child
