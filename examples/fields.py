"""Any structure of the guest's kernel, by the types that it carries itself: here, what is known of
each process's scheduling that no view shows.

    python examples/fields.py [TARGET]
"""

import sys

import dvisor

with dvisor.attach(sys.argv[1] if len(sys.argv) > 1 else None) as vm:
    kernel = vm.guest.kernel
    # "a|b": a member that was renamed; "?" at the end: None where this kernel has none.
    entity = kernel.record("task_struct", "se.vruntime", "se.sum_exec_runtime", "se.slice?")
    for task in vm.guest.tasks():
        vruntime, run_ns, slice_ns = entity.read(task.address)
        print(f"{task.pid:>7} {task.comm:<16} {run_ns / 1e9:8.3f} s  {vruntime} {slice_ns}")
