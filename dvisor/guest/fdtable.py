"""File descriptor tables: which ``struct file`` each descriptor of a task names."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.lists import Problem

MAX_FDS = 1 << 22
"""Descriptors looked at in one table; the kernel's own limit, fs.nr_open, is 1 << 20 by default."""

_WORD_BITS = 64
_POINTERS = struct.Struct(f"<{_WORD_BITS}Q")


def files_struct(kernel: Kernel, task_address: int) -> int:
    """Address of the task's ``files_struct``; 0 for one that has exited.

    Threads of a process share one, as do tasks made with CLONE_FILES; kernel threads share
    ``init_files``, which is empty.
    """
    address: int = kernel.record("task_struct", "files").read(task_address)[0]
    return address


def table_files(kernel: Kernel, files: int, problem: Problem) -> Iterator[tuple[int, int]]:
    """(descriptor, address of its ``struct file``) of a ``files_struct``, ascending.

    The kernel sets the bit in open_fds before the pointer and clears it after, so a pointer read
    second is never missed; a bit without one is a descriptor that is only reserved.
    """
    memory = kernel.memory
    try:
        table = kernel.record("files_struct", "fdt").read(files)[0]
        max_fds, array, bitmap = kernel.record("fdtable", "max_fds", "fd", "open_fds").read(table)
        if max_fds > MAX_FDS:
            problem(f"a table of {max_fds} descriptors: only the first {MAX_FDS} were looked at")
        size = min(max_fds, MAX_FDS) // _WORD_BITS * 8  # sane_fdtable_size(), fs/file.c
        words = memory.read(bitmap, size)
    except GuestDataError as error:
        problem(f"a table of descriptors cannot be read: {error}")
        return
    for position in range(0, size, 8):
        bits = int.from_bytes(words[position : position + 8], "little")
        if not bits:
            continue
        first = position * 8
        try:
            pointers = memory.unpack(_POINTERS, array + 8 * first)
        except GuestDataError as error:
            problem(f"a table of descriptors cannot be read: {error}")
            return
        for number, file in enumerate(pointers):
            if bits >> number & 1 and file:
                assert isinstance(file, int)
                yield first + number, file
