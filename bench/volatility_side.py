"""volatility3's side: a core file of ours and a symbol file of ours, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import automagic, constants, contexts, interfaces, plugins
from volatility3.plugins.linux import lsof, pslist, sockstat

from bench.measure import Row, timed

PLUGINS = {
    "list of tasks": pslist.PsList,
    "all sockets": sockstat.Sockstat,
    "all open files": lsof.Lsof,
}


def prepare(symbols: Path, cache: Path) -> None:
    """Search symbol files in ``symbols`` only, and keep volatility's own cache in ``cache``."""
    framework.require_interface_version(2, 0, 0)
    constants.OFFLINE = True
    constants.CACHE_PATH = str(cache)
    volatility3.symbols.__path__ = [str(symbols), *constants.SYMBOL_BASEPATHS]
    framework.import_files(volatility3.plugins, True)


class _NoFile(interfaces.plugins.FileHandlerInterface):  # type: ignore[misc]
    """These plugins write none."""


def opened(plugin: Any, core: Path) -> Any:
    """``plugin`` on the core file: the kernel found, the symbol file loaded."""
    context = contexts.Context()
    context.config["automagic.LayerStacker.single_location"] = core.absolute().as_uri()
    chosen = automagic.choose_automagic(automagic.available(context), plugin)
    return plugins.construct_plugin(context, chosen, plugin, "plugins", None, _NoFile)


def rows(plugin: Any) -> Iterator[Any]:
    """What the plugin would print."""
    found: list[Any] = []
    plugin.run().populate(lambda node, _: found.append(node.values), None)
    yield from found


def attaching(core: Path) -> Row:
    def attach_and_list() -> int:
        return len(list(rows(opened(pslist.PsList, core))))

    return timed("attach, and a first list", "volatility3, core", 3, attach_and_list)


def listing(core: Path) -> list[Row]:
    return [
        timed(what, "volatility3, core", 2, _counter(opened(plugin, core)))
        for what, plugin in PLUGINS.items()
    ]


def _counter(plugin: Any) -> Callable[[], int]:
    return lambda: len(list(rows(plugin)))
