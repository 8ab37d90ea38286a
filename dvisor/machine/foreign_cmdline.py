"""What a QEMU's command line tells: board, RAM size, and where its monitors listen."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import PurePath

from dvisor.errors import UnsupportedError

DEFAULT_RAM_BYTES = 128 << 20  # QEMU's default for every PC board
# What the guest or the user may put after these can look like an option of QEMU.
_FREE_TEXT = {"append", "name", "kernel", "initrd", "drive", "device", "netdev", "object"}
_EMULATOR = re.compile(r"(qemu-system-x86_64|qemu-kvm|qemu-system-x86)(-[\w.-]+)?$|kvm$")
_SUFFIX = {"": 20, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


@dataclass(frozen=True, slots=True)
class MonitorAddress:
    """Where a monitor listens: a unix socket's path (as QEMU sees it), a TCP port, or an fd."""

    control: bool
    """True: QMP. False: the human monitor (HMP)."""
    path: str = ""
    tcp: tuple[str, int] | None = None
    fd: int | None = None

    def __str__(self) -> str:
        where = self.path or (f"{self.tcp[0]}:{self.tcp[1]}" if self.tcp else f"fd {self.fd}")
        return f"{'QMP' if self.control else 'HMP'} at {where}"


@dataclass(slots=True)
class CommandLine:
    """The options that matter here, with QEMU's defaults filled in."""

    board: str = "pc"
    ram_bytes: int = DEFAULT_RAM_BYTES
    max_below_4g: int | None = None
    monitors: list[MonitorAddress] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    """Options whose effect on RAM is not read here, so that a guess from RAM alone may fail."""


def is_emulator(path: str) -> bool:
    """Whether a program's file is a QEMU system emulator for x86_64, by its name."""
    return _EMULATOR.fullmatch(PurePath(path.removesuffix(" (deleted)")).name) is not None


def parse_size(text: str, default_suffix: str = "m") -> int:
    """QEMU's size syntax (``512``, ``4G``, ``1.5G``, ``0x1000k``) in bytes."""
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?)([bkmgtpeBKMGTPE]?)", text.strip())
    if match is None:
        raise UnsupportedError(f"the size {text!r} on QEMU's command line is not understood")
    number, suffix = match.groups()
    shift = _SUFFIX[(suffix or default_suffix).lower()]
    if "." in number:
        return int(float(number) * (1 << shift))
    return int(number, 16 if number[:2].lower() == "0x" else 10) << shift


def parse_options(value: str, first: str) -> dict[str, str]:
    """``a,b=c,d=e,,f`` as QEMU reads it: a bare first word has the key ``first``; ``,,`` is ``,``.

    Also the JSON form that -object and -device take.
    """
    if value.startswith("{"):
        try:
            parsed = json.loads(value)
        except ValueError:
            return {}
        return {str(k): str(v) for k, v in parsed.items()} if isinstance(parsed, dict) else {}
    options: dict[str, str] = {}
    for i, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, text = part.replace("\0", ",").partition("=")
        if equals:
            options[key] = text
        elif i == 0:
            options[first] = key
        else:
            options[key] = "on"
    return options


def parse_command_line(argv: list[str]) -> CommandLine:
    """Read the argument vector of a QEMU (from /proc/PID/cmdline)."""
    memory: dict[str, str] = {}
    machine: dict[str, str] = {}
    backends: dict[str, str] = {}
    chardevs: dict[str, dict[str, str]] = {}
    mons: list[dict[str, str]] = []
    line = CommandLine()
    for option, value in _pairs(argv):
        match option:
            case "m":
                memory |= parse_options(value, "size")
            case "M" | "machine":
                machine |= parse_options(value, "type")
            case "object":
                obj = parse_options(value, "qom-type")
                if obj.get("qom-type", "").startswith("memory-backend-"):
                    backends[obj.get("id", "")] = obj.get("size", "0")
            case "chardev":
                chardev = parse_options(value, "backend")
                chardevs[chardev.get("id", "")] = chardev
            case "mon":
                mons.append(parse_options(value, "chardev"))
            case "qmp" | "qmp-pretty" | "monitor":
                line.monitors += _legacy_monitor(value, option != "monitor")
            case "readconfig" | "incoming":
                line.surprises.append(f"-{option} {value}")
            case "numa" if "memdev" in value:
                line.surprises.append(f"-numa {value}")
    line.board = _board(machine.get("type", "pc"))
    if "max-ram-below-4g" in machine:
        line.max_below_4g = parse_size(machine["max-ram-below-4g"], "b")
    line.ram_bytes = _ram_bytes(memory, machine, backends)
    line.monitors += _chardev_monitors(mons, chardevs)
    return line


def _pairs(argv: list[str]) -> list[tuple[str, str]]:
    """(option, value) without the dashes; argv may begin with ld.so and its own options."""
    start = next((i for i, word in enumerate(argv) if is_emulator(word)), 0)
    pairs = []
    words = iter(argv[start + 1 :])
    word = next(words, None)
    while word is not None:
        if not word.startswith("-"):
            word = next(words, None)
            continue
        option = word.lstrip("-")
        word = next(words, None)
        value = ""
        if word is not None and (option in _FREE_TEXT or not word.startswith("-")):
            value = word
            word = next(words, None)
        pairs.append((option, value))
    return pairs


def _board(machine_type: str) -> str:
    if machine_type == "q35" or machine_type.startswith("pc-q35"):
        return "q35"
    if machine_type == "pc" or machine_type.startswith("pc-i440fx"):
        return "pc"
    return machine_type


def _ram_bytes(memory: dict[str, str], machine: dict[str, str], backends: dict[str, str]) -> int:
    if "size" in memory:
        size = parse_size(memory["size"])
    elif machine.get("memory-backend") in backends:
        size = parse_size(backends[machine["memory-backend"]], "b")
    else:
        size = DEFAULT_RAM_BYTES
    return (size + 8191) & ~8191  # QEMU system/vl.c rounds -m up to 8 KiB


def _legacy_monitor(value: str, control: bool) -> list[MonitorAddress]:
    """-qmp, -monitor: ``unix:PATH,server=on``, ``tcp:HOST:PORT,server``."""
    scheme, _, rest = value.partition(":")
    options = parse_options(rest, "address")
    if options.get("server", "off") not in {"on", "yes", "true"}:
        return []
    if scheme == "unix":
        return [MonitorAddress(control, path=options["address"])]
    if scheme == "tcp":
        host, _, port = options["address"].rpartition(":")
        if port.isdigit():
            return [MonitorAddress(control, tcp=(host or "localhost", int(port)))]
    return []


def _chardev_monitors(
    mons: list[dict[str, str]], chardevs: dict[str, dict[str, str]]
) -> list[MonitorAddress]:
    found = []
    for mon in mons:
        chardev = chardevs.get(mon.get("chardev", ""), {})
        if chardev.get("backend") != "socket":
            continue
        if chardev.get("server", "off") not in {"on", "yes", "true"}:
            continue
        control = mon.get("mode", "readline") == "control"
        if "path" in chardev:
            found.append(MonitorAddress(control, path=chardev["path"]))
        elif chardev.get("fd", "").isdigit():
            found.append(MonitorAddress(control, fd=int(chardev["fd"])))
        elif chardev.get("port", "").isdigit():
            host = chardev.get("host") or "localhost"
            found.append(MonitorAddress(control, tcp=(host, int(chardev["port"]))))
    return found
