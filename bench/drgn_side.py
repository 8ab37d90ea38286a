"""drgn's side: its own memory readers, with types and symbols from our BTF and kallsyms finders.

There is no debug package for the guest's kernel here, and drgn reads no BTF. Once our finder has
made a type it is an object of drgn's own C core: a warm list is drgn's own speed. Attaching is
better than drgn's own: the kernel is found and its BTF decoded already, in the place of which drgn
would load a debug package.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import drgn
from drgn.helpers.linux.fs import d_path, for_each_file
from drgn.helpers.linux.list import list_for_each_entry

from bench.measure import Row, timed
from dvisor.guest import drgn_bridge
from dvisor.guest.kernel import Kernel

Open = Callable[[], drgn.Program]


def from_core(kernel: Kernel, core: Path) -> drgn.Program:
    """The core file, as ``drgn -c``."""
    prog = drgn.Program()
    prog.set_core_dump(core)
    drgn_bridge.add_finders(kernel, prog)
    return prog


def from_qmp(kernel: Kernel, socket: Path) -> drgn.Program:
    """The running QEMU, as ``drgn --qemu``. It has no vmcoreinfo device, so drgn is told."""
    gc.collect()  # the monitor serves one client, and a former program may still hold it
    prog = drgn.Program()
    prog.set_qemu_qmp(str(socket))
    prog.set_linux_kernel_custom(drgn_bridge.vmcoreinfo(kernel), is_live=True)
    drgn_bridge.add_finders(kernel, prog)
    return prog


def processes(prog: drgn.Program) -> Iterator[drgn.Object]:
    """The same list that dvisor walks; drgn's for_each_task walks the pids, threads included."""
    head = prog["init_task"].tasks.address_of_()
    yield from list_for_each_entry("struct task_struct", head, "tasks")


def tasks(prog: drgn.Program) -> int:
    """What ``dvisor.guest.tasks.Task`` holds."""
    state = "__state"
    found = [
        (
            task.pid.value_(),
            task.tgid.value_(),
            task.real_parent.tgid.value_(),
            task.cred.uid.val.value_(),
            task.comm.string_(),
            task.member_(state).value_(),
            task.exit_state.value_(),
            task.flags.value_(),
            task.start_boottime.value_(),
            task.mm.value_(),
        )
        for task in processes(prog)
    ]
    return len(found)


def files(prog: drgn.Program) -> int:
    """Every descriptor of every process, with its path."""
    return len([d_path(file.f_path) for _task, file in opened(prog)])


def sockets(prog: drgn.Program) -> int:
    """Sockets that a process has open: drgn has no list of all."""
    operations = prog.symbol("socket_file_ops").address
    found = set()
    for _task, file in opened(prog):
        if file.f_op.value_() == operations:
            sock = drgn.cast("struct socket *", file.private_data).sk
            common = sock.member_("__sk_common")
            found.add((sock.value_(), common.skc_family.value_(), common.skc_state.value_()))
    return len(found)


def opened(prog: drgn.Program) -> Iterator[tuple[drgn.Object, drgn.Object]]:
    """(process, file) of every open descriptor."""
    for task in processes(prog):
        if task.files:  # a zombie has none
            for _fd, file in for_each_file(task):
                if file:  # a descriptor may be reserved, its file not there yet
                    yield task, file


def attaching(who: str, open_it: Open) -> Row:
    def attach_and_list() -> int:
        return tasks(open_it())

    return timed("attach, and a first list", who, 5, attach_and_list)


def listing(who: str, prog: drgn.Program) -> list[Row]:
    return [
        timed("list of tasks", who, 20, partial(tasks, prog)),
        timed("all sockets", who, 5, partial(sockets, prog)),
        timed("all open files", who, 5, partial(files, prog)),
    ]
