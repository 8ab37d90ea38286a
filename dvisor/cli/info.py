"""``dvisor info``: the guest in one page."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import typer

from dvisor.cli import output
from dvisor.cli.target import Json, Stopped, Target, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dvisor.guest.info import Info

_MIB = 1 << 20
_NS_PER_S = 1_000_000_000


def register(app: typer.Typer) -> None:
    @app.command("info")
    def info_(target: Target = None, json: Json = False, stopped: Stopped = False) -> None:
        """Sum up a guest: kernel, boot, size, protection, and how sure dvisor is of it.

        Example: dvisor info web1
        """
        with opened(target, stopped) as vm:
            info = vm.guest.info()
        if json:
            output.json({"vm": vm.name, "kind": "info", "item": info})
            return
        rows = list(lines(info))
        width = max(len(heading) for heading, _ in rows)
        for heading, value in rows:
            typer.echo(f"{heading:<{width}}  {output.printable(value)}")
        if info.live and not info.knows_resets:
            output.warn("this engine cannot see guest resets: attach again after one")
        for problem in info.problems:
            output.warn(problem)


def lines(info: Info) -> Iterator[tuple[str, str]]:
    """(heading, value) as shown to people."""
    yield "kernel", f"Linux {info.release} {info.version}"
    yield "build id", info.build_id or "none"
    yield "host name", info.hostname
    yield "command line", info.command_line
    yield "clock", _moment(info.realtime_ns)
    yield "booted", f"{_moment(info.booted_ns)}, up {_duration(info.uptime_ns)}"
    yield "CPUs", f"{len(info.cpus_online)} online of {info.cpus_possible}"
    memory, managed = info.memory_bytes // _MIB, info.managed_bytes // _MIB
    yield "memory", f"{memory} MiB, {managed} MiB of it managed by the kernel"
    yield "processes", str(info.tasks)
    yield "modules", str(info.modules)
    isolation = {True: "on", False: "off", None: "unknown"}[info.page_table_isolation]
    yield "page tables", f"{info.page_table_levels} levels, isolation (PTI) {isolation}"
    yield (
        "image",
        f"{info.image:#x}, physical {info.physical:#x}, moved by {info.kaslr_offset:#x} (KASLR)",
    )
    yield "tainted", "; ".join(info.tainted) or "no"
    yield "lockdown", info.lockdown or "not built in"
    yield "engine", f"{info.engine}{'' if info.live else ' (does not change)'}"
    for way in info.evidence:
        yield f"by {way.way}", f"{'ok' if way.agrees else 'no'}: {way.detail}"
    yield "symbols", "from the cache" if info.from_cache else "decoded now"


def _moment(since_1970_ns: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(since_1970_ns // _NS_PER_S, datetime.UTC)
    except (OverflowError, ValueError, OSError):  # the guest may say anything
        return f"{since_1970_ns} ns after 1970"
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(duration_ns: int) -> str:
    return str(datetime.timedelta(seconds=min(max(duration_ns, 0) // _NS_PER_S, 10**13)))
