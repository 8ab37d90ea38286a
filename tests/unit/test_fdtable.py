"""Descriptor tables, sound and not."""

from __future__ import annotations

import struct

from dvisor.guest.fdtable import MAX_FDS, files_struct, table_files
from tests.unit.fake_kernel import FakeKernel

LAYOUTS = {
    "task_struct.files": (0, "Q"),
    "files_struct.fdt": (8, "Q"),
    "fdtable.max_fds": (0, "I"),
    "fdtable.fd": (8, "Q"),
    "fdtable.open_fds": (16, "Q"),
}
TASK, FILES, TABLE, BITMAP, ARRAY = (0xFFFF_8880_0001_0000 + 0x10_0000 * i for i in range(5))


def table(
    open_fds: dict[int, int], reserved: tuple[int, ...] = (), max_fds: int = 256
) -> FakeKernel:
    kernel = FakeKernel(LAYOUTS)
    kernel.put("task_struct", TASK, files=FILES)
    kernel.put("files_struct", FILES, fdt=TABLE)
    kernel.put("fdtable", TABLE, max_fds=max_fds, fd=ARRAY, open_fds=BITMAP)
    bits = sum(1 << fd for fd in (*open_fds, *reserved))
    kernel.memory.write(BITMAP, bits.to_bytes(32, "little"))
    kernel.memory.write(ARRAY, struct.pack("<256Q", *(open_fds.get(fd, 0) for fd in range(256))))
    return kernel


def read(kernel: FakeKernel, files: int = FILES) -> tuple[list[tuple[int, int]], list[str]]:
    problems: list[str] = []
    return list(table_files(kernel, files, problems.append)), problems


def test_open_descriptors_come_ascending_and_reserved_ones_not_at_all() -> None:
    kernel = table({0: 0x10, 63: 0x20, 64: 0x30, 255: 0x40}, reserved=(5,))
    assert read(kernel) == ([(0, 0x10), (63, 0x20), (64, 0x30), (255, 0x40)], [])


def test_task_that_has_exited_has_no_files() -> None:
    kernel = table({0: 0x10})
    kernel.put("task_struct", TASK, files=0)
    assert files_struct(kernel, TASK) == 0


def test_wild_pointers_are_told() -> None:
    kernel = table({0: 0x10})
    kernel.put("fdtable", TABLE, fd=0xDEAD_BEEF_0000)
    found, problems = read(kernel)
    assert found == []
    assert "no page is mapped at 0xdeadbeef0000" in problems[0]
    found, problems = read(kernel, files=0x1234_0000)
    assert found == []
    assert len(problems) == 1


def test_absurd_table_is_cut_and_told() -> None:
    found, problems = read(table({0: 0x10}, max_fds=0xFFFF_FFC0))
    assert found == []
    assert f"only the first {MAX_FDS}" in problems[0]
