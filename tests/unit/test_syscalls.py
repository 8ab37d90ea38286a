"""The table of system calls against the kernels' own tables and definitions."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from dvisor.errors import NotFoundError, UsageError
from dvisor.policy import rows
from dvisor.policy.prototype import Direction
from dvisor.policy.syscalls import SystemCall, Where, by_name, document, system_call, table

EXTRACT = Path(__file__).parent / "data/syscall_64.txt"
TOML = resources.files("dvisor.policy").joinpath("syscalls.toml").read_text()


def kernel_rows() -> list[list[str]]:
    """Number, name, kernels with a function of it, kernels that list it, function, arguments."""
    lines = EXTRACT.read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


KERNEL = kernel_rows()
DEFINED = [(row[1], row[5]) for row in KERNEL if row[5] != "?" and row[4] != "ni_syscall"]


def test_numbers_and_names_are_the_kernels_own() -> None:
    assert {call.number: call.name for call in table().values()} == {
        int(number): name for number, name, *_ in KERNEL
    }


def test_what_is_new_or_gone_is_said() -> None:
    new = {name for _, name, _, listed, *_ in KERNEL if listed == "7.2"}
    gone = {name for _, name, have, *_ in KERNEL if have == "6.1"}
    assert {call.name for call in table().values() if call.new} == new
    assert {call.name for call in table().values() if call.gone} == gone


def test_a_number_without_a_function_is_refused_with_enosys() -> None:
    for _, name, have, _, function, _ in KERNEL:
        if have == "none" or function == "ni_syscall":
            disposition = system_call(name).disposition
            assert (disposition.where, disposition.errno) == (Where.REFUSED, "ENOSYS"), name


@pytest.mark.parametrize(("name", "arguments"), DEFINED)
def test_arguments_are_those_of_the_definition(name: str, arguments: str) -> None:
    kernels = [] if arguments == "-" else arguments.split(",")
    call = system_call(name)
    assert [each.name for each in call.arguments] == [each.split("*")[-1] for each in kernels]
    for mine, its in zip(call.arguments, kernels, strict=True):
        if its.startswith("const*"):
            assert mine.kind == "address" or mine.direction is Direction.IN, mine.name
        elif "*" in its:
            assert mine.kind == "address" or mine.direction is not Direction.VALUE, mine.name
        else:
            assert mine.direction is Direction.VALUE, mine.name


def test_a_call_is_found_by_its_name() -> None:
    assert system_call("epoll_pwait2").number == 441
    assert len(by_name()) == len(table())
    with pytest.raises(NotFoundError, match="spawn"):
        system_call("spawn")


def test_io_uring_is_refused_in_the_way_that_programs_fall_back_from() -> None:
    for name in ("io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup"):
        assert system_call(name).disposition.errno == "ENOSYS"


def every_call() -> list[SystemCall]:
    return list(table().values())


@pytest.mark.parametrize("call", every_call(), ids=lambda call: call.name)
def test_a_refusal_says_why(call: SystemCall) -> None:
    (family,) = (each for each in document().families if each.title == call.family)
    if call.disposition.where is Where.REFUSED:
        assert family.about or call.why
    if call.if_proxied:
        assert call.why or family.about


def test_a_call_that_makes_a_descriptor_is_followed() -> None:
    makers = [
        call
        for call in every_call()
        if call.disposition.where is not Where.REFUSED
        and (
            call.gives == "fd" or any(each.kind == "fd" and each.length for each in call.arguments)
        )
    ]
    assert len(makers) > 30
    assert [call.name for call in makers if not call.follow] == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("read = { nr = 0,", "read = { nr = 1,", "number"),
        ("out byte buf[count", "out byte buf[cont", "cont"),
        ("out stat statbuf", "out stut statbuf", "stut"),
        ('to = "by fd"', 'to = "by df"', "df"),
        ('mixed = "EXDEV"', 'mixed = "EXDIV"', "EXDIV"),
        ('mixed = "EXDEV"', 'mixed = ""', "disagree"),
        ('waits = "restarts"', 'waits = "often"', "often"),
        ("follow = true", "folow = true", "folow"),
        ('gives = "count buf"', 'gives = "count fd"', "no array"),
        ('commands = "fcntl"', 'commands = "fnctl"', "fnctl"),
        ('to = "refused ENOSYS"', 'to = "refused"', "refused"),
        ("count <= RW_MAX else short", "count", "limit"),
        ("F_GETFD = { nr = 1,", "F_GETFD = { nr = 0,", "twice"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place(old: str, new: str, said: str) -> None:
    assert old in TOML
    with pytest.raises(UsageError, match=said):
        rows.load(TOML.replace(old, new, 1))


def test_no_text_would_break_the_page_s_tables() -> None:
    assert not re.findall(r'(?:why|about|title) = "[^"]*\|', TOML)
