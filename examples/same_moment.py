"""Several views of one and the same moment: the guest stands still for a few milliseconds.

python examples/same_moment.py [TARGET]
"""

import sys
import time

import dvisor

with dvisor.attach(sys.argv[1] if len(sys.argv) > 1 else None) as vm:
    vm.guest.tasks(), vm.guest.files()  # the first look at a kernel learns its structures
    started = time.perf_counter()
    with vm.stopped():
        tasks, files = vm.guest.tasks(), vm.guest.files()
    stopped_ms = (time.perf_counter() - started) * 1000

    alive = {task.pid for task in tasks}
    assert all(file.pid in alive for file in files)
    print(f"{len(tasks)} processes, {len(files)} open files, guest stopped for {stopped_ms:.1f} ms")
