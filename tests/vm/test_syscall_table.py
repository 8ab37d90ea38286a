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
OF_OTHER_TABLES = {
    # SYSCALL_DEFINE makes a 64-bit entry of the calls of the 32-bit table, too, and kernel/sys_ni.c
    # one of those of other architectures.
    *("chown16", "clock_adjtime32", "clock_gettime32", "clock_settime32", "fadvise64_64"),
    *("fchown16", "fstat", "fstatfs64", "get_thread_area", "getegid16", "geteuid16"),
    *("getgid16", "getgroups16", "gethostname", "getresgid16", "getresuid16", "getuid16"),
    *("ia32_fadvise64", "ia32_fadvise64_64", "ia32_fallocate", "ia32_ftruncate64"),
    *("ia32_pread64", "ia32_pwrite64", "ia32_readahead", "ia32_sync_file_range"),
    *("ia32_truncate64", "ipc", "lchown16", "llseek", "lstat", "mmap_pgoff", "nice"),
    *("old_getrlimit", "old_msgctl", "old_readdir", "old_semctl", "old_shmctl", "oldumount"),
    *("olduname", "pciconfig_iobase", "pciconfig_read", "pciconfig_write", "recv", "rtas"),
    *("s390_ipc", "s390_pci_mmio_read", "s390_pci_mmio_write", "send", "sendfile"),
    *("set_thread_area", "setfsgid16", "setfsuid16", "setgid16", "setgroups16", "setregid16"),
    *("setresgid16", "setresuid16", "setreuid16", "setuid16", "sgetmask", "signal"),
    *("sigpending", "sigprocmask", "sigsuspend", "socketcall", "spu_create", "spu_run"),
    *("ssetmask", "stat", "statfs64", "stime", "stime32", "subpage_prot", "sync_file_range2"),
    *("time32", "timer_gettime32", "timer_settime32", "timerfd_gettime32", "timerfd_settime32"),
    *("uname", "uselib", "utime32", "vm86", "vm86old", "waitpid"),
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
    whole = {name for name in found if not name.endswith((".cold", "_time32"))}
    assert whole - set(FUNCTIONS.values()) - OF_OTHER_TABLES == set()


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
