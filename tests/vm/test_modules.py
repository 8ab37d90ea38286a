"""Modules from beneath against the guest's own /proc and /sys."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import pytest

from dvisor.guest.module_symbols import module_btf, module_symbols, module_types
from dvisor.guest.modules import Module
from dvisor.guest.resolve import Resolver
from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

_STATES = {"live": "Live", "coming": "Loading", "going": "Unloading"}
_MARKS = {"live": "", "coming": "+", "going": "-"}


def as_proc(module: Module) -> str:
    """The line of /proc/modules (m_show(), kernel/module/procfs.c)."""
    users = "".join(f"{user}," for user in module.used_by) + "[permanent]," * module.permanent
    marks = module.taints + _MARKS[module.state]
    return (
        f"{module.name} {module.size_bytes} {module.refcount} {users or '-'} "
        f"{_STATES[module.state]} {module.base:#018x}" + (f" ({marks})" if marks else "")
    )


def test_the_list_is_the_guest_s_own(matrix_guest: RunningGuest) -> None:
    found = matrix_guest.guest.modules()
    assert found.complete, found.problems
    lines = matrix_guest.shell("cat /proc/modules").splitlines()
    assert len(lines) > 2
    assert [as_proc(m) for m in found if m.listed] == lines
    assert all(m.listed for m in found)


def test_every_symbol_of_every_module_is_the_guest_s_own(matrix_guest: RunningGuest) -> None:
    expected: dict[str, set[tuple[int, str, str]]] = defaultdict(set)
    for line in matrix_guest.shell("grep -F [ /proc/kallsyms || true").splitlines():
        address, letter, name, module = line.split()
        expected[module.strip("[]")].add((int(address, 16), letter.lower(), name))
    kernel = matrix_guest.guest.kernel
    for module in matrix_guest.guest.modules():
        symbols = module_symbols(kernel, module)
        assert {(s.address, s.type, s.name) for s in symbols} == expected[module.name]


def test_types_of_modules_go_on_from_the_kernel_s(matrix_guest: RunningGuest) -> None:
    problems: list[str] = []
    kernel = matrix_guest.guest.kernel
    types = module_types(kernel, problems.append)
    assert not problems
    listed = set(matrix_guest.shell("ls /sys/kernel/btf").split()) - {"vmlinux"}
    assert set(types) == listed
    virtio = types["virtio_blk"]
    assert virtio.size(virtio.structure("virtio_blk")) > 0  # its own
    # A type of the kernel's, by the module's (7.2 gives the module a task_struct of its own).
    assert virtio.size(virtio.structure("task_struct")) == kernel.size_of("task_struct")
    inside = matrix_guest.shell("md5sum < /sys/kernel/btf/virtio_blk").split()[0]
    raw = module_btf(kernel, problems.append)["virtio_blk"]
    assert hashlib.md5(raw, usedforsecurity=False).hexdigest() == inside


def test_an_address_of_a_module_is_named_with_it(matrix_guest: RunningGuest) -> None:
    resolver = Resolver(matrix_guest.guest.kernel)
    line = matrix_guest.shell("grep 'virtblk_probe[[:space:]]' /proc/kallsyms")
    address = int(line.split()[0], 16)
    assert resolver.name(address + 5) == "virtblk_probe+0x5 [virtio_blk]"
    assert resolver.name(matrix_guest.guest.kernel.symbol("schedule") + 9) == "schedule+0x9"
    assert resolver.name(0x1234) == "0x1234"
