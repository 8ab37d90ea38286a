"""The native library against a QEMU and peers of the tests' own (C, under sanitizers)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT

HERE = Path(__file__).parent
CASES = re.findall(r"^    CASE\((\w+)\)", (HERE / "test_library.c").read_text(), re.MULTILINE)

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and its test in one program, with AddressSanitizer and UBSan."""
    sys.path.insert(0, str(ROOT / "native"))
    try:
        import build
    finally:
        sys.path.pop(0)
    output = tmp_path_factory.mktemp("native") / "test_library"
    sources = [*build.SOURCES, HERE / "fake_qemu.c", HERE / "test_library.c"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    build.compile_c(sources, output, ["-O1", "-g", "-pthread", f"-I{HERE}", *sanitizers])
    return output


@pytest.mark.parametrize("case", CASES)
def test_case(built: Path, case: str) -> None:
    # The library lives as long as QEMU: what it holds at the end is no leak.
    run = subprocess.run(
        [built, case],
        env={"ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
