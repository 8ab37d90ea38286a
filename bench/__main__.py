"""``python -m bench [attach] [lists]``: one guest, one run, one table; figures in bench/out/."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench import drgn_side, ours, volatility_side
from bench.measure import Machine, Noise, Row, with_ratios
from dvisor.api import Vm
from dvisor.cli.export import export_core
from dvisor.cli.output import table
from dvisor.guest import isf
from dvisor.machine.places import SPARE_QMP_SOCKET, runtime_directory
from tests.vm.guests import RunningGuest, running_guest

OUT = Path(__file__).parent / "out"
COLUMNS = [
    ("WORK", lambda row: row.what),
    ("BY", lambda row: row.who),
    (">MEDIAN MS", lambda row: f"{row.median_ms:.2f}"),
    (">MIN MS", lambda row: f"{row.min_ms:.2f}"),
    (">N", lambda row: row.n),
    (">ITEMS", lambda row: row.items),
    (">RATIO", lambda row: None if row.ratio is None else f"{row.ratio:.1f}"),
]


class Figures(msgspec.Struct):
    """One run."""

    guest: str
    machine: Machine
    rows: list[Row]


class Subject:
    """The guest of the tests, and files made of it."""

    def __init__(self, running: RunningGuest, scratch: Path) -> None:
        self.name = running.name
        self.guest = running.guest
        self.core = scratch / "guest.core"
        self.cache = scratch / "volatility"
        symbols = scratch / "symbols"
        symbols.mkdir()
        self.cache.mkdir()
        export_core(Vm(running.name, running.engine), self.core)
        isf.write(running.guest.kernel, symbols / "guest.json.xz")
        volatility_side.prepare(symbols, self.cache)

    @property
    def qmp(self) -> Path:
        """QEMU's monitor for whoever wants one."""
        return runtime_directory(self.name) / SPARE_QMP_SOCKET


def attach(subject: Subject) -> list[Row]:
    """From nothing to the first list."""
    kernel = subject.guest.kernel
    return [
        *ours.attaching(subject.name),
        drgn_side.attaching("drgn, core", lambda: drgn_side.from_core(kernel, subject.core)),
        drgn_side.attaching("drgn, QMP", lambda: drgn_side.from_qmp(kernel, subject.qmp)),
        volatility_side.attaching(subject.core),
    ]


def lists(subject: Subject) -> list[Row]:
    """Lists by who has been attached for a while."""
    kernel = subject.guest.kernel
    return [
        *ours.listing(subject.name),
        *drgn_side.listing("drgn, core", drgn_side.from_core(kernel, subject.core)),
        *drgn_side.listing("drgn, QMP", drgn_side.from_qmp(kernel, subject.qmp)),
        *volatility_side.listing(subject.core),
    ]


FIGURES = {"attach": attach, "lists": lists}


@contextlib.contextmanager
def subject(kernel: str) -> Iterator[Subject]:
    """4 levels of page tables, because volatility3 knows no 5."""
    with (
        tempfile.TemporaryDirectory(prefix="dvisor-bench-") as scratch,
        running_guest(kernel, "Haswell", 1, Path(scratch)) as running,
    ):
        yield Subject(running, Path(scratch))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("figure", nargs="*", choices=[[], *FIGURES], help="default: all")
    parser.add_argument("--kernel", default="6.12", help="of the guest: 6.1, 6.12 or 7.2")
    options = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end the guest on the way out
    with subject(options.kernel) as measured:
        for name in options.figure or FIGURES:
            noise = Noise()
            rows = with_ratios(FIGURES[name](measured))
            release = measured.guest.kernel.vmcoreinfo["OSRELEASE"]
            figures = Figures(release, noise.machine(), rows)
            show(name, figures)
            raw = msgspec.json.format(msgspec.json.encode(figures))
            (OUT / f"{name}-{options.kernel}.json").write_bytes(raw)


def show(name: str, figures: Figures) -> None:
    """One table, and what the machine was like."""
    machine = figures.machine
    print(f"\n{name}: Linux {figures.guest}, 4 levels, 1 vCPU under TCG")
    table(sorted(figures.rows, key=lambda row: row.what), COLUMNS)
    load = f"load {machine.load_before:.1f} before, {machine.load_after:.1f} after"
    print(f"{machine.cpu}, {machine.cpus} CPUs, Python {machine.python}; {load}; {machine.noise}")


if __name__ == "__main__":
    main()
