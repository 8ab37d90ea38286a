"""The library that QEMU loads, and the memory that it shares."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from pathlib import Path

from dvisor.errors import HostError
from dvisor.machine import traps_layout

LIBRARY = Path(__file__).with_name("dvisor_traps.so")
PROTOCOL = traps_layout.load()
REGION = PROTOCOL.structs["region"]

# include/uapi/linux/fcntl.h: SEAL, SHRINK, GROW. A file that somebody shortens under QEMU's
# mapping would end QEMU by SIGBUS.
_F_ADD_SEALS = 1033
_SEALS = 0x01 | 0x02 | 0x04


def library() -> Path:
    """The built library; HostError, saying what to do, where it was not built."""
    if not LIBRARY.exists():
        raise HostError(
            f"{LIBRARY} is missing: traps need dvisor's native library, which is built when dvisor "
            "is installed where there is a C compiler. Install gcc and libc6-dev, then install "
            "dvisor again (in a checkout: make native)"
        )
    return LIBRARY


def shared_memory() -> int:
    """A sealed memfd for one VM's library, its first words written; the caller owns it."""
    fd = os.memfd_create("dvisor-traps", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, REGION.size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
        with mmap.mmap(fd, REGION.size) as memory:
            header = PROTOCOL.structs["header"]
            struct.pack_into("<Q", memory, header["magic"].offset, PROTOCOL.magic)
            struct.pack_into("<I", memory, header["version"].offset, PROTOCOL.version)
            struct.pack_into("<I", memory, header["size_bytes"].offset, REGION.size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def plugin_arguments(library_path: Path, fd: int) -> list[str]:
    """QEMU's options that load the library; a comma in a path is doubled (qemu(1), -drive)."""
    return ["-plugin", f"{str(library_path).replace(',', ',,')},fd={fd}"]
