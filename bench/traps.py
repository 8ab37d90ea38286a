"""``python -m bench.traps``: what a trapped getppid costs the guest, and what others pay.

Two guests, one started with the library and one without, are measured in turn, so that the
machine's noise falls on both. Each figure is the least of all rounds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.measure import Noise
from dvisor.cli.output import table
from dvisor.machine.traps import Event, Traps, When
from tests.vm.machines import Place
from tests.vm.trapped import GETPPID, TrappedGuest, deciding, trapped_guest, trapped_spec

GETPID, SCHED_YIELD = 39, 24
TURNS = 5
VICTIM, OTHER = "v", "o"


class Cost(msgspec.Struct):
    """One line of the table."""

    case: str
    us: float
    ratio: float = 1.0


def measured(guest: TrappedGuest, victim: str, calls: int) -> float:
    """Microseconds a call, the least of ten loops."""
    return guest.tell(victim, f"cost {calls}", 300) / 1e6


def trapped(guest: TrappedGuest, traps: Traps, decide: Callable[[Event], None]) -> float:
    traps.trap([GETPPID])
    with deciding(traps, decide):
        return measured(guest, VICTIM, 300)


def one_turn(without: TrappedGuest, loaded: TrappedGuest, victim: int) -> dict[str, float]:
    """All cases once."""
    costs = {"no library": measured(without, VICTIM, 20_000)}
    costs["library, nobody enrolled"] = measured(loaded, VICTIM, 20_000)
    with loaded.traps() as traps:
        loaded.enroll(traps, victim)
        traps.trap([GETPPID])
        costs["another process enrolled"] = measured(loaded, OTHER, 20_000)
        traps.trap([GETPID])
        costs["enrolled, call not trapped"] = measured(loaded, VICTIM, 20_000)

        def yield_first(event: Event) -> None:
            if event.when is When.ENTRY:
                traps.substitute(event, SCHED_YIELD)
            else:
                traps.let_through(event)

        costs["let through by a Python peer"] = trapped(loaded, traps, traps.let_through)
        costs["answered by a Python peer"] = trapped(
            loaded, traps, lambda event: traps.answer(event, 1)
        )
        costs["sched_yield, then the call"] = trapped(loaded, traps, yield_first)
    return costs


def least(turns: list[dict[str, float]]) -> list[Cost]:
    """The least of each case, and its ratio to the guest without the library."""
    costs = [Cost(case, min(turn[case] for turn in turns)) for case in turns[0]]
    for cost in costs:
        cost.ratio = cost.us / costs[0].us
    return costs


def main() -> None:
    """Boot, measure, print."""
    kernel = sys.argv[1] if len(sys.argv) > 1 else "6.12"
    place = Place()
    os.environ.update(place.environment)
    noise = Noise()
    with contextlib.ExitStack() as stack:
        stack.callback(place.close)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dvisor-bench-")))
        spec = trapped_spec("loaded", scratch, kernel, "max", 1)
        loaded = stack.enter_context(trapped_guest(spec))
        plain = msgspec.structs.replace(spec, name="plain", traps=False)
        without = stack.enter_context(trapped_guest(plain))
        without.start(VICTIM)
        victim = loaded.start(VICTIM)
        loaded.start(OTHER)
        costs = least([one_turn(without, loaded, victim) for _ in range(TURNS)])
    print(f"\ngetppid on Linux {kernel}, 1 vCPU under TCG, least of {10 * TURNS} loops")
    columns = [
        ("CASE", lambda cost: cost.case),
        (">US", lambda cost: f"{cost.us:.3f}"),
        (">RATIO", lambda cost: f"{cost.ratio:.2f}"),
    ]
    table(costs, columns)
    machine = noise.machine()
    load = f"load {machine.load_before:.1f} before, {machine.load_after:.1f} after"
    print(f"{machine.cpu}, {machine.cpus} CPUs, Python {machine.python}; {load}; {machine.noise}")


if __name__ == "__main__":
    main()
