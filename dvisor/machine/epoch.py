"""The epoch page: one number that changes at every reset, which clients read without asking.

A sealed memfd of one page, a little-endian u64 at offset 0. Only the supervisor's first mapping
can write it; a client maps it read-only and compares.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from dvisor.addresses import PAGE_SIZE

_F_ADD_SEALS = 1033  # include/uapi/linux/fcntl.h; Python 3.11's fcntl has no F_SEAL_FUTURE_WRITE
_SEALS = 0x01 | 0x02 | 0x04 | 0x10  # SEAL, SHRINK, GROW, FUTURE_WRITE


class EpochPage:
    """The writing side, in the supervisor."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("dvisor-epoch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, PAGE_SIZE)
        self._words = memoryview(mmap.mmap(self.fd, PAGE_SIZE)).cast("Q")
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)

    @property
    def value(self) -> int:
        return self._words[0]

    def advance(self) -> None:
        """All that was read before may be of another guest kernel now."""
        self._words[0] += 1


class EpochView:
    """The reading side; takes over ``fd``."""

    def __init__(self, fd: int) -> None:
        try:
            self._page = mmap.mmap(fd, PAGE_SIZE, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self._words = memoryview(self._page).cast("Q")

    @property
    def value(self) -> int:
        return self._words[0]

    def close(self) -> None:
        """Safe to call twice."""
        self._words.release()
        self._page.close()
