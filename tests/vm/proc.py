"""What a guest's own /proc says, for comparison with the views."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import zlib
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from tests.vm.guests import RunningGuest

_HEAD = """
import base64, json, os, re, zlib
def text(path):
    return open(path, "rb").read().decode("utf-8", "backslashreplace")
def link(path):
    return os.fsencode(os.readlink(path)).decode("utf-8", "backslashreplace")
def processes():
    return [p for p in os.listdir("/proc") if p.isdecimal() and int(p) != os.getpid()]
with open("/proc/sys/kernel/printk", "w") as file:
    file.write("1")
found = {}
"""
_TAIL = """
print(base64.b85encode(zlib.compress(json.dumps(found).encode())).decode())
"""


def ask(guest: RunningGuest, code: str) -> Any:
    """Run ``code`` in the guest and return what it puts into the dictionary ``found``.

    It has text(path), link(path) and processes() (all but itself). It may not hold single quotes.
    The answer is packed, for a serial line is slow; and the kernel is kept from writing into it.
    """
    printed = guest.python(_HEAD + code + _TAIL, timeout_s=120)
    return json.loads(zlib.decompress(base64.b85decode(printed.strip())))


@contextlib.contextmanager
def started(guest: RunningGuest, code: str, arguments: str = "") -> Iterator[int]:
    """The pid of a Python program in the guest that has printed ``made`` and is ended after."""
    printed = guest.shell(
        f"python3 -c '{code}' {arguments} >/tmp/made 2>&1 & echo pid=$!; "
        "until grep -q made /tmp/made; do sleep 0.1; done"
    )
    found = re.search(r"pid=(\d+)", printed)
    assert found
    try:
        yield int(found[1])
    finally:
        guest.shell(f"kill {found[1]}; wait {found[1]}; rm /tmp/made")


def assert_between(
    before: Mapping[Any, Hashable], seen: Mapping[Any, Hashable], after: Mapping[Any, Hashable]
) -> None:
    """What was there before and after must be seen, and nothing else than what was there once."""
    lasting = before.keys() & after.keys()
    assert lasting <= seen.keys(), lasting - seen.keys()
    assert seen.keys() <= before.keys() | after.keys(), seen.keys() - before.keys() - after.keys()
    differing = {
        key: (value, before.get(key), after.get(key))
        for key, value in seen.items()
        if value not in (before.get(key), after.get(key))
    }
    assert not differing, differing


def unescaped(field: str) -> str:
    """A field of a /proc file with its octal escapes undone."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
