"""docs/tutorial.md, as a reader would type it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvisor.errors import NotFoundError
from dvisor.machine.control import Control

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
# What a reader is told to look for.
EXPECTED = {
    "dvisor ls": "web1",
    "dvisor ps web1 --tree": "nginx",
    "dvisor sockets web1 --tcp --listening": ":80",
    "dvisor sockets web1 --listening --json": '"complete": true',
    "dvisor maps web1 1": "systemd",
    "dvisor read web1 linux_banner 64": "Linux version",
    "dvisor ps web1.core": "nginx",
    "dvisor shell web1 -c \"print(len(guest.tasks()), 'processes')\"": "processes",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    try:
        with Control("web1") as control:
            control.quit(force=True)
    except NotFoundError:
        pass


def test_expected_output_is_of_commands_that_are_there() -> None:
    assert EXPECTED.keys() <= set(COMMANDS)


def test_every_command_works(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "dvisor"
        result = subprocess.run(
            [sys.executable, "-c", "from dvisor.cli import main; main()", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert result.returncode == 0, f"{command}: {result.stderr}"
        assert EXPECTED.get(command, "") in result.stdout, f"{command}: {result.stdout}"
