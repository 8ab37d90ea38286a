"""No damage to a dump makes anything but a DvisorError, nor an answer without end."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvisor.addresses import GuestPhysical
from dvisor.errors import DvisorError
from dvisor.machine.corefile import open_core
from dvisor.machine.corefile_write import write_core
from tests.unit.test_corefile_formats import LIME, page
from tests.unit.test_corefile_write import FakeEngine

HEADERS_BYTES = 600  # the ELF header, all program headers, and the start of the notes
NASTY = [0, 1, 0x7F, 0x80, 0xFF, 0x1000, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 52, (1 << 64) - 1]


@pytest.fixture(scope="module")
def core() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "core"
        write_core(FakeEngine(), path, vmcoreinfo=b"OSRELEASE=6.12\n")
        return path.read_bytes()


def use(content: bytes) -> None:
    """All that an engine offers, on a file with this content."""
    fd, name = tempfile.mkstemp()
    try:
        os.write(fd, content)
        engine = open_core(name)
        with contextlib.suppress(DvisorError):
            engine.registers()
        assert engine.description
        assert isinstance(engine.vmcoreinfo, bytes | None)
        last = 0
        for block in engine.ram():
            assert block.gpa >= last
            assert block.size > 0
            last = block.end
            size = min(block.size, 4096)
            assert len(engine.read(block.gpa, size)) == size
            engine.read(GuestPhysical(block.end - size), size)
        for gpa, size in engine.populated():
            assert len(engine.read(gpa, min(size, 4096))) == min(size, 4096)
        engine.close()
    except DvisorError:
        pass
    finally:
        os.close(fd)
        Path(name).unlink()


changes = st.lists(
    st.tuples(
        st.integers(0, HEADERS_BYTES),
        st.one_of(st.sampled_from(NASTY), st.integers(0, (1 << 64) - 1)),
        st.sampled_from("BHIQ"),
    ),
    min_size=1,
    max_size=6,
)


@given(changes=changes, cut=st.one_of(st.none(), st.integers(0, 4 << 20)))
def test_damaged_elf_core_is_survived(
    core: bytes, changes: list[tuple[int, int, str]], cut: int | None
) -> None:
    damaged = bytearray(core)
    for at, value, kind in changes:
        size = struct.calcsize(kind)
        struct.pack_into(f"<{kind}", damaged, at, value & ((1 << 8 * size) - 1))
    use(bytes(damaged[:cut]))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 64).map(lambda n: n * 0x800),
            st.integers(0, 64).map(lambda n: n * 0x400),
            st.sampled_from([1, 1, 1, 2]),
        ),
        max_size=8,
    )
)
def test_any_lime_ranges_are_survived(ranges: list[tuple[int, int, int]]) -> None:
    use(
        b"".join(
            LIME.pack(0x4C694D45, version, first, first + size - 1 if first + size else 0)
            + page("a", 16)[:size]
            for first, size, version in ranges
        )
    )


@given(
    st.binary(max_size=300), st.sampled_from([b"\x7fELF\x02\x01\x01", b"EMiL\1\0\0\0", b"KDUMP   "])
)
def test_noise_behind_a_magic_is_survived(noise: bytes, magic: bytes) -> None:
    use(magic + noise)
