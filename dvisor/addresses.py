"""Typed guest addresses: a physical one must never be used where a virtual one is meant.

Both are plain ints at run time (``NewType``), so that the type checker is the only one who pays.
"""

from __future__ import annotations

from typing import NewType

GuestPhysical = NewType("GuestPhysical", int)
"""A guest physical address (gpa)."""

GuestVirtual = NewType("GuestVirtual", int)
"""A guest virtual address (gva), canonical, as an unsigned 64-bit number."""

PAGE_SIZE = 4096
MASK64 = (1 << 64) - 1
