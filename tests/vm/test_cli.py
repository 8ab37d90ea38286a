"""The command line on a guest: what programs get, and what people see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

VIEWS = {
    "ps": [],
    "files": [],
    "sockets": [],
    "modules": [],
    "maps": ["1"],
    "mounts": [],
    "dmesg": [],
    "cpus": [],
    "stack": ["1"],
    "top": [],
}


def dvisor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from dvisor.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def document(*arguments: str) -> dict[str, Any]:
    result = dvisor(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("verb", VIEWS)
def test_view_prints_an_envelope_of_items(verb: str, matrix_guest: RunningGuest) -> None:
    found = document(verb, matrix_guest.name, *VIEWS[verb])
    assert found["vm"] == matrix_guest.name
    assert found["complete"], found["problems"]
    assert found["items"]


@pytest.mark.parametrize("verb", VIEWS)
def test_view_prints_a_table_with_a_line_for_each_item(
    verb: str, matrix_guest: RunningGuest
) -> None:
    result = dvisor(verb, matrix_guest.name, *VIEWS[verb])
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.splitlines()


def test_hostile_name_cannot_reach_the_terminal(matrix_guest: RunningGuest) -> None:
    evil = r"\033[2J\033]0;owned\007"
    matrix_guest.shell(
        rf"cp /bin/sleep $(printf '/tmp/{evil}'); $(printf '/tmp/{evil}') 60 & "
        "echo $! > /run/test/pid; sleep 1"
    )
    try:
        for verb in ("ps", "top", "files", "cpus"):
            result = dvisor(verb, matrix_guest.name)
            assert "\033" not in result.stdout + result.stderr
            assert verb == "cpus" or "owned" in result.stdout, result.stdout
    finally:
        matrix_guest.shell("kill $(cat /run/test/pid); rm -f /tmp/*owned*")


def test_unknown_names_have_exit_codes_that_scripts_can_use(matrix_guest: RunningGuest) -> None:
    assert dvisor("ps", "no-such-vm").returncode == 9
    assert dvisor("maps", matrix_guest.name, "4000000").returncode == 3
    assert dvisor("sym", matrix_guest.name, "no_such_symbol").returncode == 3
    assert dvisor("read", matrix_guest.name, "0x10", "8").returncode == 8
    assert dvisor("no-such-verb").returncode == 2


def test_attach_says_how_the_kernel_was_found(matrix_guest: RunningGuest) -> None:
    found = document("attach", matrix_guest.name)
    assert found["kernel"] in matrix_guest.shell("uname -r")
    assert all(evidence["agrees"] for evidence in found["evidence"])
    assert {evidence["way"] for evidence in found["evidence"]} == {
        "registers",
        "vmcoreinfo",
        "kallsyms",
    }
