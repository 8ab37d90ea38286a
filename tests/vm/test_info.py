"""The summary, symbols, structures and raw memory against the guest's own word."""

from __future__ import annotations

import pytest

from dvisor.errors import GuestMemoryError, NotFoundError
from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm


def test_the_summary_is_what_the_guest_itself_says(matrix_guest: RunningGuest) -> None:
    shell, info = matrix_guest.shell, matrix_guest.guest.info()
    assert info.problems == []
    assert f"Linux version {info.release} {info.version}" == shell("cat /proc/version").strip()
    assert info.hostname == shell("hostname").strip()
    assert info.command_line.strip() == shell("cat /proc/cmdline").strip()
    assert len(info.cpus_online) == int(shell("nproc --all"))
    assert info.managed_bytes // 1024 == int(shell("grep MemTotal /proc/meminfo").split()[1])
    assert info.modules == int(shell("wc -l </proc/modules"))
    mitigated = "PTI" in shell("cat /sys/devices/system/cpu/vulnerabilities/meltdown")
    assert info.page_table_isolation == mitigated
    assert bool(info.tainted) == (int(shell("cat /proc/sys/kernel/tainted")) != 0)
    assert all(way.agrees for way in info.evidence)
    assert {way.way for way in info.evidence} == {"registers", "kallsyms", "vmcoreinfo"}


def test_the_build_id_is_that_of_the_notes(matrix_guest: RunningGuest) -> None:
    notes = matrix_guest.shell('od -An -v -tx1 /sys/kernel/notes | tr -d " \\n"')
    build_id = matrix_guest.guest.info().build_id
    assert len(build_id) == 40
    assert build_id in notes
    assert build_id == matrix_guest.guest.kernel.vmcoreinfo["BUILD-ID"]


def test_clocks_lie_between_two_looks_inside(matrix_guest: RunningGuest) -> None:
    def inside() -> tuple[float, float]:
        text = matrix_guest.python(
            "import time; print(time.clock_gettime(7), time.time())"  # CLOCK_BOOTTIME
        )
        boot, real = map(float, text.split())
        return boot, real

    before = inside()
    info = matrix_guest.guest.info()
    after = inside()
    tick_s = 5  # an idle guest's tick is off: its memory may be that old
    assert before[0] - tick_s <= info.uptime_ns / 1e9 <= after[0]
    assert before[1] - tick_s <= info.realtime_ns / 1e9 <= after[1]


def test_symbols_are_where_kallsyms_says(matrix_guest: RunningGuest) -> None:
    guest = matrix_guest.guest
    inside = matrix_guest.shell(
        "grep -E ' (tcp_v4_rcv|init_task|virtnet_probe)( |\t|$)' /proc/kallsyms"
    )
    for line in inside.splitlines():
        address, letter, name, *module = line.split()
        found = [s for s in guest.symbols(name) if s.address == int(address, 16)]
        assert found, line
        assert found[0].module == (module[0].strip("[]") if module else "")
        assert found[0].type.lower() == letter.lower()
        inner = guest.symbols(f"{int(address, 16) + 3:#x}")[0]
        assert (inner.name, inner.offset) == (name, 3)
    assert len(inside.splitlines()) == 3
    names = {symbol.name for symbol in guest.symbols("tcp_v4_*")}
    assert {"tcp_v4_rcv", "tcp_v4_connect"} <= names
    with pytest.raises(NotFoundError):
        guest.symbols("no_such_symbol")


def test_a_structure_has_its_members_where_views_read_them(matrix_guest: RunningGuest) -> None:
    kernel = matrix_guest.guest.kernel
    found = matrix_guest.guest.structure("task_struct")
    assert found.size_bytes == kernel.size_of("task_struct")
    offsets = {member.declaration: member.offset for member in found.members}
    assert offsets["char comm[16]"] == kernel.offset("task_struct", "comm")
    assert offsets["struct mm_struct *mm"] == kernel.offset("task_struct", "mm")
    module = matrix_guest.guest.structure("struct virtnet_info")  # of a module
    assert module.size_bytes > 0


def test_memory_is_read_by_any_kind_of_address(matrix_guest: RunningGuest) -> None:
    guest = matrix_guest.guest
    banner = guest.read("linux_banner", 14)
    assert banner.data == b"Linux version "
    physical = guest.kernel.memory.physical(banner.address)
    assert guest.read(physical, 14, physical=True).data == banner.data
    assert guest.read("linux_banner + 6", 7).data == b"version"
    program = next(task for task in guest.tasks() if task.comm == "sleeper-1")
    maps = matrix_guest.shell(f"grep -m1 r-xp /proc/{program.pid}/maps").split("-")[0]
    head = guest.read(int(maps, 16), 16, pid=program.pid).data
    offset = int(maps, 16)
    inside = matrix_guest.python(
        f'm = open("/proc/{program.pid}/mem", "rb"); m.seek({offset}); print(m.read(16).hex())'
    )
    assert head.hex() == inside.strip()
    with pytest.raises(GuestMemoryError, match="0x10"):
        guest.read(0x10, 8)
    with pytest.raises(NotFoundError, match="kernel thread"):
        guest.read(0x1000, 8, pid=2)
