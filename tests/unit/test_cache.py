"""What is kept about a kernel: found again, never believed when it is not that kernel's."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from dvisor.guest import cache
from dvisor.guest.cache import Memo, Source
from dvisor.guest.kallsyms import Image, find_tables
from tests.unit.synthetic_btf import sample
from tests.unit.synthetic_kallsyms import VIRTUAL, Layout, image_with, some_symbols


def kernel(seed: int = 1) -> Source:
    """A made-up kernel: its symbols differ by ``seed``."""
    image = image_with(some_symbols(400, seed), Layout())
    types = sample().blob()
    raw = bytes(image.buffer) + types
    whole = Image(raw, 0, len(raw), VIRTUAL)
    return Source(whole, find_tables(whole), (len(raw) - len(types), len(raw)))


def record(source: Source, **symbols: tuple[str, int] | None) -> Memo:
    return Memo(cache.FORMAT, source.hint(), symbols=symbols)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dvisor" / "symbols"


def test_a_record_is_found_by_what_the_image_holds() -> None:
    ours, other = kernel(1), kernel(2)
    for source in (ours, other):
        cache.save(source.digest(), record(source, who=("t", source.tables.count)))
    found = cache.find(ours.image)
    assert found is not None
    assert found[0] == ours.digest()
    assert found[1] == record(ours, who=("t", 400))
    assert found[2] == ours


def test_an_unknown_kernel_has_no_record() -> None:
    assert cache.find(kernel().image) is None
    cache.save(kernel(2).digest(), record(kernel(2)))
    assert cache.find(kernel(1).image) is None


def test_a_record_under_another_kernels_name_is_not_used(folder: Path) -> None:
    ours, hostile = kernel(1), kernel(2)
    cache.save(hostile.digest(), record(hostile, init_task=("t", 0x666)))
    (folder / f"{hostile.digest()}.json").rename(folder / f"{ours.digest()}.json")
    assert cache.find(ours.image) is None
    assert cache.find(hostile.image) is None


def test_a_record_with_another_kernels_probe_is_not_used(folder: Path) -> None:
    """It claims that our kernel's tables are where it wants them."""
    ours, hostile = kernel(1), kernel(2)
    hint = msgspec.structs.replace(hostile.hint(), probe=ours.hint().probe)
    cache.save(hostile.digest(), msgspec.structs.replace(record(hostile), hint=hint))
    assert cache.find(ours.image) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"\xff" + raw,
        lambda raw: b"[]",
        lambda raw: raw.replace(b'"format":', b'"former":'),
        lambda raw: raw.replace(b'"format":%d' % cache.FORMAT, b'"format":%d' % (cache.FORMAT + 1)),
        lambda raw: b"[" * 100_000,
        lambda raw: raw.replace(b'"count":400', b'"count":-400'),
        lambda raw: raw.replace(b'"count":400', b'"count":99999999999999999999999'),
    ],
)
def test_a_damaged_record_is_passed_over(folder: Path, damage: object) -> None:
    ours = kernel()
    cache.save(ours.digest(), record(ours))
    path = folder / f"{ours.digest()}.json"
    raw = path.read_bytes()
    path.write_bytes(damage(raw))  # type: ignore[operator]
    assert path.read_bytes() != raw
    assert cache.find(ours.image) is None
    cache.save(ours.digest(), record(ours))
    assert cache.find(ours.image) is not None


@pytest.mark.parametrize(
    "name", ["count", "names", "markers", "tokens", "index", "offsets", "base"]
)
@pytest.mark.parametrize("value", [-1, 0, 1 << 40, -(1 << 62)])
def test_a_record_that_points_anywhere_is_passed_over(name: str, value: int) -> None:
    ours = kernel()
    raw = msgspec.to_builtins(record(ours))
    raw["hint"]["tables"][name] = value
    cache.save(ours.digest(), msgspec.convert(raw, Memo))
    assert cache.find(ours.image) is None


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path) -> None:
    folder.parent.parent.joinpath("dvisor").write_text("a file where the folder should be")
    ours = kernel()
    cache.save(ours.digest(), record(ours))
    assert cache.find(ours.image) is None


def test_many_writers_leave_one_whole_record(folder: Path) -> None:
    ours = kernel()
    memos = [record(ours, **{f"symbol_{i}": ("t", i)}) for i in range(8)]

    def write(memo: Memo) -> None:
        for _ in range(20):
            cache.save(ours.digest(), memo)

    threads = [threading.Thread(target=write, args=(memo,)) for memo in memos]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = cache.find(ours.image)
        assert found is None or found[1] in memos
    for thread in threads:
        thread.join()
    found = cache.find(ours.image)
    assert found is not None
    assert found[1] in memos
    assert [path.name for path in folder.iterdir()] == [f"{ours.digest()}.json"]


def test_the_number_and_size_of_records_are_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MAX_FILES", 3)
    for seed in range(6):
        cache.save(f"{seed:064x}", record(kernel()))
    assert len(list(folder.iterdir())) <= 4
    monkeypatch.setattr(cache, "MAX_ENTRIES", 1)
    before = set(folder.iterdir())
    cache.save("f" * 64, record(kernel(), one=None, two=None))
    assert set(folder.iterdir()) == before
