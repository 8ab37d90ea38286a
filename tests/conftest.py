"""What every test obeys: which ones run here, and how hypothesis searches.

``vm`` tests need QEMU and guest images. Without them they are skipped with the reason, unless
DVISOR_REQUIRE_VM is set (``make test`` sets it): then they run, and fail with the real error.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

from dvisor import images
from dvisor.errors import DvisorError

# On a loaded machine a slow example is no bug: no test here asserts a time.
settings.register_profile(
    "dvisor", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("dvisor")


def pytest_configure() -> None:
    # So that fixtures end their VMs: the default action would leave them running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the tests marked full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
    if os.environ.get("DVISOR_REQUIRE_VM"):
        return
    guests = [item for item in items if item.get_closest_marker("vm")]
    if guests and (lack := what_guests_lack()):
        for item in guests:
            item.add_marker(pytest.mark.skip(reason=lack))


def what_guests_lack() -> str | None:
    """Why no guest can be started here, or None."""
    try:
        images.find("tiny")
    except DvisorError as error:
        return f"{error} (`make test` builds all that these tests need)"
    return None
