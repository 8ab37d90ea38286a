"""What the documentation says of the program is what the program does."""

from __future__ import annotations

import re

from dvisor import errors
from dvisor.cli import VERBS
from tests.house.tree import ROOT, relative, tree_files


def test_exit_codes_in_the_docs_are_those_of_the_errors() -> None:
    page = (ROOT / "docs/index.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \| ", page, re.MULTILINE)}
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    kinds = [each for each in classes if issubclass(each, errors.DvisorError)]
    assert documented == {0} | {kind.exit_code for kind in kinds}


def test_readme_lists_the_verbs_of_the_command_line() -> None:
    table = re.findall(r"^\| (`dvisor .*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    commands = [command for row in table for command in re.findall(r"`(?:dvisor )?(.+?)`", row)]
    assert {command.split()[0] for command in commands} == {v for _, vs in VERBS for v in vs}


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [relative(page).removeprefix("docs/") for page in tree_files("docs/*.md")]
    assert [page for page in pages if f": {page}\n" not in navigation] == []
