"""What a view returns: a list that says whether it is all there is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

MAX_PROBLEMS = 16


class Listing(list[T]):
    """A list with ``problems``: why it may lack entries (damaged or changing guest memory)."""

    def __init__(self, items: Iterable[T] = (), problems: Iterable[str] = ()) -> None:
        super().__init__(items)
        self.problems: list[str] = list(problems)

    @property
    def complete(self) -> bool:
        """False when the guest's memory did not let all of it be read."""
        return not self.problems

    def problem(self, text: str) -> None:
        """Note why entries are missing. Repetitions and the tail of a flood are dropped: how many
        there are is up to the guest."""
        if text not in self.problems and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)
