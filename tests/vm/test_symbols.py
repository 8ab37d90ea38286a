"""The kernel's symbols from beneath against the guest's own /proc/kallsyms."""

from __future__ import annotations

import hashlib
import itertools

import pytest

from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm


def test_all_symbols_are_the_guest_s_own_in_its_order(matrix_guest: RunningGuest) -> None:
    # Eight megabytes: too much for the console. What has a bracket is not of the image.
    count, digest = matrix_guest.shell(
        "grep -v '\\[' /proc/kallsyms >/tmp/k; wc -l </tmp/k; sha256sum </tmp/k; rm /tmp/k", 120
    ).split()[:2]
    symbols = matrix_guest.guest.kernel.symbols
    assert len(symbols) == int(count)
    text = "".join(
        f"{address:016x} {full[0]} {full[1:]}\n"
        for full, address in zip(symbols.names, symbols.addresses, strict=True)
    )
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_a_looked_up_symbol_is_the_first_of_its_name(matrix_guest: RunningGuest) -> None:
    symbols = matrix_guest.guest.kernel.symbols
    places: dict[str, list[tuple[str, int]]] = {}
    for full, address in zip(symbols.names, symbols.addresses, strict=True):
        places.setdefault(full[1:], []).append((full[0], address))
    assert any(len(same) > 1 for same in places.values())
    for name, same in itertools.islice(places.items(), 0, None, 5):
        assert symbols.lookup(name) == same[0][1], name
        assert symbols.all_named(name) == same, name
        absent = name + "\x01"
        assert symbols.lookup(absent) is None


def test_the_kernel_s_own_order_of_names_is_used(matrix_guest: RunningGuest) -> None:
    source = matrix_guest.guest.kernel._source
    assert source.tables.seqs is not None
    names = matrix_guest.guest.kernel.symbols._names
    assert names._order is names._kernels_order


def test_an_address_is_named_by_the_first_symbol_at_or_before_it(
    matrix_guest: RunningGuest,
) -> None:
    symbols = matrix_guest.guest.kernel.symbols
    names, addresses = symbols.names, symbols.addresses
    assert addresses == sorted(addresses)
    for i in range(1, len(names) - 1, 97):
        if addresses[i - 1] < addresses[i] < addresses[i + 1]:
            assert symbols.near(addresses[i]) == (names[i][1:], 0)
            assert symbols.near(addresses[i + 1] - 1) == (
                names[i][1:],
                addresses[i + 1] - 1 - addresses[i],
            )
            assert symbols.after(addresses[i]) == addresses[i + 1]
