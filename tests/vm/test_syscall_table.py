"""The table of system calls against the kernel that runs: its own table, symbols and types."""

from __future__ import annotations

import pytest

from dvisor.errors import NotFoundError
from dvisor.guest.kernel import Kernel
from dvisor.policy.syscalls import document, table
from tests.unit.test_syscalls import KERNEL
from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

PREFIX = "__x64_sys_"
NOTHING = "ni_syscall"
FUNCTIONS = {int(number): function for number, _, _, _, function, _ in KERNEL}
OF_32_BITS = {
    # Of the 32-bit table alone; SYSCALL_DEFINE makes the 64-bit entry of them all the same.
    *("fadvise64_64", "getegid16", "geteuid16", "getgid16", "getgroups16", "getresgid16"),
    *("getresuid16", "getuid16", "ipc", "llseek", "mmap_pgoff", "nice", "old_getrlimit"),
    *("old_msgctl", "old_mmap", "old_readdir", "old_select", "old_semctl", "old_shmctl"),
    *("oldumount", "olduname", "recv", "send", "setfsgid16", "setfsuid16", "setgid16"),
    *("setgroups16", "setregid16", "setresgid16", "setresuid16", "setreuid16", "setuid16"),
    *("sgetmask", "sigpending", "sigprocmask", "sigsuspend", "signal", "socketcall", "ssetmask"),
    *("stat", "lstat", "fstat", "statfs64", "fstatfs64", "stime", "uname", "waitpid"),
    *("chown16", "fchown16", "lchown16", "sync_file_range2", "bdflush", "pciconfig_iobase"),
    *("pciconfig_read", "pciconfig_write", "spu_create", "spu_run", "subpage_prot", "vm86"),
    *("vm86old", "rt_sigtimedwait_time32", "restart", "sigaction", "sigreturn", "set_thread_area"),
    *("get_thread_area", "uselib"),
}


def functions(kernel: Kernel) -> dict[str, int]:
    """The kernel's entries of 64-bit calls, by name."""
    symbols = kernel.symbols
    pairs = zip(symbols.names, symbols.addresses, strict=True)
    named = ((full[1:], address) for full, address in pairs)
    return {n.removeprefix(PREFIX): address for n, address in named if n.startswith(PREFIX)}


def test_every_entry_of_the_kernel_is_in_the_table(matrix_guest: RunningGuest) -> None:
    found = functions(matrix_guest.guest.kernel)
    assert len(found) > 300
    unknown = {name for name in found if not name.endswith("_time32")}
    assert unknown - set(FUNCTIONS.values()) - OF_32_BITS - {NOTHING} == set()


def test_every_number_leads_to_the_function_that_the_table_means(
    matrix_guest: RunningGuest,
) -> None:
    """The array stays for tracing where the kernel no longer calls through it (since 6.9)."""
    kernel = matrix_guest.guest.kernel
    entries, start = functions(kernel), kernel.symbol("sys_call_table")
    nothing = entries[NOTHING]
    version = tuple(map(int, matrix_guest.shell("uname -r").split("-")[0].split(".")[:2]))
    for number, call in table().items():
        if call.new and version < (7, 2):
            continue
        entry = kernel.memory.u64(start + 8 * number)
        # A function that is configured out, like one that never was, is ni_syscall's.
        expected = {entries.get(FUNCTIONS[number], nothing), nothing if call.gone else -1}
        assert entry in expected, (number, call.name)


def test_sizes_are_those_of_the_kernel_s_own_types(matrix_guest: RunningGuest) -> None:
    kernel = matrix_guest.guest.kernel
    sizes, absent = {}, set()
    for name, each in document().types.items():
        if not each.btf:
            continue
        try:
            sizes[name] = kernel.size_of(each.btf)
        except NotFoundError:
            absent.add(name)
    assert sizes == {name: document().types[name].size for name in sizes}
    assert len(sizes) > 40, absent
