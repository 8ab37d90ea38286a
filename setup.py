"""Builds the native library with the package, where there is a C compiler.

All else about the package is in pyproject.toml. Without a compiler the installation goes on, and
says what will not work.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = Path(__file__).resolve().parent / "native/build.py"


class BuildLibrary(build_ext):
    """A plain shared object for QEMU, not a Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        spec = importlib.util.spec_from_file_location("native_build", BUILD)
        assert spec is not None
        assert spec.loader is not None
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            native.build(output)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(
                f"dvisor's library for QEMU was not built ({error}): VMs cannot be started with "
                "traps. Install gcc and libc6-dev and install dvisor again to have it."
            )


setup(
    # native/build.py knows the sources; Extension wants to be told of one.
    ext_modules=[Extension("dvisor.machine.dvisor_traps", ["native/library.c"], optional=True)],
    cmdclass={"build_ext": BuildLibrary},
)
