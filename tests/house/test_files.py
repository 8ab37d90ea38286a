"""Sizes, words and links that the house keeps."""

from __future__ import annotations

import ast
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.house.tree import ROOT, line_count, relative, tree_files

LONGEST = {"README.md": 149, "ARCHITECTURE.md": 150}
MODULE_LINES = 400
EXAMPLE_LINES = 40

# Put together here, so that this file does not hold what it forbids.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
        ("docker", "io"),
    )
]

MODULES = tree_files("dvisor/*.py", "bench/*.py")
PAGES = [path for path in tree_files("*.md") if not path.is_symlink()]
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("name", LONGEST)
def test_page_is_short_enough_to_be_read_at_once(name: str) -> None:
    assert line_count(ROOT / name) <= LONGEST[name]


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_module_is_at_most_400_lines(module: Path) -> None:
    assert line_count(module) <= MODULE_LINES


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_module_says_what_it_is_for(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text())), "no docstring at the top"


def test_every_data_file_of_the_package_is_installed_with_it() -> None:
    """``pip install .`` takes pyproject.toml's patterns, and says nothing of what they miss."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = [pattern.removeprefix("**/") for pattern in settings["package-data"]["dvisor"]]
    data = [path for path in tree_files("dvisor/") if path.suffix != ".py"]
    missed = [path for path in data if not any(fnmatch(path.name, each) for each in patterns)]
    assert [relative(path) for path in missed] == []


def test_example_is_one_screen() -> None:
    examples = tree_files("examples/*.py", "dvisor/machine/examples/*")
    too_long = {relative(path) for path in examples if line_count(path) > EXAMPLE_LINES}
    assert not too_long


def test_no_package_registry_is_named() -> None:
    named = [
        f"{relative(path)}: {host}"
        for path in tree_files()
        for text in [path.read_bytes().decode(errors="replace")]
        for host in REGISTRY_HOSTS
        if host in text
    ]
    assert not named, "use the machine's own apt and pip configuration instead"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_files_of_the_tree(page: Path) -> None:
    targets = [target.split("#")[0] for target in LINK.findall(page.read_text())]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
