"""The description of the shared memory, and what is made of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dvisor.machine import native, traps_layout
from dvisor.machine.native import PROTOCOL

STRUCTS = PROTOCOL.structs


def test_fields_follow_one_another_aligned_and_without_overlap() -> None:
    for struct in STRUCTS.values():
        end = 0
        for field in struct.fields.values():
            assert field.offset >= end
            assert field.offset % min(field.stride, 64) == 0
            end = field.offset + field.size
        assert end <= struct.size
        assert struct.size % 64 == 0


def test_every_word_has_one_writer() -> None:
    for name, struct in STRUCTS.items():
        for field in struct.fields.values():
            if field.type in {"u32", "u64"}:
                assert field.writer in {"launcher", "library", "peer"}, f"{name}.{field.name}"


def test_arrays_are_as_long_as_the_constants_say() -> None:
    region, constants = STRUCTS["region"], PROTOCOL.constants
    assert region["slots"].count == constants["SLOTS"]
    assert region["enrolled"].count == constants["ENROLLED"]
    assert region["calls"].count == constants["NUMBERS"]
    assert region["trapped"].count * 64 == region["counted"].count * 64 == constants["NUMBERS"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_compiler_lays_out_as_python_does(tmp_path: Path) -> None:
    """The header asserts it itself; that it can fail is shown by a field that is moved."""
    header = traps_layout.c_header(PROTOCOL)
    good, bad = tmp_path / "good.c", tmp_path / "bad.c"
    good.write_text(header.replace("#pragma once", ""))
    bad.write_text(good.read_text().replace("\t_Atomic uint32_t version;", "", 1))
    compiler = ["gcc", "-std=gnu11", "-fsyntax-only"]
    assert subprocess.run([*compiler, str(good)], check=False).returncode == 0
    assert subprocess.run([*compiler, str(bad)], check=False, stderr=-3).returncode != 0


def test_plugin_option_survives_a_comma() -> None:
    assert native.plugin_arguments(Path("/a,b.so"), 7) == ["-plugin", "/a,,b.so,fd=7"]
