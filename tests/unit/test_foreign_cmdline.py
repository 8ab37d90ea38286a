"""What is read from the command line of a QEMU that we did not start."""

from __future__ import annotations

import pytest

from dvisor.errors import UnsupportedError
from dvisor.machine.foreign_cmdline import (
    MonitorAddress,
    is_emulator,
    parse_command_line,
    parse_options,
    parse_size,
)

MIB = 1 << 20
QEMU = "/usr/bin/qemu-system-x86_64"


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], 128 * MIB),
        (["-m", "512"], 512 * MIB),
        (["-m", "4G"], 4096 * MIB),
        (["-m", "1.5G"], 1536 * MIB),
        (["-m", "size=2097152k"], 2048 * MIB),
        (["-m", "2G,slots=4,maxmem=8G"], 2048 * MIB),
        (["--m", "0x200"], 512 * MIB),
        (["-m", "1G", "-m", "2G"], 2048 * MIB),
        (["-append", "-m 9G", "-m", "1G"], 1024 * MIB),
        (
            ["-object", "memory-backend-memfd,id=a,size=768M", "-machine", "q35,memory-backend=a"],
            768 * MIB,
        ),
        (
            [
                "-object",
                '{"qom-type":"memory-backend-ram","id":"pc.ram","size":536870912}',
                "-M",
                "pc,memory-backend=pc.ram",
            ],
            512 * MIB,
        ),
    ],
)
def test_ram_size_is_what_qemu_would_give(words: list[str], size: int) -> None:
    assert parse_command_line([QEMU, *words]).ram_bytes == size


@pytest.mark.parametrize(
    ("words", "board"),
    [
        ([], "pc"),
        (["-M", "q35"], "q35"),
        (["-machine", "type=pc-q35-9.2,accel=kvm"], "q35"),
        (["-machine", "accel=tcg", "-M", "pc-i440fx-7.2"], "pc"),
        (["-M", "microvm,acpi=off"], "microvm"),
        (["-M", "isapc"], "isapc"),
    ],
)
def test_board_is_known_by_any_of_its_names(words: list[str], board: str) -> None:
    assert parse_command_line([QEMU, *words]).board == board


@pytest.mark.parametrize(
    ("words", "monitors"),
    [
        (["-nographic"], []),
        (["-qmp", "unix:/run/q,server=on,wait=off"], [MonitorAddress(True, "/run/q")]),
        (["-qmp", "unix:q,server,nowait"], [MonitorAddress(True, "q")]),
        (["-qmp", "unix:/run/q"], []),
        (["-monitor", "unix:/run/h,server,nowait"], [MonitorAddress(False, "/run/h")]),
        (["-monitor", "stdio"], []),
        (["-qmp", "tcp::4444,server=on"], [MonitorAddress(True, tcp=("localhost", 4444))]),
        (
            [
                "-chardev",
                "socket,id=c,path=/run/a,,b,server=on,wait=off",
                "-mon",
                "chardev=c,mode=control",
            ],
            [MonitorAddress(True, "/run/a,b")],
        ),
        (
            ["-chardev", "socket,id=c,fd=23,server=on,wait=off", "-mon", "c,mode=control"],
            [MonitorAddress(True, fd=23)],
        ),
        (["-chardev", "socket,id=c,path=/run/serial,server=on"], []),
    ],
)
def test_only_listening_monitors_are_found(
    words: list[str], monitors: list[MonitorAddress]
) -> None:
    assert parse_command_line([QEMU, *words]).monitors == monitors


def test_options_of_the_dynamic_loader_are_passed_over() -> None:
    argv = ["/lib64/ld-linux-x86-64.so.2", "--library-path", "/r/lib", "/r" + QEMU, "-m", "1G"]
    assert parse_command_line(argv).ram_bytes == 1024 * MIB


def test_max_ram_below_4g_is_read() -> None:
    line = parse_command_line([QEMU, "-M", "q35,max-ram-below-4g=1G"])
    assert line.max_below_4g == 1 << 30


@pytest.mark.parametrize("text", ["", "G", "1Q", "-5", "1e9", "4G4"])
def test_size_that_is_none_is_a_clear_error(text: str) -> None:
    with pytest.raises(UnsupportedError, match="not understood"):
        parse_size(text)


@pytest.mark.parametrize("value", ["{", "{]", "[1]", "", ",", "=", '{"a": [1]}'])
def test_strange_option_values_are_survived(value: str) -> None:
    assert isinstance(parse_options(value, "first"), dict)


@pytest.mark.parametrize(
    ("path", "emulator"),
    [
        (QEMU, True),
        (f"{QEMU} (deleted)", True),
        ("/usr/libexec/qemu-kvm", True),
        ("/usr/bin/kvm", True),
        ("/usr/bin/qemu-system-x86_64-microvm", True),
        ("/usr/bin/qemu-system-aarch64", False),
        ("/usr/bin/qemu-img", False),
        ("/usr/bin/lkvm", False),
        ("/usr/lib/libkvm.so", False),
    ],
)
def test_emulator_is_known_by_its_file(path: str, emulator: bool) -> None:
    assert is_emulator(path) is emulator
