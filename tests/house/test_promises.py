"""PROMISES.md: numbered without a gap, and every test that it names exists."""

from __future__ import annotations

import ast
import re

from tests.house.tree import ROOT

PAGE = (ROOT / "PROMISES.md").read_text()
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_numbers_follow_one_another() -> None:
    numbers = [int(number) for number, _, _ in ROW.findall(PAGE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_every_line_of_the_table_is_a_promise() -> None:
    lines = [line for line in PAGE.splitlines() if re.match(r"\| *\d", line)]
    assert len(lines) == len(ROW.findall(PAGE))


def test_every_promise_names_a_test_or_says_pending() -> None:
    silent = [
        number
        for number, _, proof in ROW.findall(PAGE)
        if not TEST.search(proof) and proof != "test pending"
    ]
    assert silent == []


def test_every_named_test_exists() -> None:
    missing = [f"{file}::{name}" for file, name in TEST.findall(PAGE) if not has_test(file, name)]
    assert missing == []


def has_test(file: str, name: str) -> bool:
    path = ROOT / file
    if not path.is_file():
        return False
    defined = ast.walk(ast.parse(path.read_text()))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(isinstance(node, kinds) and node.name == name for node in defined)
