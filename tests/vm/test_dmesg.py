"""The kernel log from beneath against /dev/kmsg in the guest."""

from __future__ import annotations

import json

import pytest

from dvisor.guest.dmesg import LogRecord
from tests.vm.guests import RunningGuest

pytestmark = pytest.mark.vm

_KMSG = """
import json, os
log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
rows = []
while True:
    try:
        head, _, body = os.read(log, 65536).partition(b";")
    except BlockingIOError:
        break
    prefix, seq, time_us = head.split(b",")[:3]
    rows.append([int(seq), int(prefix), int(time_us), body.splitlines()[0].decode()])
print(json.dumps(rows))
"""


def as_kmsg(record: LogRecord) -> list[object]:
    """What devkmsg_read() makes of it (msg_print_ext_body())."""
    raw = record.text.encode()
    text = "".join(chr(c) if 32 <= c < 127 and c != 92 else f"\\x{c:02x}" for c in raw)
    return [record.seq, record.facility << 3 | record.level, record.time_ns // 1000, text]


def test_every_message_is_as_the_guest_itself_reads_it(matrix_guest: RunningGuest) -> None:
    matrix_guest.shell("echo '<12>from user space: tab\there' >/dev/kmsg")
    before = json.loads(matrix_guest.python(_KMSG))
    listing = matrix_guest.guest.dmesg()
    after = json.loads(matrix_guest.python(_KMSG))
    seen = [as_kmsg(record) for record in listing]
    assert listing.complete, listing.problems
    assert len(before) > 100
    assert seen[: len(before)] == before
    assert seen == after[: len(seen)]
    assert any(record.facility == 1 and "tab\there" in record.text for record in listing)


def test_only_what_came_since(matrix_guest: RunningGuest) -> None:
    last = matrix_guest.guest.dmesg()[-1].seq
    matrix_guest.shell("echo something new >/dev/kmsg")
    (record,) = matrix_guest.guest.dmesg(since=last + 1)
    assert record.text == "something new"
