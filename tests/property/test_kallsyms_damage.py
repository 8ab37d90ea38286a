"""A symbol table that is damaged anywhere is decoded, or refused, in bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dvisor.errors import GuestDataError
from dvisor.guest.kallsyms import Image, Kallsyms, find_tables
from tests.unit.synthetic_kallsyms import HEAD_BYTES, LAYOUTS, VIRTUAL, image_with, some_symbols

IMAGES = [image_with(some_symbols(600, seed=n), layout) for n, layout in enumerate(LAYOUTS)]
junk = st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=16))


def use(image: Image) -> None:
    """All that views do with symbols; what is wrong must be a GuestDataError."""
    try:
        found = Kallsyms(image, find_tables(image))
        for name in ("init_task", "tcp_init", ""):
            found.lookup(name)
        found.near(VIRTUAL + 4096)
        found.after(VIRTUAL + 4096)
        assert len(found.names) == len(found.addresses) == len(found)
        assert sum(map(len, found.names)) < 10_000_000
    except GuestDataError:
        pass


@given(st.sampled_from(IMAGES), st.lists(junk, min_size=1, max_size=20))
def test_a_damaged_table_is_decoded_or_refused(
    image: Image, damage: list[tuple[float, bytes]]
) -> None:
    raw = bytearray(image.buffer)
    for where, data in damage:
        at = HEAD_BYTES - 64 + int(where * (image.end - HEAD_BYTES - 4096 + 64))
        raw[at : at + len(data)] = data
    use(Image(bytes(raw), 0, image.end, VIRTUAL))


@given(st.sampled_from(IMAGES), st.floats(0, 1))
def test_a_table_that_is_cut_off_is_decoded_or_refused(image: Image, where: float) -> None:
    end = HEAD_BYTES + int(where * (image.end - HEAD_BYTES))
    use(Image(bytes(image.buffer[:end]), 0, end, VIRTUAL))


@given(st.sampled_from(IMAGES), st.lists(junk, min_size=1, max_size=8))
def test_damage_after_the_tables_were_found_is_refused_or_harmless(
    image: Image, damage: list[tuple[float, bytes]]
) -> None:
    """As where a cached record told their places."""
    tables = find_tables(image)
    raw = bytearray(image.buffer)
    for where, data in damage:
        at = HEAD_BYTES + int(where * (image.end - HEAD_BYTES - 4096))
        raw[at : at + len(data)] = data
    try:
        found = Kallsyms(Image(bytes(raw), 0, image.end, VIRTUAL), tables)
        found.lookup("tcp_init")
        found.near(VIRTUAL + 4096)
        assert len(found.names) == len(found)
    except GuestDataError:
        pass
