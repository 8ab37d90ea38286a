"""Where dvisor keeps what can be made again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """The user's cache directory for dvisor, which may not exist yet.

    ``$DVISOR_CACHE_DIR``, or by the XDG base directory specification ``$XDG_CACHE_HOME/dvisor``
    or ``~/.cache/dvisor``.
    """
    if given := os.environ.get("DVISOR_CACHE_DIR"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a relative path is invalid and must be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "dvisor"
