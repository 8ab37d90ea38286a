"""The public API: ``dvisor.up(...)`` starts a VM, ``dvisor.attach(...)`` opens any guest."""

from __future__ import annotations

import stat
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, get_args

from dvisor.errors import AttachError, DvisorError, NotFoundError, UsageError
from dvisor.guest.guest import Guest
from dvisor.machine.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvisor.images import Progress
    from dvisor.machine.config import BootFiles, MachineConfig
    from dvisor.machine.inventory import MachineInfo
    from dvisor.machine.launch import MachineHandle


class Vm:
    """An open machine: its ``engine`` (memory and registers) and its ``guest`` (what runs in it).

    Opening, reading and closing change nothing in the guest and do not stop it.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine
        self.guest = Guest(engine)

    def stopped(self) -> AbstractContextManager[None]:
        """Within it no vCPU runs, so that several views are of the same moment. Nests."""
        return self.engine.stopped()

    def close(self) -> None:
        """Give everything back; the machine itself goes on. Safe to call twice."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def attach(target: str | int | Path | None = None) -> Vm:
    """Open a guest by what is known of it.

    ``target``: the name of a VM that dvisor started; the pid of any QEMU; the path of a QEMU's QMP
    socket; a core file (ELF vmcore), or for an image of the RAM ``raw:PATH``, with the machine's
    layout before the path if its RAM is split (``raw:q35:PATH``, ``raw:pc:PATH``). None: the one
    VM of dvisor's that runs. AttachError tells what was tried, what was seen and what to do.
    """
    if target is None:
        target = _only_machine()
    text = str(target)
    if text.isdecimal():
        from dvisor.machine.foreign import open_qemu

        return Vm(text, open_qemu(int(text)))
    kind, _, rest = text.partition(":")
    if kind == "raw" and rest:
        return _attach_raw(rest)
    if isinstance(target, Path) or "/" in text:
        return _attach_path(Path(text))
    return _attach_name(text)


def up(
    config: MachineConfig | str | Path,
    progress: Callable[[str], None] | None = None,
    wait_for: str | None = None,
    wait_timeout_s: float = 120.0,
) -> MachineHandle:
    """Start a VM under a supervisor of its own; return once its guest runs.

    ``config``: a ``vm.toml``, the name of a built-in example, or what ``load_config`` made of it.
    Makes what it lacks first: a QEMU that is new enough, and the image that it names. With
    ``wait_for``, returns only when the guest has printed that text on its console. The VM lives
    on after this process. Errors as ``dvisor.machine.launch.launch``.
    """
    from dvisor import images
    from dvisor.machine.config import MachineConfig, launch_spec, load_config
    from dvisor.machine.launch import launch
    from dvisor.machine.registry import require_free

    if not isinstance(config, MachineConfig):
        config = load_config(str(config))
    require_free(config.name)
    shown = images.progress_on_stderr()
    qemu = images.qemu_binary(progress=shown)
    spec = launch_spec(config, _boot_files(config, shown), qemu.argv_prefix)
    return launch(spec, progress, wait_for, wait_timeout_s)


def _boot_files(config: MachineConfig, progress: Progress) -> BootFiles:
    from dvisor import images
    from dvisor.machine.config import BootFiles
    from dvisor.machine.spec import Disk

    if config.image is None:
        return BootFiles(config.vmlinuz or "", config.initrd)
    image = images.build(config.image, config.kernel or images.DEFAULT_KERNEL, progress=progress)
    return BootFiles(
        str(image.vmlinuz),
        str(image.initrd) if image.initrd else None,
        (Disk(str(image.disk)),) if image.disk else (),
        image.kernel_command_line,
    )


def _attach_path(path: Path) -> Vm:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise AttachError(
            str(path),
            [("the path", str(error))],
            "name a VM (dvisor ls), a QEMU's pid or QMP socket, or a core file",
        ) from error
    if stat.S_ISSOCK(mode):
        from dvisor.machine.foreign import open_qemu

        return Vm(path.name, open_qemu(path))
    from dvisor.machine.corefile import open_core

    return Vm(path.name, open_core(path))


def _attach_raw(rest: str) -> Vm:
    """``[LAYOUT:]PATH``."""
    from dvisor.machine.corefile import Layout, open_core

    for layout in get_args(Layout):
        if rest.startswith(f"{layout}:"):
            path = Path(rest.removeprefix(f"{layout}:"))
            return Vm(path.name, open_core(path, raw=True, layout=layout))
    return Vm(Path(rest).name, open_core(Path(rest), raw=True))


def _attach_name(name: str) -> Vm:
    from dvisor.machine import open_engine

    try:
        return Vm(name, open_engine(name))
    except (NotFoundError, UsageError) as error:  # UsageError: no VM can have that name
        tried = [("a VM of dvisor's", str(error))]
        if Path(name).exists():
            return _attach_path(Path(name))
        tried.append((f"a file ./{name}", "there is none"))
        raise AttachError(
            name, tried, "dvisor ls shows the VMs; a QEMU of yours goes by its pid or QMP socket"
        ) from error


def machines() -> list[MachineInfo]:
    """All VMs of dvisor's that live on this host, by name."""
    from dvisor.machine import machines as living

    return living()


def _only_machine() -> str:
    running = [machine.name for machine in machines()]
    if len(running) == 1:
        return running[0]
    if not running:
        raise UsageError("no VM of dvisor's runs: start one (dvisor up debian) or name a target")
    raise UsageError(f"several VMs run, name one: {', '.join(running)}")


__all__ = ["DvisorError", "Vm", "attach", "up"]
