"""What drgn, gdb, volatility3 and the shell see is what dvisor sees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dvisor.api import Vm
from dvisor.cli.export import export_core
from dvisor.guest import drgn_bridge, isf
from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def core(matrix_guest: RunningGuest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core file, and beside it pids.json: which processes there were, and which had ended."""
    path = tmp_path_factory.mktemp("core") / "guest.core"
    with matrix_guest.stopped():
        export_core(Vm(matrix_guest.name, matrix_guest.engine), path)
        pids = [(task.pid, task.state in "ZX") for task in matrix_guest.guest.tasks()]
    (path.parent / "pids.json").write_text(json.dumps(pids))
    return path


def pids_of(core: Path, ended: bool) -> list[int]:
    """In the kernel's order; with those that have ``ended`` (zombies) or without."""
    known = json.loads((core.parent / "pids.json").read_text())
    return [pid for pid, zombie in known if ended or not zombie]


def test_drgn_on_the_live_guest_lists_the_same_processes(matrix_guest: RunningGuest) -> None:
    pytest.importorskip("drgn")
    from drgn.helpers.linux.pid import for_each_task

    with matrix_guest.stopped():
        prog = drgn_bridge.program(matrix_guest.guest.kernel)
        found = {
            (task.pid.value_(), task.tgid.value_(), task.start_boottime.value_())
            for task in for_each_task(prog)
        }
        tasks = matrix_guest.guest.tasks(threads=True)
        assert found == {(task.pid, task.tgid, task.start_ns) for task in tasks}


def test_drgn_opens_the_core_file(matrix_guest: RunningGuest, core: Path) -> None:
    drgn = pytest.importorskip("drgn")
    from drgn.helpers.linux.list import list_for_each_entry

    prog = drgn.Program()
    prog.set_core_dump(core)
    drgn_bridge.add_finders(matrix_guest.guest.kernel, prog)
    head = prog["init_task"].tasks.address_of_()
    found = [t.pid.value_() for t in list_for_each_entry("struct task_struct", head, "tasks")]
    assert found == pids_of(core, ended=True)


def test_gdb_reads_the_core_file_at_kernel_addresses(
    matrix_guest: RunningGuest, core: Path
) -> None:
    gdb = shutil.which("gdb")
    if not gdb:
        pytest.skip("gdb is not installed")
    kernel = matrix_guest.guest.kernel
    direct = kernel.memory.linear[0]
    argv = [gdb, "-nx", "-batch", "-c", str(core), "-ex", f"x/s {kernel.symbol('linux_banner'):#x}"]
    argv += ["-ex", f"x/2xg {direct.virtual + 4096:#x}", "-ex", "info registers rip"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout
    assert kernel.vmcoreinfo["OSRELEASE"] in said
    assert "rip  " in said
    assert "Cannot access" not in said


def test_volatility_lists_the_same_processes(
    matrix_guest: RunningGuest, core: Path, tmp_path: Path
) -> None:
    pytest.importorskip("volatility3")
    if matrix_guest.guest.kernel.levels == 5:
        pytest.skip("volatility3 knows no 5-level page tables: it prints an empty list")
    symbols = tmp_path / "symbols"
    symbols.mkdir()
    isf.write(matrix_guest.guest.kernel, symbols / "guest.json.xz")
    argv = [str(Path(sys.executable).with_name("vol")), "-q", "-r", "json", "--offline"]
    argv += ["--cache-path", str(tmp_path), "-s", str(symbols), "-f", str(core), "linux.pslist"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=True)
    rows = json.loads(done.stdout)
    assert [row["PID"] for row in rows] == pids_of(core, ended=False)  # it leaves zombies out
    assert all(row["CREATION TIME"] for row in rows)


def test_shell_runs_code_with_the_guest_in_it(matrix_guest: RunningGuest) -> None:
    argv = [sys.executable, "-c", "import dvisor.cli; dvisor.cli.main()", "shell"]
    argv += [matrix_guest.name, "-c", "print(guest.task(1).pid, vm.name)"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"1 {matrix_guest.name}\n"
