"""docs/syscalls.md is what the table of system calls says now."""

from __future__ import annotations

from dvisor.policy import page
from dvisor.policy.syscalls import document
from tests.house.tree import ROOT


def test_page_is_made_from_the_table() -> None:
    made = page.text(document())
    assert (ROOT / "docs/syscalls.md").read_text() == made, (
        "run: python -m dvisor.policy.syscalls --page > docs/syscalls.md"
    )
