"""The kernel log, out of printk's ring buffer.

Source: kernel/printk/printk_ringbuffer.{h,c}. A ring of descriptors (id and state, place of the
text), a parallel ring of infos, and a ring of text. Ids and text positions only grow; their low
bits say where in the ring they are. A descriptor can be recycled while we read: as the kernel's own
readers do, its state is read again after the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from dvisor.addresses import MASK64
from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.listing import Listing

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news"),
    *("uucp", "cron", "authpriv", "ftp"),
)
"""Names of the syslog facilities that user space may have used by writing to /dev/kmsg."""

_MAX_COUNT_BITS = 26  # descriptors: log_buf_len is at most 2 GiB, one for 32 bytes (printk.c)
_MAX_SIZE_BITS = 31  # LOG_BUF_LEN_MAX
MAX_RECORDS = 1 << 20
MAX_TEXT_BYTES = 64 << 20
"""Of one answer: what is older is left out. A log as large needs log_buf_len=32M or more."""

_STATE_SHIFT = 62
_ID_MASK = (1 << _STATE_SHIFT) - 1
_FINALIZED = 2
_EMPTY_LINE = 3  # EMPTY_LINE_LPOS, earlier called NO_LPOS
_CPU_CALLER = 0x8000_0000
_TASK_CALLER_MASK = 0x7FFF_FFFF


class LogRecord(msgspec.Struct, frozen=True):
    """One message of the kernel log."""

    seq: int
    """Counts from 0 at boot; a gap means that the messages in between were overwritten."""
    time_ns: int
    """Nanoseconds by the kernel's local_clock(): about the time since boot, without suspends."""
    level: int
    """0 (emergency) to 7 (debug); names in ``LEVELS``."""
    facility: int
    """Syslog facility: 0 is the kernel, others came from user space; names in ``FACILITIES``."""
    caller: str
    """``T`` and the thread id, or ``C`` and the CPU (in an interrupt), as the kernel prints it."""
    text: str
    """May have several lines, and any characters that the guest put in."""
    subsystem: str
    """Of the device that the message is about, or empty."""
    device: str


def read_log(kernel: Kernel, since: int = 0) -> Listing[LogRecord]:
    """All messages that are still in the buffer, oldest first; only those with ``seq`` >= since."""
    listing: Listing[LogRecord] = Listing()
    ring, left = _Ring(kernel), MAX_TEXT_BYTES
    for identity in ring.newest_first():
        try:
            record = ring.record(identity)
        except GuestDataError as error:
            listing.problem(f"a message cannot be read: {error}")
            continue
        if record is None:
            continue
        left -= len(record.text)
        if record.seq < since:
            break
        if left < 0 or len(listing) >= MAX_RECORDS:
            listing.problem("the log is longer than can be: its older messages are left out")
            break
        listing.append(record)
    listing.reverse()
    return listing


class _Ring:
    """The printk_ringbuffer in use (``prb``): a static one until log_buf_len= gave a larger."""

    def __init__(self, kernel: Kernel) -> None:
        self.memory = kernel.memory
        self.size = kernel.size_of("prb_desc")
        self.info_size = kernel.size_of("printk_info")
        self.desc = kernel.record(
            "prb_desc", "state_var.counter", "text_blk_lpos.begin", "text_blk_lpos.next"
        )
        self.info = kernel.record(
            "printk_info",
            "seq",
            "ts_nsec",
            "text_len",
            "facility",
            "level",
            "caller_id",
            "dev_info.subsystem[]",
            "dev_info.device[]",
        )
        ring = kernel.record(
            "printk_ringbuffer",
            "desc_ring.count_bits",
            "desc_ring.descs",
            "desc_ring.infos",
            "desc_ring.head_id.counter",
            "desc_ring.tail_id.counter",
            "text_data_ring.size_bits",
            "text_data_ring.data",
        )
        count_bits, self.descs, self.infos, head, tail, self.bits, self.data = ring.read(
            self.memory.u64(kernel.symbol("prb"))
        )
        if not 1 <= count_bits <= _MAX_COUNT_BITS or not 4 <= self.bits <= _MAX_SIZE_BITS:
            raise GuestDataError(
                f"the kernel log cannot have 2^{count_bits} records in 2^{self.bits} bytes"
            )
        self.count = 1 << count_bits
        self.head, self.tail = head & _ID_MASK, tail & _ID_MASK

    def newest_first(self) -> Iterator[int]:
        """Ids of the descriptors that may hold a message."""
        used = ((self.head - self.tail) & _ID_MASK) + 1
        for back in range(min(used, self.count, MAX_RECORDS)):
            yield (self.head - back) & _ID_MASK

    def record(self, identity: int) -> LogRecord | None:
        """The message with this id; None where there is none (yet, or any more)."""
        slot = identity & (self.count - 1)
        at = self.descs + slot * self.size
        wanted = _FINALIZED << _STATE_SHIFT | identity
        state, begin, end = self.desc.read(at)
        if state & MASK64 != wanted:
            return None
        info = self.info.read(self.infos + slot * self.info_size)
        try:
            text = self._text(identity, begin, end, info[2])
        except GuestDataError:
            if self.desc.read(at)[0] & MASK64 == wanted:
                raise
            return None
        if text is None or self.desc.read(at)[0] & MASK64 != wanted:
            return None
        return _record(info, text)

    def _text(self, identity: int, begin: int, end: int, length: int) -> bytes | None:
        """None where the text was overwritten or never fitted."""
        if begin & 1:  # no real position is odd
            return b"" if begin == end == _EMPTY_LINE else None
        at, size = block(begin, end, self.bits)
        raw = self.memory.read(self.data + at, 8 + min(length, size - 8))
        (owner,) = struct.unpack_from("<Q", raw)
        if owner != identity:
            raise GuestDataError(f"the text at {at:#x} of the ring belongs to another message")
        return raw[8:]


def block(begin: int, end: int, bits: int) -> tuple[int, int]:
    """(offset in the text ring, size in bytes) of the data block [begin, end), its id included.

    One that would run over the ring's end is stored whole at its start (get_data()).
    """
    ring = 1 << bits
    last = (end - 1) & MASK64
    if begin >> bits == last >> bits:
        at, size = begin % ring, end - begin
    elif ((begin + ring) & MASK64) >> bits == last >> bits:
        at, size = 0, last % ring + 1
    else:
        raise GuestDataError(f"no message can stand at {begin:#x} to {end:#x}")
    size &= MASK64
    if begin % 8 or end % 8 or not 8 < size <= ring:
        raise GuestDataError(f"no message can stand at {begin:#x} to {end:#x}")
    return at, size


def _record(info: tuple[int, int, int, int, int, int, bytes, bytes], text: bytes) -> LogRecord:
    seq, time_ns, _, facility, level, caller, subsystem, device = info
    return LogRecord(
        seq,
        time_ns,
        level,
        facility,
        f"C{caller & _TASK_CALLER_MASK}" if caller & _CPU_CALLER else f"T{caller}",
        text.decode("utf-8", "backslashreplace"),
        _name(subsystem),
        _name(device),
    )


def _name(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")
