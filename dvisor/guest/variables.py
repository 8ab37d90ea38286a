"""Types of the kernel's global variables.

BTF names the types of per-CPU variables only. These are the others that debuggers and forensic
tools ask for; a variable whose symbol or base type a kernel lacks is simply not there. ``[]`` is an
array whose length follows from where the next symbol begins.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from dvisor.guest import btf as bt
from dvisor.guest.btf import Btf

_TABLE = """
__cpu_online_mask            struct cpumask
__cpu_possible_mask          struct cpumask
__cpu_present_mask           struct cpumask
__highest_present_section_nr long unsigned int
__per_cpu_offset             long unsigned int[]
_totalram_pages              atomic_long_t
arp_seq_ops                  struct seq_operations
avenrun                      long unsigned int[3]
block_class                  struct class
blockdev_superblock          struct super_block *
bpf_kallsyms                 struct list_head
btf_idr                      struct idr
bus_kset                     struct kset *
cap_last_cap                 int
cdev_map                     struct kobj_map *
cgrp_dfl_root                struct cgroup_root
chrdevs                      struct char_device_struct *[255]
class_kset                   struct kset *
crashing_cpu                 int
ftrace_list_end              struct ftrace_ops
ftrace_mod_maps              struct list_head
ftrace_ops_list              struct ftrace_ops *
ftrace_ops_trampoline_list   struct list_head
hstates                      struct hstate[2]
hugetlb_max_hstate           int
idt_table                    struct gate_struct[256]
init_cgroup_ns               struct cgroup_namespace
init_cred                    struct cred
init_css_set                 struct css_set
init_files                   struct files_struct
init_fs                      struct fs_struct
init_ipc_ns                  struct ipc_namespace
init_mm                      struct mm_struct
init_net                     struct net
init_nsproxy                 struct nsproxy
init_pid_ns                  struct pid_namespace
init_task                    struct task_struct
init_user_ns                 struct user_namespace
init_uts_ns                  struct uts_namespace
iomem_resource               struct resource
ioport_resource              struct resource
irq_desc_tree                struct xarray
jiffies                      long unsigned int
jiffies_64                   long long unsigned int
kallsyms_num_syms            unsigned int
keyboard_notifier_list       struct atomic_notifier_head
link_idr                     struct idr
linux_banner                 char[]
log_buf                      char *
log_buf_len                  unsigned int
major_names                  struct blk_major_name *[255]
map_idr                      struct idr
max_low_pfn                  long unsigned int
max_pfn                      long unsigned int
mem_section                  struct mem_section **
memory_subsys                struct bus_type
min_low_pfn                  long unsigned int
mod_tree                     struct mod_tree_root
module_kset                  struct kset *
modules                      struct list_head
net_namespace_list           struct list_head
node_data                    struct pglist_data *[]
node_states                  nodemask_t[]
nr_cpu_ids                   unsigned int
nr_irqs                      unsigned int
nr_node_ids                  unsigned int
nr_swap_pages                atomic_long_t
nr_swapfiles                 unsigned int
nr_vmap_nodes                int
packet_seq_ops               struct seq_operations
page_offset_base             long unsigned int
pci_bus_type                 struct bus_type
pci_root_buses               struct list_head
phys_base                    long unsigned int
ping_prot                    struct proto
prb                          struct printk_ringbuffer *
prog_idr                     struct idr
raw6_seq_ops                 struct seq_operations
raw_prot                     struct proto
raw_seq_ops                  struct seq_operations
root_task_group              struct task_group
saved_command_line           char *
sections_per_block           int
slab_caches                  struct list_head
slab_kset                    struct kset *
socket_file_ops              struct file_operations
sockfs_dentry_operations     struct dentry_operations
sparse_irqs                  struct maple_tree
super_blocks                 struct list_head
swap_info                    struct swap_info_struct *[]
swapper_spaces               struct address_space *[]
sysctl_overcommit_kbytes     long unsigned int
sysctl_overcommit_ratio      int
sysfs_root_kn                struct kernfs_node *
system_state                 enum system_states
taint_flags                  struct taint_flag[]
tainted_mask                 long unsigned int
task_state_array             char *[9]
task_struct_cachep           struct kmem_cache *
tcp4_seq_afinfo              struct tcp_seq_afinfo
tcp4_seq_ops                 struct seq_operations
tcp6_seq_afinfo              struct tcp_seq_afinfo
tcp6_seq_ops                 struct seq_operations
tcp_hashinfo                 struct inet_hashinfo
tcp_prot                     struct proto
timekeeper_data              struct tk_data[]
tk_core                      struct tk_data
total_nr_irqs                unsigned int
total_swap_pages             long int
totalreserve_pages           long unsigned int
tty_drivers                  struct list_head
udp4_seq_afinfo              struct udp_seq_afinfo
udp6_seq_afinfo              struct udp_seq_afinfo
udp6_seq_ops                 struct seq_operations
udp_prot                     struct proto
udp_seq_ops                  struct seq_operations
udp_table                    struct udp_table
udplite6_seq_ops             struct seq_operations
udplite_seq_ops              struct seq_operations
uidhash_table                struct hlist_head[128]
unix_seq_ops                 struct seq_operations
vm_committed_as              struct percpu_counter
vm_node_stat                 atomic_long_t[]
vm_numa_event                atomic_long_t[]
vm_zone_stat                 atomic_long_t[]
vmalloc_base                 long unsigned int
vmap_area_list               struct list_head
vmap_area_root               struct rb_root
vmap_nodes                   struct vmap_node *
vmap_zone_size               long unsigned int
vmemmap_base                 long unsigned int
"""

_ROW = re.compile(r"(\w+)\s+(.*?)\s*(\**)(?:\[(\d*)\])?$")


class Declared(NamedTuple):
    """A variable's type: ``pointers`` stars on a BTF type, and how many of them in an array."""

    type_id: int
    pointers: int = 0
    length: int | None = None
    """Elements of the array; None if it is not one."""

    def size(self, types: Btf) -> int:
        """In bytes."""
        one = 8 if self.pointers else types.size(self.type_id)
        return one if self.length is None else one * self.length


@cache
def _rows() -> dict[str, tuple[str, int, str | None]]:
    """name -> (base type, stars, count in digits, "" for unknown, None for no array)."""
    rows = (_ROW.match(line) for line in _TABLE.strip().splitlines())
    return {row[1]: (row[2], len(row[3]), row[4]) for row in rows if row}


def names() -> list[str]:
    """All variables of the table."""
    return list(_rows())


def declared(types: Btf, name: str, room_bytes: int) -> Declared | None:
    """The type of variable ``name``; ``room_bytes``: from its address to the next symbol's.

    None where neither BTF nor the table has one, or where it does not fit into its room.
    """
    variable = types.find(name, bt.VAR)
    if variable is not None:
        return Declared(types.target(variable))
    row = _rows().get(name)
    if row is None:
        return None
    base, pointers, count = row
    type_id = _base(types, base)
    if type_id is None:
        return None
    if count is None:
        found = Declared(type_id, pointers)
    else:
        one = Declared(type_id, pointers).size(types)
        found = Declared(type_id, pointers, int(count or room_bytes // max(one, 1)))
    return found if found.size(types) <= room_bytes else None


def _base(types: Btf, name: str) -> int | None:
    keyword, _, tag = name.partition(" ")
    if keyword == "struct":
        return types.find(tag, bt.STRUCT)
    if keyword == "enum":
        return types.find(tag, bt.ENUM, bt.ENUM64)
    return types.find(name, bt.INT, bt.TYPEDEF)
