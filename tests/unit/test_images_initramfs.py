"""What goes into an initramfs: the archive format, and modules in an order that loads."""

from __future__ import annotations

import lzma
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.errors import UnsupportedError
from dvisor.images import cpio
from dvisor.images.modules import ModuleTables, contents

HEADER_BYTES = 110
NAMES = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=300)


def read_back(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Path, mode and data of each entry, read as the kernel's initramfs.c does."""
    entries: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[i : i + 8], 16) for i in range(at + 6, at + HEADER_BYTES, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + HEADER_BYTES :][: name_size - 1].decode()
        start = at + -(-(HEADER_BYTES + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return entries
        entries.append((name, mode, archive[start : start + size]))
        at = start + -(-size // 4) * 4


@given(st.lists(st.tuples(NAMES, st.binary(max_size=50))))
def test_archive_reads_back_as_it_was_written(files: list[tuple[str, bytes]]) -> None:
    archive = cpio.archive(cpio.file(name, data) for name, data in files)
    assert read_back(archive) == [(name, stat.S_IFREG | 0o644, data) for name, data in files]


def test_kinds_of_files_keep_their_type_bits() -> None:
    archive = cpio.archive(
        [cpio.directory("d"), cpio.symlink("l", "to"), cpio.character_device("c", 5, 1)]
    )
    assert read_back(archive) == [
        ("d", stat.S_IFDIR | 0o755, b""),
        ("l", stat.S_IFLNK | 0o777, b"to"),
        ("c", stat.S_IFCHR | 0o600, b""),
    ]


@pytest.fixture
def tables(tmp_path: Path) -> ModuleTables:
    texts = {
        "builtin": "kernel/drivers/virtio/virtio_pci.ko\n",
        "dep": "kernel/fs/ext4.ko.xz: kernel/fs/jbd2.ko.xz kernel/lib/crc16.ko.xz\n"
        "kernel/fs/jbd2.ko.xz: kernel/lib/crc16.ko.xz\n"
        "kernel/lib/crc16.ko.xz:\n"
        "kernel/crypto/crc32c-generic.ko.xz:\n"
        "kernel/a.ko: kernel/b.ko\n"
        "kernel/b.ko: kernel/a.ko\n",
        "softdep": "# a comment\nsoftdep ext4 pre: crypto-crc32c post: crc16\n",
        "alias": "alias crypto-crc32c crc32c_generic\n",
    }
    for name, text in texts.items():
        (tmp_path / f"modules.{name}").write_text(text)
    return ModuleTables(tmp_path)


def names(files: list[Path]) -> list[str]:
    return [path.name.split(".")[0] for path in files]


def test_needs_come_before_what_needs_them(tables: ModuleTables) -> None:
    order = names(tables.load_order(["ext4"]))
    assert order.index("crc16") < order.index("jbd2") < order.index("ext4")


def test_soft_needs_are_found_by_their_alias(tables: ModuleTables) -> None:
    order = names(tables.load_order(["ext4"]))
    assert order.index("crc32c-generic") < order.index("ext4")


def test_what_is_built_in_is_not_loaded(tables: ModuleTables) -> None:
    assert tables.load_order(["virtio_pci"]) == []


def test_each_module_comes_once(tables: ModuleTables) -> None:
    order = tables.load_order(["ext4", "jbd2", "ext4"])
    assert len(order) == len(set(order))


def test_modules_that_need_each_other_come_to_an_end(tables: ModuleTables) -> None:
    assert sorted(names(tables.load_order(["a"]))) == ["a", "b"]


def test_missing_module_is_unsupported(tables: ModuleTables) -> None:
    with pytest.raises(UnsupportedError, match="no module virtio_net"):
        tables.load_order(["virtio_net"])


def test_compressed_module_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(b"\x7fELF"))
    (tmp_path / "b.ko").write_bytes(b"\x7fELF")
    assert contents(tmp_path / "a.ko.xz") == contents(tmp_path / "b.ko") == b"\x7fELF"


def test_unknown_compression_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"\.zst"):
        contents(tmp_path / "a.ko.zst")
