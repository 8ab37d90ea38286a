"""Real guests for tests: one boot a configuration, shared by all tests that can share it.

``matrix_guest`` is a Debian guest with ``workload.py`` running in it, on several kernels, numbers
of page table levels and of vCPUs; ``make test`` takes a few of the combinations, ``make test-all``
all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.vm.guests import RunningGuest, running_guest
from tests.vm.machines import Place

FIVE_LEVELS, FOUR_LEVELS = "max", "Haswell"  # Haswell also has page-table isolation
QUICK = [
    ("6.1", FOUR_LEVELS, 1),
    ("6.12", FIVE_LEVELS, 2),
    ("7.2", FIVE_LEVELS, 1),
    ("rt", FOUR_LEVELS, 2),
]
ALL = [*itertools.product(("6.1", "6.12", "7.2", "rt"), (FOUR_LEVELS, FIVE_LEVELS), (1, 2))]
MATRIX = [
    pytest.param(
        case,
        id=f"{case[0]}-{case[1]}-{case[2]}cpu",
        marks=[] if case in QUICK else [pytest.mark.full],
    )
    for case in ALL
]


@pytest.fixture(scope="session", autouse=True)
def own_directories() -> Iterator[None]:
    """The tests' VMs stay out of the user's `dvisor ls`, and their records out of its logs."""
    place = Place()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in place.environment.items():
            patch.setenv(key, value)
        yield
    place.close()


@pytest.fixture(scope="session", params=MATRIX)
def matrix_guest(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    own_directories: None,
) -> Iterator[RunningGuest]:
    """One guest of the matrix with the workload in it. Tests only look, or clean up after them."""
    kernel, cpu, vcpus = request.param
    with running_guest(kernel, cpu, vcpus, tmp_path_factory.mktemp("guest")) as found:
        yield found
