"""Builds the library that QEMU loads: ``python native/build.py OUTPUT [gcc options]``.

Needs a C compiler ($CC, else gcc) and nothing else: the few calls of QEMU and GLib that the
library makes are declared in it, and found in QEMU when QEMU loads it.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
LAYOUT = HERE.parent / "dvisor/machine/traps_layout.py"
SOURCES = sorted(HERE.glob("*.c"))
WARNINGS = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wmissing-prototypes"]
OPTIONS = ["-O2", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
LINK = ["-Wl,-z,relro,-z,now"]


def write_header(directory: Path) -> None:
    """Put protocol.h there."""
    layout = _layout()
    (directory / "protocol.h").write_text(layout.c_header(layout.load()))


def compile_c(sources: list[Path], output: Path, options: list[str]) -> None:
    """Compile with the house's warnings; OSError without a compiler, CalledProcessError if not."""
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    with tempfile.TemporaryDirectory() as made:
        write_header(Path(made))
        includes = [f"-I{made}", f"-I{HERE}"]
        names = [str(source) for source in sources]
        command = [*compiler, *WARNINGS, *includes, *options, "-o", str(output), *names]
        subprocess.run([*command, *LINK], check=True)


def build(output: Path, options: list[str] | None = None) -> None:
    """The library, at ``output``; replaced at once, so that a QEMU which has it mapped lives on."""
    new = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        compile_c(SOURCES, new, [*OPTIONS, *(options or [])])
        new.replace(output)
    finally:
        new.unlink(missing_ok=True)


def _layout() -> ModuleType:
    """``dvisor.machine.traps_layout``, without importing dvisor, whose dependencies may lack."""
    spec = importlib.util.spec_from_file_location("traps_layout", LAYOUT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2:])
