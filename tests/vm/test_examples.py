"""The examples, on a guest in which what they look for is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPECTED = {
    "listeners.py": "python3",
    "deleted_files.py": "deleted again (deleted)",
    "same_moment.py": "open files, guest stopped for",
    "fields.py": "sleeper-7",
}


def test_each_example_is_tried() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example_prints_what_is_in_the_guest(name: str, matrix_guest: RunningGuest) -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, matrix_guest.name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert result.returncode == 0, result.stderr
    assert EXPECTED[name] in result.stdout
