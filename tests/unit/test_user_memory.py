"""Command lines in memory that the process itself wrote."""

from __future__ import annotations

import pytest

from dvisor.guest.memory import Memory
from dvisor.guest.user_memory import MAX_ARGUMENTS, UserMemoryReader
from tests.unit.fake_kernel import FakeKernel, FakeMemory

LAYOUTS = {
    f"mm_struct.{member}": (8 * i, "Q")
    for i, member in enumerate(("pgd", "arg_start", "arg_end", "env_start", "env_end"))
}
MM, ARGUMENTS = 0xFFFF_8880_0000_1000, 0x7FFF_0000_0F80


class OneSpace(FakeMemory):
    """User and kernel addresses in one."""

    def physical(self, address: int) -> int:  # type: ignore[override]
        return address

    def user(self, root: int) -> Memory:
        return self


def reader(arguments: bytes, environment: bytes = b"", **members: int) -> UserMemoryReader:
    """A process with ``arguments`` and, right behind them, ``environment``."""
    kernel = FakeKernel(LAYOUTS)
    kernel.memory = OneSpace()
    middle = ARGUMENTS + len(arguments)
    places = {
        "pgd": 0x1000,
        "arg_start": ARGUMENTS,
        "arg_end": middle,
        "env_start": middle,
        "env_end": middle + len(environment),
        **members,
    }
    kernel.put("mm_struct", MM, **places)
    kernel.memory.write(ARGUMENTS, arguments + environment)
    return UserMemoryReader(kernel)


def test_arguments_keep_empty_ones_and_cross_pages() -> None:
    long = "x" * 5000
    found = reader(f"prog\0\0{long}\0".encode(), b"A=1\0B=\0")
    assert found.command_line(MM) == ("prog", "", long)
    assert found.environment(MM) == ("A=1", "B=")


def test_title_over_the_arguments_is_one_string_even_into_the_environment() -> None:
    assert reader(b"sshd: al", b"ice [priv]\0\0\0").command_line(MM) == ("sshd: alice [priv]",)


def test_title_does_not_run_into_an_environment_that_stands_elsewhere() -> None:
    assert reader(b"title", b"secret\0", env_start=0x5000).command_line(MM) == ("title",)


def test_process_before_exec_or_with_reversed_bounds_has_no_arguments() -> None:
    assert reader(b"a\0", env_end=0).command_line(MM) == ()
    assert reader(b"a\0", b"B=1\0", arg_end=0x10).command_line(MM) == ()


@pytest.mark.parametrize("end", [ARGUMENTS + 0x8000, ARGUMENTS + MAX_ARGUMENTS + 1, (1 << 64) - 1])
def test_arguments_that_are_not_in_memory_or_absurdly_long_are_none(end: int) -> None:
    assert reader(b"a\0", b"B=1\0", arg_end=end).command_line(MM) is None
