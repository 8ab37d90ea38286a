"""``dvisor ps``: what runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Stopped, Target, opened
from dvisor.errors import UsageError

if TYPE_CHECKING:
    from dvisor.guest.processes import Process

Row = tuple["Process", str]
"""A process, and what stands before its command in a tree."""

Threads = Annotated[bool, typer.Option("--threads", "-T", help="List every thread.")]
Tree = Annotated[bool, typer.Option("--tree", help="Children beneath their parents.")]
Columns = Annotated[
    str | None, typer.Option("--columns", help="Which columns, by comma; a wrong one lists them.")
]

COLUMNS: dict[str, output.Column[Row]] = {
    "pid": (">PID", lambda row: row[0].tgid),
    "tid": (">TID", lambda row: row[0].pid),
    "ppid": (">PPID", lambda row: row[0].ppid),
    "pgid": (">PGID", lambda row: row[0].pgid),
    "sid": (">SID", lambda row: row[0].sid),
    "nspid": (">NSPID", lambda row: row[0].pids[-1] if row[0].pids else None),
    "uid": (">UID", lambda row: row[0].credentials and row[0].credentials.uid),
    "euid": (">EUID", lambda row: row[0].credentials and row[0].credentials.euid),
    "gid": (">GID", lambda row: row[0].credentials and row[0].credentials.gid),
    "caps": (
        ">CAPABILITIES",
        lambda row: row[0].credentials and f"{row[0].credentials.cap_effective:x}",
    ),
    "state": ("S", lambda row: row[0].state),
    "nice": (">NI", lambda row: row[0].nice),
    "priority": (">PRI", lambda row: row[0].priority),
    "policy": ("POLICY", lambda row: row[0].policy),
    "threads": (">THR", lambda row: row[0].threads),
    "rss": (">RSS MiB", lambda row: f"{row[0].rss_bytes / 2**20:.1f}"),
    "tty": ("TTY", lambda row: row[0].tty or None),
    "start": (">START s", lambda row: f"{row[0].start_ns / 1e9:.2f}"),
    "mntns": (">MNTNS", lambda row: row[0].namespaces.get("mnt")),
    "pidns": (">PIDNS", lambda row: row[0].namespaces.get("pid")),
    "netns": (">NETNS", lambda row: row[0].namespaces.get("net")),
    "userns": (">USERNS", lambda row: row[0].namespaces.get("user")),
    "cgroup": ("CGROUP", lambda row: row[0].cgroup or None),
    "exe": ("EXE", lambda row: row[0].exe or None),
    "cwd": ("CWD", lambda row: row[0].cwd or None),
    "root": ("ROOT", lambda row: row[0].root or None),
    "comm": ("COMM", lambda row: row[1] + row[0].comm),
    "command": ("COMMAND", lambda row: row[1] + command(row[0])),
}
MAX_INDENT = 90
DEFAULT = ("pid", "ppid", "uid", "state", "threads", "rss", "tty", "start", "command")
DEFAULT_THREADS = ("pid", "tid", "uid", "state", "policy", "nice", "start", "comm")


def register(app: typer.Typer) -> None:
    @app.command("ps")
    def ps_(
        target: Target = None,
        threads: Threads = False,
        tree: Tree = False,
        columns: Columns = None,
        json: Json = False,
        stopped: Stopped = False,
    ) -> None:
        """List processes, seen from beneath; [brackets] mark kernel threads.

        Example: dvisor ps web1 --columns pid,nspid,uid,cgroup,command --tree
        """
        chosen = choose(columns, DEFAULT_THREADS if threads else DEFAULT)
        with opened(target, stopped) as vm:
            found = vm.guest.processes(threads)
            if json:
                output.emit(vm.name, "processes", found, [], True)
                return
            rows = forest(found) if tree else ((process, "") for process in found)
            output.table(list(rows), chosen)
            for problem in found.problems:
                output.warn(problem)


def choose(wanted: str | None, default: Sequence[str]) -> list[output.Column[Row]]:
    """Columns by name; UsageError lists the names."""
    names = wanted.split(",") if wanted else default
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise UsageError(f"no column {', '.join(unknown)}; there are: {', '.join(COLUMNS)}")
    return [COLUMNS[name] for name in names]


def command(process: Process) -> str:
    """The command line; the name where there is none, in brackets as ``ps`` has it."""
    if process.cmdline:
        return " ".join(process.cmdline)
    return f"[{process.comm}]" if process.kernel_thread else f"({process.comm})"


def forest(processes: Sequence[Process]) -> Iterator[Row]:
    """Parents before their children, threads beneath their process; each once, even if parents
    go round in a circle."""
    children: dict[int, list[Process]] = {}
    ids = {process.pid for process in processes}
    for process in processes:
        above = process.ppid if process.pid == process.tgid else process.tgid
        children.setdefault(above if above in ids else 0, []).append(process)
    seen: set[int] = set()
    for start in (0, *ids):
        stack = [(process, "", True) for process in reversed(children.get(start, []))]
        while stack:
            process, lead, top = stack.pop()
            if process.pid in seen:
                continue
            seen.add(process.pid)
            yield process, lead + ("" if top else "`- ")
            deeper = lead if top or len(lead) >= MAX_INDENT else lead + "   "
            stack.extend(
                (child, deeper, False) for child in reversed(children.get(process.pid, []))
            )
