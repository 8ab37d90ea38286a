"""Verdicts are total, and paths and rules keep their laws, whatever a process passes."""

from __future__ import annotations

import posixpath

from hypothesis import given
from hypothesis import strategies as st

from dvisor.policy.descriptors import Descriptor, Message, Process, Value, decide
from dvisor.policy.paths import beneath, normalise, own_descriptor
from dvisor.policy.rules import FAMILIES, PathRule, Rules, SocketAddress, SocketRule
from dvisor.policy.syscalls import Where, table
from dvisor.verdicts import Both, Local, Moved, Proxied, Refused, Side

SIDES = st.sampled_from([Side.LOCAL, Side.PROXIED])
PARTS = st.sampled_from(["a", "b", "ab", ".", "..", "", "proc", "self", "fd", "0"])
PATHS = st.lists(PARTS, max_size=8).map("/".join) | st.text(max_size=20)
FOLDERS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4).map(lambda p: "/" + "/".join(p))
ADDRESSES = st.builds(
    SocketAddress,
    st.integers(0, 50),
    PATHS | st.ip_addresses().map(str),
    st.integers(0, 65535),
)
FDS = st.integers(-101, 12)
MESSAGES = st.builds(Message, st.none() | ADDRESSES, st.lists(FDS, max_size=3).map(tuple))
VALUES: st.SearchStrategy[Value] = st.one_of(
    st.none(), st.integers(), FDS, PATHS, ADDRESSES, MESSAGES, st.lists(FDS), st.lists(MESSAGES)
)
RULES = st.builds(
    Rules,
    st.lists(st.builds(PathRule, SIDES, prefix=FOLDERS), max_size=4).map(tuple),
    st.lists(st.builds(SocketRule, SIDES, st.sampled_from(sorted(FAMILIES))), max_size=4).map(
        tuple
    ),
)
PROCESSES = st.builds(
    Process,
    st.dictionaries(
        st.integers(0, 12),
        st.builds(Descriptor, st.sampled_from(Side), st.none() | FOLDERS, st.booleans()),
    ),
    FOLDERS,
    FOLDERS,
    st.none() | st.integers(1, 9),
)


@given(PATHS, FOLDERS)
def test_a_normalised_path_is_absolute_and_stays_as_it_is(path: str, base: str) -> None:
    once = normalise(path, base)
    assert once.startswith("/")
    assert not {".", "..", ""} & set(once.split("/")[1:]) or once == "/"
    assert normalise(once, "/elsewhere") == once


@given(PATHS, FOLDERS)
def test_normalising_is_what_posixpath_does(path: str, base: str) -> None:
    expected = posixpath.normpath(posixpath.join(base, path))
    assert normalise(path, base) == "/" + expected.lstrip("/")


@given(PATHS, FOLDERS)
def test_no_path_leaves_a_changed_root(path: str, root: str) -> None:
    whole = beneath(root, normalise(path))
    assert whole == root or whole.startswith(root.rstrip("/") + "/")


@given(st.text(max_size=40))
def test_only_numbers_are_own_descriptors(path: str) -> None:
    number = own_descriptor(path)
    assert number is None or number >= 0


@given(st.lists(st.builds(PathRule, SIDES, prefix=FOLDERS), max_size=6), PATHS)
def test_the_longest_prefix_decides(rules: list[PathRule], path: str) -> None:
    whole = normalise(path)
    longest, expected = -1, Side.LOCAL
    for rule in rules:
        prefix = normalise(rule.prefix)
        holds = whole == prefix or whole.startswith(prefix.rstrip("/") + "/")
        if holds and len(prefix) >= longest:
            longest, expected = len(prefix), rule.side
    assert Rules(paths=tuple(rules)).side_of_path(whole) is expected


@given(st.data(), st.integers(-5, 600) | st.integers(), PROCESSES, RULES)
def test_every_number_gets_a_verdict(
    data: st.DataObject, number: int, process: Process, rules: Rules
) -> None:
    call = table().get(number)
    names = [each.name for each in call.arguments] if call else ["fd"]
    arguments = {name: data.draw(VALUES, name) for name in names}
    verdict = decide(number, arguments, process, rules)
    assert isinstance(verdict, Local | Proxied | Both | Moved | Refused)
    if number & 0xFFFF_FFFF not in table():
        assert isinstance(verdict, Refused)
    if isinstance(verdict, Refused):
        assert verdict.reason
        assert verdict.name.startswith("E")


@given(st.data(), st.sampled_from(sorted(table())), PROCESSES)
def test_without_a_rule_or_a_proxied_descriptor_nothing_is_proxied(
    data: st.DataObject, number: int, process: Process
) -> None:
    call = table()[number]
    arguments = {each.name: data.draw(VALUES, each.name) for each in call.arguments}
    plain = Process(cwd=process.cwd, root=process.root, pid=process.pid)
    verdict = decide(number, arguments, plain, Rules())
    if call.disposition.where is Where.DEPENDS:
        too_long = isinstance(verdict, Refused) and verdict.name == "ENAMETOOLONG"
        assert isinstance(verdict, Local) or too_long
