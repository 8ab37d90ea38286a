"""Paths as text: absolute, without ``.``, ``..`` and double slashes.

No symbolic link is resolved: that would need the guest's file system, which its root controls.
``/a/link/../b`` is therefore ``/a/b`` here though it may be elsewhere for Linux, and a link in the
guest that leads to a proxied path leads to a file of the guest. The proxy resolves the links that
lie among its own files, beneath its own root.
"""

from __future__ import annotations

import re

MAX_PATH = 4096  # PATH_MAX, with the NUL
_OWN_DESCRIPTOR = re.compile(r"/(?:proc/(?:self|thread-self|(\d+))|dev)/fd/(\d{1,10})")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


def normalise(path: str, base: str = "/") -> str:
    """``path`` made absolute from ``base`` and cleaned; ``..`` of the root is the root."""
    parts: list[str] = []
    for part in [*([] if path.startswith("/") else base.split("/")), *path.split("/")]:
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def beneath(root: str, path: str) -> str:
    """Where an absolute, normalised ``path`` is for a process whose root (chroot) is ``root``."""
    return path if root == "/" else normalise(root + path)


def own_descriptor(path: str, pid: int | None = None) -> int | None:
    """The descriptor that a normalised path names (``/proc/self/fd/3``, ``/dev/stdin``), or None.

    ``pid``: that of the process, so that it is known by its number in /proc as well.
    """
    if path in _STANDARD:
        return _STANDARD[path]
    match = _OWN_DESCRIPTOR.fullmatch(path)
    if not match or (match[1] and (pid is None or int(match[1]) != pid)):
        return None
    return int(match[2])
