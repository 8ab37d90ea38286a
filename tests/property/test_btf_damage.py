"""BTF that is damaged anywhere is understood, or refused, in bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dvisor.errors import DvisorError
from dvisor.guest.btf import ENUM, STRUCT, UNION, Btf
from dvisor.guest.records import place
from tests.unit.synthetic_btf import BtfBuilder, sample

BASE = sample().blob()


def module_blob() -> bytes:
    builder = BtfBuilder(sample().btf())
    task = sample().btf().structure("task")
    builder.struct("own", 160, [("base", task, 0), ("count", 2, 1216)])
    return builder.blob()


MODULE = module_blob()
words = st.one_of(
    st.integers(0, 40), st.sampled_from([0xFFFF, 0xFFFF_FFFF, 1 << 31]), st.integers(0, 2**32 - 1)
)
damage = st.lists(st.tuples(st.integers(0, len(BASE) // 4 - 1), words), min_size=1, max_size=12)


def use(types: Btf) -> None:
    """All that views ask of types; what is wrong must be a DvisorError."""
    for structure in ("task", "task_t", "node", "own", "none"):
        for path in ("pid", "right", "tasks.prev", "flag_b", "table", "base.comm", "none"):
            try:
                found = place(types, structure, path)
            except DvisorError:
                continue
            assert found is None or found.offset < 1 << 30
    for ask in (
        lambda: types.constant("DEAD"),
        lambda: types.find("state", ENUM, STRUCT, UNION),
        lambda: [types.size(i) for i in range(1, min(types.end_id, 99))],
        lambda: [types.name(i) for i in range(1, min(types.end_id, 99))],
        lambda: [list(types.members(i)) for i in range(1, 9) if types.kind(i) in {STRUCT, UNION}],
    ):
        try:
            ask()
        except DvisorError:
            continue


def damaged(blob: bytes, harm: list[tuple[int, int]]) -> bytes:
    raw = bytearray(blob)
    for word, value in harm:
        at = 4 * (word % (len(raw) // 4))
        raw[at : at + 4] = value.to_bytes(4, "little")
    return bytes(raw)


def opened(blob: bytes, base: Btf | None = None) -> Btf | None:
    try:
        return Btf(blob, base)
    except DvisorError:
        return None


@given(damage, st.booleans())
def test_damaged_types_are_understood_or_refused(harm: list[tuple[int, int]], header: bool) -> None:
    first = 0 if header else 6
    types = opened(damaged(BASE, [(max(word, first), value) for word, value in harm]))
    if types:
        use(types)


@given(damage, damage)
def test_damaged_types_of_a_module_are_understood_or_refused(
    harm: list[tuple[int, int]], harm_of_base: list[tuple[int, int]]
) -> None:
    for base in (opened(BASE), opened(damaged(BASE, harm_of_base))):
        try:
            types = base and opened(damaged(MODULE, harm), base)
        except DvisorError:
            continue
        if types:
            use(types)


@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    types = opened(BASE[:4] + noise)
    if types:
        use(types)
