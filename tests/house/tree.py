"""The files of this repository, as git lists them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tree_files(*patterns: str) -> list[Path]:
    """Files that git tracks, or would (not ignored), that match the patterns; absolute paths."""
    # In a container the clone may belong to another user, which git refuses unless told otherwise.
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(
        [*git, "--cached", "--others", "--exclude-standard", "--", *patterns],
        check=True,
        capture_output=True,
        text=True,
    )
    paths = (ROOT / name for name in sorted(set(listed.stdout.split("\0"))) if name)
    return [path for path in paths if path.is_file()]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def fenced_blocks(text: str, language: str) -> Iterator[str]:
    """The bodies of the Markdown code blocks that name this language."""
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield match[1]
