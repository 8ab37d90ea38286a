"""Programs and files that run on although they were deleted: often an update, sometimes a guest
of one's guest.

    python examples/deleted_files.py [TARGET]
"""

import sys

import dvisor

with dvisor.attach(sys.argv[1] if len(sys.argv) > 1 else None) as vm:
    for file in vm.guest.files():
        if file.deleted and file.kind == "file":
            print(f"process {file.pid} holds {file.path!r}, {file.size_bytes} bytes")
    for process in vm.guest.processes():
        if process.exe and process.exe.endswith(" (deleted)"):
            print(f"process {process.pid} runs {process.exe!r}")
