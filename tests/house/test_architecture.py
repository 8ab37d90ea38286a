"""ARCHITECTURE.md is true: its picture is the import contract, its folders are there."""

from __future__ import annotations

import re
import tomllib

from tests.house.tree import ROOT, fenced_blocks, relative, tree_files

PAGE = (ROOT / "ARCHITECTURE.md").read_text()


def contract_layers() -> list[set[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (each for each in settings["contracts"] if each["type"] == "layers")
    return [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]


def pictured_layers() -> list[set[str]]:
    """The layers of the one block that draws the import rule: arrows between them, | within."""
    (picture,) = fenced_blocks(PAGE, "imports")
    return [set(re.findall(r"\w+", layer)) for layer in picture.split("->")]


def table_rows(state: str) -> list[str]:
    """The folders of the table whose second column is ``state``."""
    return re.findall(rf"^\| `([^`]+)` +\| {state} ", PAGE, re.MULTILINE)


def test_picture_is_the_import_contract() -> None:
    assert pictured_layers() == contract_layers()


def test_folders_called_present_are_there() -> None:
    present = table_rows("now")
    assert present
    assert [folder for folder in present if not (ROOT / folder).exists()] == []


def test_folders_called_planned_are_not_there_yet() -> None:
    assert [folder for folder in table_rows("planned") if (ROOT / folder).exists()] == []


def test_every_package_has_its_row() -> None:
    packages = {relative(path.parent) + "/" for path in tree_files(":(glob)dvisor/*/__init__.py")}
    assert packages <= set(table_rows("now"))


def test_package_docstring_is_the_architecture() -> None:
    """The first words of the package are the sentence that the page begins with."""
    docstring = (ROOT / "dvisor/__init__.py").read_text()
    (sentence,) = re.findall(r"^\*\*(.+)\*\*$", PAGE, re.MULTILINE)
    assert sentence in " ".join(docstring.split())
