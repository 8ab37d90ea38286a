"""``dvisor shell``: Python with the guest in it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dvisor.cli.target import Stopped, Target, opened
from dvisor.errors import DvisorError

if TYPE_CHECKING:
    from dvisor.api import Vm


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: dvisor shell web1 -c 'print(len(guest.tasks()))'")
    def shell(
        target: Target = None,
        code: Annotated[
            str | None, typer.Option("--command", "-c", help="Run this Python code, and exit.")
        ] = None,
        stopped: Stopped = False,
    ) -> None:
        """Python with `vm`, `guest` and, where drgn is installed, `prog` on the same memory."""
        with opened(target, stopped) as vm:
            names = _names(vm)
            if code is not None:
                # As in `python3 -c`: the user runs their own code.
                exec(compile(code, "<command>", "exec"), names)  # noqa: S102
            else:
                _interact(names)


def _names(vm: Vm) -> dict[str, Any]:
    """What the shell knows at its start."""
    names: dict[str, Any] = {"__name__": "__main__", "vm": vm, "guest": vm.guest}
    with contextlib.suppress(DvisorError):
        from dvisor.guest.drgn_bridge import program

        names["prog"] = program(vm.guest.kernel)
        exec("from drgn.helpers.linux import *", names)  # noqa: S102 (as drgn's own shell does)
    return names


def _interact(names: dict[str, Any]) -> None:
    release = names["guest"].kernel.vmcoreinfo.get("OSRELEASE", "?")
    lines = [
        f"dvisor: {names['vm'].name}, Linux {release}",
        "vm      the machine: vm.stopped(), vm.engine",
        "guest   what runs in it: guest.tasks(), guest.kernel.record(...); help(guest)",
    ]
    if "prog" in names:
        lines.append("prog    drgn on the same memory: prog['init_task'], drgn.helpers.linux")
    else:
        lines.append("(prog needs drgn: pip install drgn)")
    banner = "\n".join(lines)
    try:
        from IPython import start_ipython
    except ImportError:
        import code
        import readline
        import rlcompleter

        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
        code.interact(banner, local=names, exitmsg="")
        return
    sys.stdout.write(banner + "\n")
    start_ipython(argv=["--no-banner"], user_ns=names)
