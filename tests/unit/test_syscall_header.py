"""The C header made from the table, and the sizes in it, as a C compiler sees them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dvisor.policy import header
from dvisor.policy.syscalls import document, table

GCC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="gcc is not installed")

PRINT_TABLE = r"""
#include <stdio.h>
#include "syscalls.h"
int main(void) {
	for (unsigned i = 0; i < sizeof dv_syscalls / sizeof *dv_syscalls; i++) {
		const struct dv_syscall *call = &dv_syscalls[i];
		if (!call->name) continue;
		printf("%u %s %u", i, call->name, call->error);
		for (int j = 0; j < call->argument_count; j++)
			printf(" %s:%u", call->arguments[j].name, call->arguments[j].element_bytes);
		printf("\n");
	}
	printf("%zu\n", sizeof dv_sockopt_commands / sizeof *dv_sockopt_commands);
}
"""


def run_c(source: str, folder: Path) -> str:
    """What the program prints; it must compile without a warning."""
    (folder / "program.c").write_text(source)
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused"]
    subprocess.run([str(GCC), *flags, "program.c", "-o", "program"], cwd=folder, check=True)
    return subprocess.run([folder / "program"], capture_output=True, text=True, check=True).stdout


def test_header_has_every_call_and_argument(tmp_path: Path) -> None:
    (tmp_path / "syscalls.h").write_text(header.text(document()))
    *calls, options = run_c(PRINT_TABLE, tmp_path).splitlines()
    expected = []
    for call in table().values():
        arguments = "".join(f" {each.name}:{each.element_bytes}" for each in call.arguments)
        error = 38 if call.disposition.errno == "ENOSYS" else 0
        expected.append(f"{call.number} {call.name} {error}{arguments}")
    assert calls == expected
    assert int(options) == len(document().commands["sockopt"].rows)


def test_sizes_are_those_of_the_host_s_headers(tmp_path: Path) -> None:
    """A type that these headers are too old to know is left out."""
    types = {name: each for name, each in document().types.items() if each.c}
    headers = sorted({each for kind in types.values() for each in kind.headers})
    # linux/openat2.h and the like clash with none of the C library's when they come after it.
    order = sorted(headers, key=lambda each: each.startswith(("linux/", "asm/")))
    probe = "#define _GNU_SOURCE\n#include <stdio.h>\n"
    probe += "".join(f"#if __has_include(<{each}>)\n#include <{each}>\n#endif\n" for each in order)
    lines = [f'printf("{name} %zu\\n", sizeof({each.c}));' for name, each in types.items()]
    known = [line for line in lines if compiles(probe, line, tmp_path)]
    assert len(known) > 45
    printed = run_c(f"{probe}int main(void) {{ {' '.join(known)} }}\n", tmp_path)
    found = {name: int(size) for name, size in re.findall(r"^(\w+) (\d+)$", printed, re.MULTILINE)}
    assert found == {name: types[name].size for name in found}


def compiles(probe: str, line: str, folder: Path) -> bool:
    (folder / "try.c").write_text(f"{probe}int main(void) {{ {line} }}\n")
    command = [str(GCC), "-fsyntax-only", "try.c"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def test_command_numbers_are_those_of_the_host_s_headers(tmp_path: Path) -> None:
    headers = ["fcntl.h", "sys/socket.h", "sys/ioctl.h", "net/if.h", "sys/prctl.h"]
    headers += ["netinet/in.h", "netinet/tcp.h", "netinet/udp.h"]
    headers += ["linux/fs.h", "linux/sockios.h"]
    source = "#define _GNU_SOURCE\n#include <stdio.h>\n"
    source += "".join(f"#include <{each}>\n" for each in headers) + "int main(void) {\n"
    rows = [row for each in document().commands.values() for row in each.rows.values()]
    for row in rows:
        source += f'#ifdef {row.name}\nprintf("{row.name} %u\\n", (unsigned){row.name});\n#endif\n'
    printed = dict(line.split() for line in run_c(source + "}\n", tmp_path).splitlines())
    assert len(printed) > 100
    assert printed == {row.name: str(row.key[-1]) for row in rows if row.name in printed}
