"""``vm.toml``: what a user says of a VM, decoded strictly, with errors that name key and line."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from dvisor.errors import NotFoundError, UsageError
from dvisor.machine.registry import check_name
from dvisor.machine.spec import Accelerator, Disk, Forward, LaunchSpec, Net

MIN_MEMORY_BYTES = 64 << 20
_SIZE = re.compile(r"(\d{1,9})\s*([KMGT])(?:iB|B)?", re.IGNORECASE)
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_FORWARD = re.compile(r"(?:(tcp|udp):)?(\d{1,5}):(\d{1,5})")
_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`")
_EXAMPLES = resources.files("dvisor.machine") / "examples"


class NetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[net]``. ``forwards``: "HOST:GUEST" or "udp:HOST:GUEST", ports on the host's loopback."""

    mode: Literal["user", "none"] = "none"
    forwards: tuple[str, ...] = ()


class MachineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``vm.toml``. Either ``image`` (built by dvisor) or ``vmlinuz`` says what boots."""

    name: str = ""
    image: str | None = None
    kernel: str | None = None
    vmlinuz: str | None = None
    initrd: str | None = None
    append: str = ""
    init: str | None = None
    machine: Literal["q35"] = "q35"
    memory: str = "1GiB"
    vcpus: Annotated[int, Meta(ge=1, le=255)] = 1
    cpu: str = "max"
    accel: Accelerator = "auto"
    disk: tuple[Disk, ...] = ()
    net: NetConfig = NetConfig()
    powerdown_timeout_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    qemu_args: tuple[str, ...] = ()
    traps: bool = False


class BootFiles(msgspec.Struct, frozen=True):
    """What an image gives to a VM; ``kernel_command_line`` comes before the config's ``append``."""

    vmlinuz: str
    initrd: str | None = None
    disks: tuple[Disk, ...] = ()
    kernel_command_line: str = "console=ttyS0"


def example_names() -> list[str]:
    """Names of the built-in configurations."""
    found = (entry.name for entry in _EXAMPLES.iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def load_config(target: str) -> MachineConfig:
    """The configuration in the file ``target``, or the built-in one of that name.

    Without a ``name`` in it the VM is named as the file. Relative paths in it are relative to its
    directory. UsageError, with key and line, when it is not right.
    """
    if target in example_names():
        text = (_EXAMPLES / f"{target}.toml").read_text()
        return _checked(parse_config(text, f"example {target}"), target, Path.cwd())
    path = Path(target)
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no file {target}, and no built-in example of that name (there are: "
            f"{', '.join(example_names())})"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {target}: {error}") from error
    return _checked(parse_config(text, target), path.stem, path.resolve().parent)


def parse_config(text: str, source: str) -> MachineConfig:
    """Decode TOML; ``source`` names it in errors."""
    try:
        return msgspec.convert(tomllib.loads(text), MachineConfig)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise UsageError(_explain(str(error), text, source)) from error


def override(config: MachineConfig, **changes: Any) -> MachineConfig:
    """``config`` with those of ``changes`` that are not None, checked as a file's content is."""
    given = {key: value for key, value in changes.items() if value is not None}
    merged = msgspec.to_builtins(config) | given
    try:
        return _checked(msgspec.convert(merged, MachineConfig), config.name, Path.cwd())
    except msgspec.ValidationError as error:
        raise UsageError(f"this VM cannot be: {error}") from error


def launch_spec(
    config: MachineConfig, boot: BootFiles, qemu_argv_prefix: tuple[str, ...]
) -> LaunchSpec:
    """The VM that ``config`` describes, booting ``boot``; its own disks come after the image's."""
    command_line = [boot.kernel_command_line, config.append]
    if config.init:
        # An initramfs is the root itself, so its program is named by rdinit= (init/main.c).
        command_line.append(f"{'init' if boot.disks or config.disk else 'rdinit'}={config.init}")
    return LaunchSpec(
        name=config.name,
        qemu_argv_prefix=qemu_argv_prefix,
        vmlinuz=boot.vmlinuz,
        initrd=boot.initrd,
        disks=boot.disks + config.disk,
        cmdline=" ".join(filter(None, command_line)),
        memory_bytes=memory_bytes(config.memory),
        vcpus=config.vcpus,
        cpu=config.cpu,
        accel=config.accel,
        net=Net(config.net.mode, tuple(_forward(text) for text in config.net.forwards)),
        powerdown_timeout_s=config.powerdown_timeout_s,
        qemu_args=config.qemu_args,
        traps=config.traps,
    )


def memory_bytes(text: str) -> int:
    """ "512MiB" or "2G" (both binary) as a number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f'memory = {text!r} is no size: write it as "512MiB" or "2GiB"')
    size = int(match[1]) * _UNITS[match[2].upper()]
    if size < MIN_MEMORY_BYTES or size % (1 << 20):
        raise UsageError(f"memory = {text!r} must be whole MiB, and at least 64MiB")
    return size


def _checked(config: MachineConfig, name: str, directory: Path) -> MachineConfig:
    """``config`` with its name filled in and its paths absolute."""
    check_name(config.name or name)
    memory_bytes(config.memory)
    for text in config.net.forwards:
        _forward(text)
    if config.net.forwards and config.net.mode == "none":
        raise UsageError('[net] has forwards but no network: add mode = "user"')
    if (config.image is None) == (config.vmlinuz is None):
        raise UsageError(
            f'VM {config.name or name} needs either image ("tiny", "debian") or vmlinuz (a '
            "path), and not both"
        )
    if config.image is None and config.kernel is not None:
        raise UsageError("kernel chooses an image's kernel: with vmlinuz, leave it out")
    if config.image is not None and config.initrd is not None:
        raise UsageError("initrd goes with vmlinuz: an image brings its own, so leave it out")
    return msgspec.structs.replace(
        config,
        name=config.name or name,
        vmlinuz=_absolute(config.vmlinuz, directory),
        initrd=_absolute(config.initrd, directory),
        disk=tuple(
            msgspec.structs.replace(disk, path=str(directory / Path(disk.path).expanduser()))
            for disk in config.disk
        ),
    )


def _absolute(path: str | None, directory: Path) -> str | None:
    return None if path is None else str(directory / Path(path).expanduser())


def _forward(text: str) -> Forward:
    match = _FORWARD.fullmatch(text)
    if match is None or not all(0 < int(port) < 1 << 16 for port in match.groups()[1:]):
        raise UsageError(
            f"forward {text!r} is not HOSTPORT:GUESTPORT (or udp:HOSTPORT:GUESTPORT), each port 1 "
            "to 65535"
        )
    protocol: Literal["tcp", "udp"] = "udp" if match[1] == "udp" else "tcp"
    return Forward(int(match[2]), int(match[3]), protocol)


def _explain(message: str, text: str, source: str) -> str:
    """msgspec's message with the line it is about, and for an unknown key those allowed."""
    at = _AT.search(message)
    path = at["path"] if at else ""
    what = message[: at.start()] if at else message
    if unknown := _UNKNOWN.search(message):
        key = unknown["key"]
        table = path.partition("[")[0]
        allowed = {"disk": Disk, "net": NetConfig}.get(table, MachineConfig)
        where = f"in [{table}] " if table else ""
        what = f"unknown key {key!r} {where}(allowed: {', '.join(allowed.__struct_fields__)})"
    else:
        key = re.split(r"[.\[]", path.removesuffix("[...]"))[-1].rstrip("]") or path
        what = f"{path}: {what}"
        if re.match(r".*Expected `str( \| null)?`, got", what):
            what += ' (put it in quotes, as in kernel = "6.12")'
    return f"{source}{_line_of(key, text)}: {what}"


def _line_of(key: str, text: str) -> str:
    pattern = re.compile(rf"\s*(?:\[+\s*)?(?:[\w.]+\.)?[\"']?{re.escape(key)}[\"']?\s*[=\]]")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.match(line):
            return f", line {number}"
    return ""
