"""Who listens for TCP connections in a guest, and with which program.

python examples/listeners.py [TARGET]
"""

import sys

import dvisor

with dvisor.attach(sys.argv[1] if len(sys.argv) > 1 else None) as vm:
    processes = {process.pid: process for process in vm.guest.processes()}
    for socket in vm.guest.sockets():
        if socket.protocol == "tcp" and socket.state == "LISTEN":
            owners = [processes[owner.pid].exe for owner in socket.owners]
            print(f"{socket.local}:{socket.local_port}", *owners)
