"""What a guest says cannot control the terminal, and JSON says whether an answer is whole."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.cli.output import emit, printable, warn
from dvisor.guest.listing import MAX_PROBLEMS, Listing


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("Ärger 例", "Ärger 例"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x9b31m", "\\x9b31m"),  # CSI in one byte
        ("\u202egnp.exe", "\\u202egnp.exe"),  # right-to-left override
        ("\u2028", "\\u2028"),
        ("\udcff", "\\udcff"),  # half of a pair
        (None, "-"),
        (7, "7"),
    ],
)
def test_what_could_control_a_terminal_is_shown_as_its_code(raw: object, shown: str) -> None:
    assert printable(raw) == shown


@given(st.text())
def test_what_is_shown_is_always_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text).encode() or not text


@dataclass
class Row:
    name: str


COLUMNS = [("NAME", lambda row: row.name)]


def test_a_table_of_hostile_names_holds_no_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = Listing([Row("\x1b[31m"), Row("a\nb")], ["bad \x1b[0m pointer"])
    emit("vm", "rows", rows, COLUMNS, as_json=False)
    out, err = capsys.readouterr()
    assert out.splitlines() == ["NAME", "\\x1b[31m", "a\\nb"]
    assert err == "dvisor: warning: bad \\x1b[0m pointer\n"


def test_json_says_that_an_answer_is_partial(capsys: pytest.CaptureFixture[str]) -> None:
    emit("vm", "rows", Listing([{"name": "\x1b"}], ["why"]), [], as_json=True)
    raw = capsys.readouterr().out
    assert "\x1b" not in raw
    document = json.loads(raw)
    assert document["complete"] is False
    assert document["problems"] == ["why"]
    assert document["items"] == [{"name": "\x1b"}]


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    warn("a\nb")
    assert capsys.readouterr().err == "dvisor: warning: a\\nb\n"


def test_a_flood_of_problems_is_cut_and_told_once() -> None:
    listing: Listing[int] = Listing()
    for number in range(10_000):
        listing.problem(f"problem {number // 2}")
    assert len(listing.problems) == MAX_PROBLEMS
    assert listing.problems[:2] == ["problem 0", "problem 1"]
    assert not listing.complete
    assert Listing([1, 2]).complete
