"""Trees and columns of ``dvisor ps``."""

from __future__ import annotations

import pytest

from dvisor.cli.ps import COLUMNS, DEFAULT, choose, command, forest
from dvisor.errors import UsageError
from dvisor.guest.processes import Process


def process(
    pid: int, ppid: int, tgid: int = 0, cmdline: tuple[str, ...] = (), kernel_thread: bool = False
) -> Process:
    return Process(
        pid=pid,
        tgid=tgid or pid,
        ppid=ppid,
        uid=0,
        comm=f"c{pid}",
        state="S",
        kernel_thread=kernel_thread,
        start_ns=0,
        mm=0,
        address=0,
        credentials=None,
        cmdline=cmdline,
        exe="",
        cwd="",
        root="",
        cgroup="",
        namespaces={},
        pids=(pid,),
        pgid=pid,
        sid=pid,
        tty="",
        priority=20,
        nice=0,
        policy="normal",
        threads=1,
        rss_bytes=0,
    )


def shape(*processes: Process) -> list[str]:
    return [lead + process.comm for process, lead in forest(processes)]


def test_children_stand_beneath_their_parents() -> None:
    tree = shape(process(1, 0), process(2, 0), process(3, 1), process(4, 3), process(5, 2))
    assert tree == ["c1", "`- c3", "   `- c4", "c2", "`- c5"]


def test_threads_stand_beneath_their_process() -> None:
    assert shape(process(1, 0), process(2, 0, tgid=1)) == ["c1", "`- c2"]


def test_child_of_an_unknown_parent_is_a_root() -> None:
    assert shape(process(7, 6666)) == ["c7"]


def test_circle_of_parents_is_shown_once() -> None:
    assert sorted(line.removeprefix("`- ") for line in shape(process(1, 2), process(2, 1))) == [
        "c1",
        "c2",
    ]


def test_tree_of_ten_thousand_generations_does_not_grow_without_end() -> None:
    rows = list(forest([process(pid, pid - 1) for pid in range(1, 10_000)]))
    assert len(rows) == 9_999
    assert max(len(lead) for _, lead in rows) < 100


def test_unknown_column_lists_those_that_there_are() -> None:
    assert len(choose(None, DEFAULT)) == len(DEFAULT)
    assert choose("pid,exe", DEFAULT) == [COLUMNS["pid"], COLUMNS["exe"]]
    with pytest.raises(UsageError, match="no column nonsense; there are: pid, tid"):
        choose("pid,nonsense", DEFAULT)


def test_command_falls_back_to_the_name() -> None:
    assert command(process(1, 0, cmdline=("sleep", "1"))) == "sleep 1"
    assert command(process(2, 0, kernel_thread=True)) == "[c2]"
    assert command(process(3, 0)) == "(c3)"


def test_every_column_prints_a_process_of_which_nothing_is_known() -> None:
    for _, cell in COLUMNS.values():
        cell((process(1, 0), ""))
