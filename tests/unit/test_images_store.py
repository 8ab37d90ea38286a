"""The cache holds whole things only, whatever happens to those who build them."""

from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dvisor.errors import HostError, StateError
from dvisor.folders import cache_directory
from dvisor.images.store import Store

StartBuilder = Callable[[str], subprocess.Popen[str]]
DIGEST = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def obtain(store: Store, make: Callable[[Path], None], name: str = "thing") -> Path:
    return store.obtain("kind", name, DIGEST, make)


def write_thing(stage: Path) -> None:
    (stage / "file").write_text("whole")


def half_then(error: BaseException) -> Callable[[Path], None]:
    def make(stage: Path) -> None:
        (stage / "half").write_text("half")
        raise error

    return make


def staged(store: Store) -> list[Path]:
    return list((store.root / "staging").glob("*"))


@pytest.fixture
def builder(store: Store) -> Iterator[StartBuilder]:
    """Starts another process that stays in the middle of a build; returned when it is there."""
    with contextlib.ExitStack() as started:

        def start(name: str) -> subprocess.Popen[str]:
            process = started.enter_context(builder_process(store, name))
            started.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "building\n"
            return process

        yield start


def builder_process(store: Store, name: str) -> subprocess.Popen[str]:
    program = f"""
        import signal, time
        from pathlib import Path
        from dvisor.images.store import Store

        # A shell that starts tests in the background has them ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def make(stage):
            (stage / "half").write_text("half")
            print("building", flush=True)
            # In short naps: a signal just before a system call does not cut it short.
            while True:
                time.sleep(0.02)

        Store(Path({str(store.root)!r})).obtain("kind", {name!r}, {DIGEST!r}, make)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    process.send_signal(number)
    process.communicate()
    return process.returncode


def test_second_call_finds_what_the_first_built(store: Store) -> None:
    first = obtain(store, write_thing)
    second = obtain(store, half_then(AssertionError("built twice")))
    assert second == first
    assert (second / "file").read_text() == "whole"


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), SystemExit(1)])
def test_failed_build_leaves_nothing(store: Store, error: BaseException) -> None:
    with pytest.raises(type(error)):
        obtain(store, half_then(error))
    assert staged(store) == []
    assert store.things("kind") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signalled_builder_cleans_up_before_it_ends(
    store: Store, builder: StartBuilder, number: signal.Signals
) -> None:
    assert end(builder("thing"), number) != 0
    assert staged(store) == []
    assert store.things("kind") == []


def test_killed_builder_is_swept_by_the_next(store: Store, builder: StartBuilder) -> None:
    end(builder("other"), signal.SIGKILL)
    assert staged(store) != []
    obtain(store, write_thing)
    assert staged(store) == []
    assert [path.name for path in store.things("kind")] == [f"thing-{DIGEST}"]


def test_killed_build_can_be_built_again(store: Store, builder: StartBuilder) -> None:
    end(builder("thing"), signal.SIGKILL)
    built = obtain(store, write_thing)
    assert [path.name for path in built.iterdir()] == ["file"]


def test_live_build_is_not_swept(store: Store, builder: StartBuilder) -> None:
    builder("other")
    obtain(store, write_thing)
    assert [path.name for path in staged(store)] == [f"kind-other-{DIGEST}"]
    assert (staged(store)[0] / "half").exists()


def test_second_builder_waits_and_takes_the_work_of_the_first(store: Store) -> None:
    """Both run at once; only one may build, and both must return the thing."""
    program = f"""
        import os, time
        from pathlib import Path
        from dvisor.images.store import Store

        def make(stage):
            time.sleep(0.3)
            with open({str(store.root / "built-by")!r}, "a") as log:
                print(os.getpid(), file=log)

        print(Store(Path({str(store.root)!r})).obtain("kind", "thing", {DIGEST!r}, make))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate()[0].strip() for process in both}
    assert answers == {str(store.path("kind", "thing", DIGEST))}
    assert len((store.root / "built-by").read_text().splitlines()) == 1


def test_waiting_is_announced(store: Store, builder: StartBuilder) -> None:
    process = builder("thing")
    waited = []

    def on_wait() -> None:
        waited.append(True)
        end(process, signal.SIGKILL)

    store.obtain("kind", "thing", DIGEST, write_thing, on_wait=on_wait)
    assert waited == [True]


def test_disk_that_fills_up_during_a_build_is_a_host_error(store: Store) -> None:
    def fill(stage: Path) -> None:
        (stage / "half").write_text("half")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(HostError, match="is full") as caught:
        obtain(store, fill)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert staged(store) == []


def test_disk_too_small_is_told_before_anything_is_done(store: Store) -> None:
    with pytest.raises(HostError, match=r"MiB free and this build needs 1099511627776 MiB"):
        store.obtain("kind", "thing", DIGEST, write_thing, space_mib=1 << 40)
    assert store.things("kind") == []


def test_cache_that_is_a_file_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(HostError, match="cannot be used"):
        obtain(Store(tmp_path / "cache"), write_thing)


def test_removed_thing_is_gone(store: Store) -> None:
    thing = obtain(store, write_thing)
    assert store.remove(thing) > 0
    assert store.things("kind") == []
    assert staged(store) == []


def test_nothing_is_removed_while_a_build_is_under_way(store: Store) -> None:
    with store.in_use(), pytest.raises(StateError, match="build is under way"), store.alone():
        pytest.fail("removed beneath a build")


def test_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_directory() == Path("/home/me/.cache/dvisor")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/dvisor")
