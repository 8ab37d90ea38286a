"""``dvisor demo``: a real guest, seen from beneath and from inside, side by side."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer

from dvisor.api import Vm, attach, up
from dvisor.cli import output
from dvisor.errors import EngineError

# Printed by the guest's own Python from its own /proc: what a tool inside can know at best.
_INSIDE = """
import json, os
def read(path):
    try: return open(path, "rb").read().decode("utf-8", "backslashreplace")
    except OSError: return ""
pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
files = {}
for pid in pids:
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            files[f"{pid}/{fd}"] = os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError: pass
listening = {}
for family in ("tcp", "tcp6"):
    for row in read("/proc/net/" + family).splitlines()[1:]:
        cells = row.split()
        if cells[3] == "0A":
            held = [int(k.split("/")[0]) for k, v in files.items() if v == f"socket:[{cells[9]}]"]
            listening[family[3:] + ":" + str(int(cells[1].split(":")[1], 16))] = sorted(set(held))
names = {pid: name for pid in pids if (name := read(f"/proc/{pid}/comm").strip())}
print(json.dumps({"self": os.getpid(), "names": names, "files": files, "listening": listening}))
"""

_HIDDEN = (
    'python3 -c \'import socket, time; s = socket.socket(); s.bind(("0.0.0.0", 31337)); '
    'f = open("/tmp/.loot", "w"); s.listen(); time.sleep(1e6)\' & '
    "sleep 1; mkdir -p /tmp/empty; mount --bind /tmp/empty /proc/$!; echo $!"
)


class Inside(NamedTuple):
    """What the guest says of itself."""

    names: dict[int, str]
    files: dict[tuple[int, int], str]
    listening: dict[str, list[int]]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor demo --kernel 7.2")
    def demo(
        kernel: Annotated[str, typer.Option(help="6.1, 6.12, 7.2 or rt.")] = "6.12",
        keep: Annotated[bool, typer.Option("--keep", help="Leave the VM running.")] = False,
    ) -> None:
        """Boot a Debian guest and show what runs in it, beside what it says itself.

        Then a process hides from the guest's own tools, and is seen all the same. The first run
        builds the image; a second one takes less than half a minute. Exit code 1 if the two
        sides disagree where they should not.
        """
        started = time.perf_counter()
        with _guest(kernel, keep) as vm:
            times = {"boot to login": time.perf_counter() - started}
            agreed = _show(vm, times)
        times["whole demo"] = time.perf_counter() - started
        _heading("Times on this machine, as it is loaded now")
        for what, seconds in times.items():
            typer.echo(f"  {what:<34}{_duration(seconds):>10}")
        if not agreed:
            output.warn("the two sides disagree: that should not be; please report it")
            raise typer.Exit(1)


@contextlib.contextmanager
def _guest(kernel: str, keep: bool) -> Iterator[Vm]:
    from dvisor.machine.config import load_config, override

    name = f"demo-{os.getpid()}"
    config = override(load_config("debian"), name=name, kernel=kernel)
    _heading(f"A Debian guest boots (kernel {kernel}, VM {name})")
    machine = up(config, lambda text: typer.echo(f"  {text}"), "dvisor: ready", 300)
    try:
        with attach(name) as vm:
            yield vm
    finally:
        if keep:
            typer.echo(f"\nThe VM goes on: dvisor ps {name}; dvisor down {name}")
        else:
            with contextlib.suppress(EngineError), machine.control() as control:
                control.quit(force=True)


def _show(vm: Vm, times: dict[str, float]) -> bool:
    with _timed(times, "attach: kernel, symbols, types"):
        kernel = vm.guest.kernel
    typer.echo(f"  {vm.engine.description}")
    release = kernel.banner.decode("ascii", "replace").split()[2]
    typer.echo(f"  found Linux {release} by itself: no agent, no symbol file")
    before = _inside(vm)
    with _timed(times, "first look: learns its structures"):
        vm.guest.files()
        vm.guest.sockets()
    with vm.stopped():
        with _timed(times, "all processes"):
            tasks = vm.guest.tasks()
        with _timed(times, "all open files, with paths"):
            files = vm.guest.files()
        with _timed(times, "all sockets, with owners"):
            sockets = vm.guest.sockets()
    after = _inside(vm)

    _heading("Processes: beneath | inside")
    names = {task.pid: task.comm for task in tasks}
    rows = [(task.pid, task.comm, after.names.get(task.pid, "")) for task in tasks if task.mm]
    output.table(
        rows, [(">PID", lambda r: r[0]), ("BENEATH", lambda r: r[1]), ("INSIDE", lambda r: r[2])]
    )
    same = _compare("processes", set(names), set(before.names), set(after.names))

    _heading("Listening TCP sockets: beneath | inside")
    beneath = {
        f"{'6' if found.family == 'inet6' else ''}:{found.local_port}": sorted(
            {owner.pid for owner in found.owners}
        )
        for found in sockets
        if found.protocol == "tcp" and found.state == "LISTEN"
    }
    ports = sorted(beneath.keys() | after.listening.keys())
    output.table(
        ports,
        [
            ("PORT", lambda port: "tcp" + port),
            ("BENEATH", lambda port: _owners(beneath.get(port), names)),
            ("INSIDE", lambda port: _owners(after.listening.get(port), after.names)),
        ],
    )
    same &= _compare("listening sockets", set(beneath), set(before.listening), set(after.listening))

    _heading("Open files of rsyslogd: beneath | inside")
    paths = {(file.pid, file.fd): file.path for file in files}
    logger = next((pid for pid, name in names.items() if "rsyslogd" in name), 1)
    output.table(
        sorted(key for key in paths if key[0] == logger),
        [
            (">FD", lambda key: key[1]),
            ("BENEATH", lambda key: paths[key]),
            ("INSIDE", lambda key: after.files.get(key, "")),
        ],
    )
    same &= _compare(
        "open files", set(paths.items()), set(before.files.items()), set(after.files.items())
    )
    return same & _hide(vm)


def _hide(vm: Vm) -> bool:
    """A process that the guest's tools do not show."""
    _heading("An attacker with root hides a process that listens on port 31337")
    pid = int(_run(vm, _HIDDEN).split()[-1])
    inside = _inside(vm)
    shown = "still there" if pid in inside.names else "no such process"
    owner = inside.listening.get(":31337") or "nobody"
    typer.echo(f"  inside: process {pid}: {shown}; who listens on port 31337: {owner}")
    task = next((task for task in vm.guest.tasks() if task.pid == pid), None)
    ports = [
        found.local_port
        for found in vm.guest.sockets()
        if found.state == "LISTEN" and any(owner.pid == pid for owner in found.owners)
    ]
    if task is None:
        typer.echo("  beneath: not found either")
        return False
    who = f"process {pid} ({task.comm}) of uid {task.uid}, parent {task.ppid}"
    typer.echo(f"  beneath: {who}, listens on port {', '.join(map(str, ports))}; its files:")
    for file in vm.guest.files(pid):
        typer.echo(f"    {file.fd:>3}  {output.printable(file.path)}")
    return pid not in inside.names and ports == [31337]


def _inside(vm: Vm) -> Inside:
    raw = json.loads(_run(vm, f"python3 -c '{_INSIDE}'"))
    own = raw["self"]
    names = {int(pid): name for pid, name in raw["names"].items() if int(pid) != own}
    files = {
        (int(key.split("/")[0]), int(key.split("/")[1])): path
        for key, path in raw["files"].items()
        if int(key.split("/")[0]) != own
    }
    return Inside(names, files, raw["listening"])


def _run(vm: Vm, command: str) -> str:
    """Run ``command`` in the guest by its console, as a person there would."""
    from dvisor.machine.console import Console

    with Console(vm.name) as console:
        console.wait_for_shell(60)
        console.run("stty -echo cols 1000", 30)
        result = console.run(command, 120)
    if result.status:
        raise EngineError(f"the guest's shell could not run a command: {result.text[-500:]}")
    return result.text


def _compare(what: str, beneath: set[object], before: set[object], after: set[object]) -> bool:
    """Both sides must agree on all that did not change meanwhile."""
    missing = (before & after) - beneath
    invented = beneath - (before | after)
    if missing or invented:
        typer.echo(f"  {what}: not seen beneath: {missing or 'none'}; only there: {invented}")
        return False
    typer.echo(f"  {what}: {len(beneath)} beneath, {len(after)} inside: the same")
    return True


def _owners(pids: list[int] | None, names: dict[int, str]) -> str:
    if pids is None:
        return ""
    return ", ".join(f"{names.get(pid, '?')}({pid})" for pid in pids) or "nobody"


@contextlib.contextmanager
def _timed(times: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times[what] = time.perf_counter() - started


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _heading(text: str) -> None:
    typer.echo("\n" + typer.style(text, bold=True))
