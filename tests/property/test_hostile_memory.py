"""A real guest whose memory is damaged anywhere: every view answers or says why it cannot.

The views are tried on copies of one frozen guest (``tests.frozen``). Damage is aimed at what they
read, since elsewhere it would not be noticed.
"""

from __future__ import annotations

import functools
import random
import struct
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, given, note, settings
from hypothesis import strategies as st

from dvisor.addresses import MASK64, PAGE_SIZE, GuestPhysical
from dvisor.errors import DvisorError, GuestMemoryError, NotFoundError
from dvisor.guest import cache
from dvisor.guest.guest import Guest
from dvisor.guest.kallsyms import SIGNATURE
from dvisor.guest.tasks import Task
from tests.frozen import FrozenEngine, footprint, frozen, survey, views

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

KERNELS = [
    "6.12",
    *(pytest.param(kernel, marks=pytest.mark.full) for kernel in ("6.1", "7.2", "rt")),
]
on_every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def examples(count: int) -> settings:
    """So many of one kernel; an example takes about 0.1 s, one that damages tables 1 s."""
    return settings(max_examples=count, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("symbols")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "directory", lambda: folder)
        yield


class Sound:
    """The undamaged guest, to aim by and to compare with."""

    def __init__(self, kernel: str) -> None:
        self.frozen = frozen(kernel)
        self.engine = self.frozen.engine()
        self.guest = Guest(self.engine)
        self.kernel = self.guest.kernel
        self.tasks: list[Task] = self.guest.tasks()
        self.words = footprint(self.guest)
        self.ram_end = self.engine.ram()[-1].end
        self.direct_map = self.kernel.memory.linear[0].virtual

    def victim(self) -> Victim:
        return Victim(self, self.frozen.engine())

    def member(self, structure: str, path: str, address: int) -> int:
        return address + self.kernel.offset(structure, path)


class Victim:
    """A copy of the frozen guest that gets damaged, then looked at."""

    def __init__(self, sound: Sound, engine: FrozenEngine) -> None:
        self.sound = sound
        self.engine = engine

    def poke(self, address: int, data: bytes) -> None:
        """Overwrite bytes at a kernel address, or a physical one."""
        if currently_in_test_context():
            note(f"{address:#x} := {data[:16].hex()}{'...' if len(data) > 16 else ''}")
        physical = address
        if address >= self.sound.ram_end:
            physical = self.sound.kernel.memory.physical(address)
        self.engine.write(physical, data)

    def poke_u64(self, address: int, value: int) -> None:
        self.poke(address, struct.pack("<Q", value & MASK64))

    def look(self, tables: bool = False) -> dict[str, Any]:
        """All views' answers, or the DvisorErrors that they ended with."""
        try:
            return survey(Guest(self.engine), views(tables))
        finally:
            self.engine.close()


@functools.cache
def sound(kernel: str) -> Sound:
    return Sound(kernel)


def pointers(sound: Sound) -> st.SearchStrategy[int]:
    """What a hostile guest might put where a pointer belongs."""
    base, end = sound.direct_map, sound.ram_end
    addresses = [task.address for task in sound.tasks]
    link = sound.kernel.offset("task_struct", "tasks")
    return st.one_of(
        st.sampled_from(addresses),
        st.sampled_from(addresses).map(lambda address: address + link),
        st.sampled_from([0, 1, 2, 8, 4096, MASK64, MASK64 - 7, 1 << 63, 1 << 47, 1 << 56]),
        st.sampled_from([0xDEAD_0000_0000_0100, 0xDEAD_0000_0000_0122]),  # linux/poison.h
        st.sampled_from([base, base + 0xA0000, base + 0xFEE0_0000, base + (1 << 45)]),
        st.integers(1, 64).map(lambda back: base + end - back),
        st.integers(0, end).map(lambda at: base + at),
        st.integers(0, MASK64),
        st.sampled_from(sound.words),
    )


MEMBERS = [
    "tasks.next",
    "tasks.prev",
    "cred",
    "real_parent",
    "mm",
    "signal",
    "files",
    "fs",
    "nsproxy",
    "stack",
    "pid",
    "tgid",
    "comm",
    "flags",
    "thread_node.next",
    "thread_pid",
    "group_leader",
    "cgroups",
    "on_cpu",
    "se.group_node.next",
]


def chosen_members(data: st.DataObject, target: Sound, names: list[str]) -> list[int]:
    """Addresses of members of some tasks."""
    tasks = data.draw(st.lists(st.sampled_from(target.tasks), min_size=1, max_size=4))
    return [
        target.member("task_struct", data.draw(st.sampled_from(names)), task.address)
        for task in tasks
    ]


@on_every_kernel
@examples(40)
@given(data=st.data())
def test_damaged_members_of_tasks_end_in_answers_or_errors(
    kernel: str, data: st.DataObject
) -> None:
    target = sound(kernel)
    victim = target.victim()
    for address in chosen_members(data, target, MEMBERS):
        victim.poke_u64(address, data.draw(pointers(target)))
    victim.look()


@on_every_kernel
@examples(40)
@given(data=st.data())
def test_a_damaged_task_list_is_marked_partial(kernel: str, data: st.DataObject) -> None:
    target = sound(kernel)
    victim = target.victim()
    for address in chosen_members(data, target, ["tasks.next", "tasks.prev"]):
        victim.poke_u64(address, data.draw(pointers(target)))
    answer = victim.look()["tasks"]
    if isinstance(answer, DvisorError) or not answer.complete:
        event("marked")
        return
    assert answer == target.tasks


@on_every_kernel
@pytest.mark.parametrize("member", ["pid", "tgid"])
def test_a_process_that_claims_another_id_is_shown_and_marked(kernel: str, member: str) -> None:
    target = sound(kernel)
    victim = target.victim()
    task = target.tasks[5]
    victim.poke(target.member("task_struct", member, task.address), struct.pack("<I", 4242))
    answer = victim.look()["tasks"]
    assert [found.address for found in answer] == [found.address for found in target.tasks]
    assert not answer.complete


@on_every_kernel
@examples(100)
@given(data=st.data())
def test_random_words_end_in_answers_or_errors(kernel: str, data: st.DataObject) -> None:
    target = sound(kernel)
    victim = target.victim()
    for address in data.draw(st.lists(st.sampled_from(target.words), min_size=1, max_size=8)):
        victim.poke_u64(address, data.draw(pointers(target)))
    victim.look()


@on_every_kernel
@examples(40)
@given(data=st.data())
def test_random_words_by_the_hundred_end_in_answers_or_errors(
    kernel: str, data: st.DataObject
) -> None:
    target = sound(kernel)
    victim = target.victim()
    chance = random.Random(data.draw(st.integers(0, MASK64)))
    values = [data.draw(pointers(target)) for _ in range(4)]
    for address in chance.sample(target.words, min(200, len(target.words))):
        victim.poke_u64(address, chance.choice(values))
    victim.look()


def page_contents(target: Sound) -> st.SearchStrategy[bytes]:
    """What may stand in a whole page."""
    one = st.sampled_from([bytes(PAGE_SIZE), b"\xff" * PAGE_SIZE, b"/" * PAGE_SIZE])
    noise = st.integers(0, MASK64).map(lambda seed: random.Random(seed).randbytes(PAGE_SIZE))
    same = pointers(target).map(lambda word: struct.pack("<Q", word) * (PAGE_SIZE // 8))
    return st.one_of(one, noise, same)


@on_every_kernel
@examples(60)
@given(data=st.data())
def test_whole_pages_of_anything_end_in_answers_or_errors(kernel: str, data: st.DataObject) -> None:
    target = sound(kernel)
    victim = target.victim()
    for address in data.draw(st.lists(st.sampled_from(target.words), min_size=1, max_size=4)):
        victim.poke(address & -PAGE_SIZE, data.draw(page_contents(target)))
    victim.look()


VARIABLES = [
    ("page_offset_base", 8),
    ("vmalloc_base", 8),
    ("vmemmap_base", 8),
    ("phys_base", 8),
    ("vmcoreinfo_data", 8),
    ("nr_cpu_ids", 4),
    ("__per_cpu_offset", 8),
    ("__cpu_online_mask", 8),
    ("system_state", 4),
    ("init_task", 8),
    ("linux_banner", 8),
    ("init_top_pgt", 8),
    ("modules", 8),
    ("prb", 8),
    ("net_namespace_list", 8),
    ("init_nsproxy", 8),
    ("pid_hash", 8),
    ("clearcpuid", 4),
]


@on_every_kernel
@examples(40)
@given(data=st.data())
def test_damaged_variables_end_in_answers_or_errors(kernel: str, data: st.DataObject) -> None:
    target = sound(kernel)
    victim = target.victim()
    there = [(name, size) for name, size in VARIABLES if target.kernel.find_symbol(name)]
    for name, size in data.draw(st.lists(st.sampled_from(there), min_size=1, max_size=3)):
        value = struct.pack("<Q", data.draw(pointers(target)))
        victim.poke(target.kernel.symbol(name), value[:size])
    victim.look()


def page_tables(target: Sound) -> list[int]:
    """Physical addresses of entries that translate what the views read, and the image."""
    kernel, found = target.kernel, set[int]()

    def watched(gpa: GuestPhysical, size: int) -> bytes:
        found.add(gpa)
        return target.engine.read(gpa, size)

    from dvisor.guest.paging import translate

    text = kernel.image.virtual
    for address in [*target.words[:: len(target.words) // 500 + 1], text, target.direct_map]:
        for root in {kernel.memory.root, *(cpu.cr3 & ~0xFFF for cpu in target.engine.registers())}:
            try:
                translate(watched, root, kernel.levels, address)
            except GuestMemoryError:
                continue
    return sorted(found)


def entries(target: Sound) -> st.SearchStrategy[int]:
    """Page-table entries: pointing back to tables, out of RAM, huge, or noise."""
    tables = st.sampled_from(page_tables(target)).map(lambda gpa: gpa & -PAGE_SIZE)
    flags = st.sampled_from([0, 1, 0x63, 0xE3, 0x8000_0000_0000_0063, 0x67])
    address = st.one_of(tables, st.sampled_from([0, 0xFEE0_0000, 0xF_FFFF_FFFF_F000, 0xA0000]))
    built = st.tuples(address, flags).map(lambda both: both[0] | both[1])
    return st.one_of(built, st.integers(0, MASK64))


@on_every_kernel
@examples(60)
@given(data=st.data())
def test_damaged_page_tables_end_in_answers_or_errors(kernel: str, data: st.DataObject) -> None:
    target = sound(kernel)
    victim = target.victim()
    chosen = st.lists(st.sampled_from(page_tables(target)), min_size=1, max_size=4)
    for gpa in data.draw(chosen):
        victim.poke_u64(gpa, data.draw(entries(target)))
    victim.look()


def btf_of(target: Sound) -> tuple[int, int]:
    kernel = target.kernel
    return kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")


def kallsyms_of(target: Sound) -> tuple[int, int]:
    image, parts = target.kernel.image, target.kernel._source.tables.parts()
    starts, ends = zip(*parts, strict=True)
    return image.address(min(starts) - 8), image.address(max(ends))


def vital_places(target: Sound, part: Callable[[Sound], tuple[int, int]]) -> list[int]:
    """Where in the tables the views look things up: damage elsewhere is rarely felt."""
    start, _ = part(target)
    if part is kallsyms_of:
        image, tables = target.kernel.image, target.kernel._source.tables
        return [start, *map(image.address, (tables.names, tables.markers, tables.tokens))]
    types = target.kernel.types
    names = ("task_struct", "file", "dentry", "mm_struct", "sock", "socket_alloc", "list_head")
    return [start, *(start + 24 + 4 * types._at(types.structure(name))[1] for name in names)]


REPEATS = [1, 1, 1, 8, 512]


def scribble(victim: Victim, data: st.DataObject, part: Callable[[Sound], tuple[int, int]]) -> None:
    """Overwrite some places of a table."""
    start, end = part(victim.sound)
    vital = st.tuples(st.sampled_from(vital_places(victim.sound, part)), st.integers(0, 200))
    places = st.one_of(vital.map(sum), vital.map(sum), st.integers(start, end - 1))
    for _ in range(data.draw(st.integers(1, 12))):
        junk = data.draw(st.binary(min_size=1, max_size=8)) * data.draw(st.sampled_from(REPEATS))
        victim.poke(data.draw(places), junk)


@on_every_kernel
@pytest.mark.parametrize("part", [btf_of, kallsyms_of], ids=["btf", "kallsyms"])
@examples(12)
@given(data=st.data())
def test_damaged_tables_of_types_and_symbols_end_in_answers_or_errors(
    kernel: str, part: Callable[[Sound], tuple[int, int]], data: st.DataObject
) -> None:
    target = sound(kernel)
    victim = target.victim()
    scribble(victim, data, part)
    victim.look(tables=True)


@functools.cache
def members_used(kernel: str) -> list[int]:
    """Addresses of the BTF's entries for the members that the views read: name, type, offset."""
    target = sound(kernel)
    types, start = target.kernel.types, btf_of(target)[0]
    used = {tuple(key.split(".")[:2]) for key in target.kernel._memo.places if "." in key}
    found = []
    for name in sorted({structure for structure, _ in used}):
        try:
            structure = types.structure(name)
        except NotFoundError:
            continue
        first = start + 24 + 4 * (types._at(structure)[1] + 3)
        for i, (member, _) in enumerate(types.members(structure)):
            if (name, member) in used:
                found.append(first + 12 * i)
    assert len(found) > 100
    return found


@on_every_kernel
@examples(20)
@given(data=st.data())
def test_members_of_made_up_types_and_places_end_in_answers_or_errors(
    kernel: str, data: st.DataObject
) -> None:
    target = sound(kernel)
    victim = target.victim()
    last_id = target.kernel.types.end_id
    numbers = st.one_of(st.integers(0, last_id), st.integers(0, 1 << 20), st.integers(0, 2**32 - 1))
    for entry in data.draw(st.lists(st.sampled_from(members_used(kernel)), min_size=1, max_size=5)):
        word = data.draw(st.sampled_from([0, 4, 4, 8]))
        victim.poke(entry + word, struct.pack("<I", data.draw(numbers)))
    victim.look()


@on_every_kernel
@pytest.mark.parametrize("part", [btf_of, kallsyms_of], ids=["btf", "kallsyms"])
def test_tables_that_are_cut_off_end_in_answers_or_errors(
    kernel: str, part: Callable[[Sound], tuple[int, int]]
) -> None:
    target = sound(kernel)
    start, end = part(target)
    for cut in (start + 16, (start + end) // 2, end - PAGE_SIZE):
        victim = target.victim()
        victim.poke(cut, bytes(end - cut))
        victim.look(tables=True)


def long_list(victim: Victim) -> int:
    """Address of the first of 200 000 entries, each linked to the next; the last is far off."""
    start = victim.sound.ram_end - (8 << 20)
    first = victim.sound.direct_map + start
    entries = range(first, first + 16 * 200_000, 16)
    words = array("Q", (word for at in entries for word in (at + 16, at - 16)))
    victim.engine.write(start, words.tobytes())
    return first


ENDLESS = ["tasks.next", "signal", pytest.param("files", marks=pytest.mark.full)]


@on_every_kernel
@pytest.mark.parametrize("member", ENDLESS)
def test_endless_lists_in_all_tasks_end(kernel: str, member: str) -> None:
    target = sound(kernel)
    victim = target.victim()
    first = long_list(victim)
    for task in target.tasks:
        address = target.member("task_struct", member, task.address)
        if member == "signal":
            signal = target.kernel.memory.u64(address)
            address = target.member("signal_struct", "thread_head", signal)
        victim.poke_u64(address, first)
    answers = victim.look()
    damaged = {"tasks.next": "tasks", "signal": "tasks(threads=True)", "files": "files"}[member]
    assert not answers[damaged].complete
    most = target.ram_end // target.kernel.size_of("task_struct")
    assert len(answers["tasks(threads=True)"]) <= most


def without_registers(kernel: str) -> Victim:
    """As a raw file of RAM: the kernel must be found by what RAM holds."""
    target = sound(kernel)
    return Victim(target, target.frozen.engine(registers=False))


def vmcoreinfo(target: Sound) -> bytes:
    kernel = target.kernel
    return kernel.memory.string(kernel.memory.u64(kernel.symbol("vmcoreinfo_data")), 4096)


@on_every_kernel
def test_without_registers_the_same_kernel_is_found(kernel: str) -> None:
    answer = without_registers(kernel).look()["tasks"]
    assert answer == sound(kernel).tasks


numbers = st.one_of(
    st.integers(-(1 << 70), 1 << 70).map(str),
    st.integers(0, MASK64).map(hex),
    st.sampled_from(["", "x", "-", "0x", "9" * 3000, "ffffffff81000000", "\x00", "é"]),
)


@on_every_kernel
@examples(15)
@given(data=st.data())
def test_vmcoreinfo_of_made_up_numbers_is_not_believed(kernel: str, data: st.DataObject) -> None:
    target = sound(kernel)
    victim = without_registers(kernel)
    lines = vmcoreinfo(target).decode().splitlines()
    for i, line in enumerate(lines):
        if line.startswith(("KERNELOFFSET", "NUMBER(phys", "SYMBOL(swapper", "NUMBER(pgtable")):
            name = line.partition("=")[0]
            lines[i] = f"{name}={data.draw(numbers)}" if data.draw(st.booleans()) else line
    raw = "\n".join(lines).encode()[:4095].ljust(4096, b"\0")
    victim.poke(target.kernel.memory.u64(target.kernel.symbol("vmcoreinfo_data")), raw)
    answer = victim.look()["tasks"]
    assert isinstance(answer, DvisorError) or answer == target.tasks


@on_every_kernel
@pytest.mark.parametrize("what", ["notes", "copies", "signatures"])
def test_floods_of_false_kernels_end(kernel: str, what: str) -> None:
    """Pages that look like VMCOREINFO, copies of the true one, signatures of symbol tables."""
    target = sound(kernel)
    victim = without_registers(kernel)
    note = vmcoreinfo(target)
    page = {
        "notes": note.replace(b"KERNELOFFSET=", b"KERNELOFFSET=-"),
        "copies": note,
        "signatures": SIGNATURE * (PAGE_SIZE // len(SIGNATURE)),
    }[what].ljust(PAGE_SIZE, b"\0")[:PAGE_SIZE]
    if what == "signatures":
        start = target.kernel.memory.u64(target.kernel.symbol("vmcoreinfo_data"))
        victim.poke(start, bytes(PAGE_SIZE))
    victim.engine.write(0x1000, page * 128)
    answer = victim.look()["tasks"]
    assert isinstance(answer, DvisorError) or answer == target.tasks


@on_every_kernel
def test_without_damage_the_copy_answers_as_the_original(kernel: str) -> None:
    target = sound(kernel)
    answers = target.victim().look(tables=True)
    assert {name: a for name, a in answers.items() if isinstance(a, DvisorError)} == {}
    assert answers["tasks"] == target.tasks
    assert answers["tasks"].complete
