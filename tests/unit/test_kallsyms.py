"""Symbol tables of all layouts, made up, are found and decoded."""

from __future__ import annotations

import pytest

from dvisor.errors import GuestDataError
from dvisor.guest.kallsyms import Image, Kallsyms, find_tables
from tests.unit.synthetic_kallsyms import LAYOUTS, VIRTUAL, Layout, image_with, some_symbols

each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def decoded(image: Image) -> Kallsyms:
    return Kallsyms(image, find_tables(image))


@each_layout
@pytest.mark.parametrize("count", [257, 511, 512, 513, 1400])
def test_all_names_and_addresses_come_back(layout: Layout, count: int) -> None:
    symbols = some_symbols(count, seed=count, percpu=layout.absolute_percpu)
    found = decoded(image_with(symbols, layout))
    assert len(found) == count
    assert list(zip(found.names, found.addresses, strict=True)) == symbols


@each_layout
def test_each_name_is_found_and_the_first_of_several_counts(layout: Layout) -> None:
    symbols = some_symbols(700, seed=7, percpu=layout.absolute_percpu)
    found = decoded(image_with(symbols, layout))
    by_name: dict[str, list[tuple[str, int]]] = {}
    for name, address in symbols:
        by_name.setdefault(name[1:], []).append((name[0], address))
    assert max(map(len, by_name.values())) > 1
    for name, same in by_name.items():
        assert found.lookup(name) == same[0][1]
        assert found.all_named(name) == same
    assert found.lookup("no_such_symbol") is None
    assert found.lookup("") is None


@each_layout
def test_an_address_is_named_by_the_last_symbol_before_it(layout: Layout) -> None:
    symbols = some_symbols(600, seed=3, percpu=layout.absolute_percpu)
    found = decoded(image_with(symbols, layout))
    last = symbols[-1][1]
    for address in (VIRTUAL, symbols[300][1], symbols[300][1] + 5, last, last + 9):
        start = max(at for _, at in symbols if at <= address)
        first = next(name for name, at in symbols if at == start)
        assert found.near(address) == (first[1:], address - start)
    assert found.after(last) == last
    assert found.after(VIRTUAL) == min(at for _, at in symbols if at > VIRTUAL)


def test_tables_are_found_in_the_middle_of_a_larger_buffer() -> None:
    symbols = some_symbols(600, seed=1)
    image = image_with(symbols, Layout())
    around = Image(b"\x55" * 4096 + bytes(image.buffer), 4096, 4096 + image.end, VIRTUAL)
    assert decoded(around).names == [name for name, _ in symbols]


def test_a_kernels_order_that_is_wrong_is_not_believed() -> None:
    symbols = some_symbols(600, seed=5)
    image = image_with(symbols, Layout())
    seqs = find_tables(image).seqs
    assert seqs is not None
    raw = bytearray(image.buffer)
    raw[seqs : seqs + 1800] = b"".join(i.to_bytes(3, "big") for i in range(600))
    found = decoded(Image(bytes(raw), 0, len(raw), VIRTUAL))
    assert found.lookup(symbols[123][0][1:]) is not None


@pytest.mark.parametrize(
    "raw", [b"", bytes(65536), b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00" * 99]
)
def test_an_image_without_a_symbol_table_is_a_clear_error(raw: bytes) -> None:
    with pytest.raises(GuestDataError, match="no symbol table in the kernel image"):
        find_tables(Image(raw, 0, len(raw), VIRTUAL))


def test_names_that_would_unfold_to_gigabytes_are_refused() -> None:
    """One token of 16 000 characters, in names of 10 000 tokens each."""
    image = image_with(some_symbols(600, seed=2), Layout(seqs=False))
    tables = find_tables(image)
    raw = bytearray(image.buffer)
    size = tables.index - tables.tokens
    raw[tables.tokens : tables.index] = b"A" * (size - 300) + bytes(300)
    raw[tables.names : tables.markers] = b"\xff\x7f" + bytes(tables.markers - tables.names - 2)
    found = Kallsyms(Image(bytes(raw), 0, len(raw), VIRTUAL), tables)
    with pytest.raises(GuestDataError, match=r"damaged|too long"):
        _ = found.names
    with pytest.raises(GuestDataError, match=r"damaged|too long"):
        found.lookup("A")
