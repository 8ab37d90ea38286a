"""Memory maps of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from dvisor.errors import GuestDataError
from dvisor.guest.files import device
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing
from dvisor.guest.maple import maple_entries
from dvisor.guest.paths import Location, Paths
from dvisor.guest.records import Record
from dvisor.guest.tasks import find_task

MAX_NAME = 256
TRIES = 4
"""A tree that changed under our eyes is read again this often before it is called partial."""

_VM_READ, _VM_WRITE, _VM_EXEC, _VM_MAYSHARE = 1, 2, 4, 0x80  # include/linux/mm.h
_PAGE_SHIFT = 12
_VSYSCALL_NONE = 2  # enum vsyscall_mode, arch/x86/entry/vsyscall/vsyscall_64.c
_HAS_VSYSCALL = 2  # MM_CONTEXT_HAS_VSYSCALL, arch/x86/include/asm/mmu.h: clear in 32-bit processes


class Mapping(msgspec.Struct, frozen=True):
    """One line of /proc/PID/maps."""

    start: int
    end: int
    """One behind the last byte."""
    permissions: str
    """``rwxp``, with - for what is not permitted; s for shared, p for private."""
    offset: int
    """Of the start in the file, in bytes; 0 without a file."""
    device: str
    """``major:minor`` (decimal) of the file's filesystem; ``0:0`` without a file."""
    inode: int
    path: str
    """The file's path, [heap], [stack], [vdso], [vvar], [anon:NAME] ..., or ""."""
    address: int
    """Of the vm_area_struct."""


def read_maps(kernel: Kernel, pid: int) -> Listing[Mapping]:
    """Memory maps of the process ``pid``, as /proc/PID/maps; none for a kernel thread."""
    task = find_task(kernel, pid)
    listing: Listing[Mapping] = Listing()
    if not task.mm:
        return listing
    reader = _Reader(kernel, task.mm)
    for _ in range(TRIES):
        listing = reader.read()
        if listing.complete:
            break
    return listing


class _Reader:
    def __init__(self, kernel: Kernel, mm: int) -> None:
        self.kernel = kernel
        self.mm = mm
        self.paths = Paths(kernel)
        self.area: Record = kernel.record(
            "vm_area_struct",
            "vm_start",
            "vm_end",
            "vm_mm",
            "vm_flags",
            "vm_pgoff",
            "vm_file",
            "vm_ops",
            "vm_private_data",
            "anon_name?",
        )
        self.file = kernel.record("file", "f_path.mnt", "f_path.dentry", "f_inode")
        self.inode = kernel.record("inode", "i_ino", "i_sb")
        self.super_block = kernel.record("super_block", "s_dev")
        self.special = kernel.record("vm_special_mapping", "name")
        self.special_operations = kernel.find_symbol("special_mapping_vmops")
        # Before 6.2 anon_name stood in a union with a file mapping's tree links (d09e8ca6cb93).
        anonymous = kernel.place("vm_area_struct", "anon_name")
        links = kernel.offset("vm_area_struct", "shared")
        self.names_share_space = anonymous is not None and anonymous.offset == links
        self.heap = kernel.record("mm_struct", "start_brk", "brk").read(mm)
        self.stack = kernel.record("mm_struct", "start_stack").read(mm)[0]

    def read(self) -> Listing[Mapping]:
        listing: Listing[Mapping] = Listing()
        tree = self.mm + self.kernel.offset("mm_struct", "mm_mt")
        root = self.kernel.record("maple_tree", "ma_root").read(tree)[0]
        for first, last, address in maple_entries(
            self.kernel, root, listing.problem, "memory maps"
        ):
            if address & 3:  # a mark of the kernel's own (XA_ZERO_ENTRY during fork), no area
                continue
            try:
                values = self.area.read(address)
                if values[:3] != (first, last + 1, self.mm):
                    listing.problem("a memory map changed while it was read")
                listing.append(self.mapping(address, values))
            except GuestDataError as error:
                listing.problem(f"a memory map cannot be read: {error}")
        listing.extend(self.vsyscall())
        return listing

    def mapping(self, address: int, values: tuple[Any, ...]) -> Mapping:
        """``values``: those of ``self.area`` at ``address``."""
        start, end, _, flags, page, file = values[:6]
        place, inode = (self.file_of(file)) if file else ("0:0", 0)
        return Mapping(
            start,
            end,
            permissions(flags),
            page << _PAGE_SHIFT if file else 0,
            place,
            inode,
            self.name(values),
            address,
        )

    def file_of(self, file: int) -> tuple[str, int]:
        """Device and inode number."""
        number, super_block = self.inode.read(self.file.read(file)[2])
        return device(self.super_block.read(super_block)[0]), number

    def name(self, values: tuple[Any, ...]) -> str:
        """As get_vma_name() in fs/proc/task_mmu.c chooses it."""
        start, end, _, _, _, file, operations, private, anonymous = values
        if file:
            if anonymous and not self.names_share_space:
                return f"[anon_shmem:{self.anonymous(anonymous)}]"
            mount, dentry, _ = self.file.read(file)
            return self.paths.path(Location(mount, dentry)).text
        if operations and operations == self.special_operations:
            return self.string(self.special.read(private)[0])
        heap_start, heap_end = self.heap
        if start < heap_end and end > heap_start:
            return "[heap]"
        if start <= self.stack <= end:
            return "[stack]"
        return f"[anon:{self.anonymous(anonymous)}]" if anonymous else ""

    def anonymous(self, address: int) -> str:
        """The name that prctl(PR_SET_VMA) gave."""
        return self.string(address + self.kernel.offset("anon_vma_name", "name"))

    def string(self, address: int) -> str:
        return self.kernel.memory.string(address, MAX_NAME).decode("utf-8", "backslashreplace")

    def vsyscall(self) -> Iterator[Mapping]:
        """The page at a fixed address that all 64-bit processes share, unless switched off."""
        kernel = self.kernel
        mode, area = kernel.find_symbol("vsyscall_mode"), kernel.find_symbol("gate_vma")
        context = kernel.place("mm_struct", "context.flags")
        if mode is None or area is None or kernel.memory.u32(mode) == _VSYSCALL_NONE:
            return
        if context and not kernel.memory.read(self.mm + context.offset, 1)[0] & _HAS_VSYSCALL:
            return
        values = self.area.read(area)
        yield Mapping(values[0], values[1], permissions(values[3]), 0, "0:0", 0, "[vsyscall]", area)


def permissions(flags: int) -> str:
    """vm_flags as /proc/PID/maps prints them."""
    letters = ((_VM_READ, "r"), (_VM_WRITE, "w"), (_VM_EXEC, "x"))
    shown = "".join(letter if flags & bit else "-" for bit, letter in letters)
    return shown + ("s" if flags & _VM_MAYSHARE else "p")
