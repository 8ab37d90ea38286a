"""How a long build tells what it does: nothing, plain lines, or bars on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars


class Progress:
    """Silent; the others refine it. A build is a sequence of stages, each done from 0 to 1."""

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Around one stage of a build."""
        yield

    def at(self, fraction: float, note: str) -> None:
        """How far the present stage is (0 to 1) and what it does now."""

    def waiting(self, name: str) -> Callable[[], None]:
        """What to call when another process is found to build ``name`` now."""
        return lambda: self.say(f"waiting for another dvisor that builds {name} now")

    def say(self, text: str) -> None:
        """A line that belongs to no stage."""


class PlainProgress(Progress):
    """One line on standard error when a stage begins and one when it is done: for logs."""

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        print(f"{title} ...", file=sys.stderr, flush=True)
        began_s = time.monotonic()
        yield
        print(f"{title}: {time.monotonic() - began_s:.1f} s", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class TerminalProgress(Progress):
    """A bar per stage on standard error."""

    def __init__(self, console: Console) -> None:
        self._bars = RichBars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        self._task = self._bars.add_task(title, total=1.0, note="")
        with self._bars:
            yield
            self._bars.update(self._task, completed=1.0, note="")
        self._bars.remove_task(self._task)

    def say(self, text: str) -> None:
        self._bars.console.print(text)

    def at(self, fraction: float, note: str) -> None:
        self._bars.update(self._task, completed=fraction, note=note)


def progress_on_stderr() -> Progress:
    """Bars if standard error is a terminal, else plain lines."""
    console = Console(stderr=True)
    return TerminalProgress(console) if console.is_terminal else PlainProgress()
