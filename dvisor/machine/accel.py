"""Which accelerator a VM gets: KVM only where it has been seen to run this very kernel."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from dvisor.errors import HostError, UnsupportedError
from dvisor.folders import cache_directory
from dvisor.machine.deathsig import die_with_this_process
from dvisor.machine.spec import LaunchSpec

PROBE_TIMEOUT_S = 10.0
_PROBE_OUTPUT_LIMIT = 1 << 20
_KVM = Path("/dev/kvm")

# A kernel without a root file system says so after all of its own start-up has run:
# mount_root_generic() in init/do_mounts.c.
_EVIDENCE = (b"VFS: Unable to mount root fs", b"VFS: Cannot open root device")
# QEMU's accel/kvm/kvm-all.c, after which it waits for ever.
_REFUSALS = (b"KVM internal error", b"kvm run failed")


class ProbeResult(msgspec.Struct, frozen=True):
    """Whether KVM ran the kernel, and what was seen."""

    usable: bool
    seen: str


def choose(spec: LaunchSpec, report: Callable[[str], None]) -> Literal["kvm", "tcg"]:
    """What ``spec.accel`` comes to on this host; says why when "auto" comes to TCG.

    HostError when KVM was asked for and cannot be opened, UnsupportedError when traps were too.
    """
    if spec.accel == "tcg":
        return "tcg"
    if spec.traps:
        if spec.accel == "kvm":
            raise UnsupportedError('traps = true needs TCG: use accel = "auto" or "tcg"')
        report("TCG, because traps need it")
        return "tcg"
    missing = _why_no_device()
    if spec.accel == "kvm":
        if missing:
            raise HostError(f'accel = "kvm", but {missing}; use "auto" or "tcg"')
        return "kvm"
    if missing:
        report(f"TCG, because {missing}")
        return "tcg"
    result = _remembered(spec, report)
    if result.usable:
        return "kvm"
    report(f"TCG, because KVM here does not run this kernel: {result.seen}")
    return "tcg"


def _why_no_device() -> str:
    if not _KVM.exists():
        return f"there is no {_KVM}"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return f"you may not open {_KVM} (are you in the group kvm?)"
    return ""


def _remembered(spec: LaunchSpec, report: Callable[[str], None]) -> ProbeResult:
    path = cache_directory() / f"kvm-{_key(spec)}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProbeResult)
    except (OSError, msgspec.MsgspecError):
        report("trying whether KVM can run this kernel (once after each boot of this host)")
    result = probe(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(msgspec.json.encode(result))
    partial.replace(path)
    return result


def _key(spec: LaunchSpec) -> str:
    """One for each boot of the host, QEMU build and kernel."""
    digest = hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    for argument in spec.qemu_argv_prefix:
        digest.update(argument.encode() + b"\0")
        try:
            seen = Path(argument).stat()
        except OSError:
            continue
        digest.update(f"{seen.st_ino} {seen.st_size} {seen.st_mtime_ns}".encode())
    with Path(spec.vmlinuz).open("rb") as kernel:
        digest.update(hashlib.file_digest(kernel, "sha256").digest())
    return digest.hexdigest()[:32]


def probe(spec: LaunchSpec, timeout_s: float = PROBE_TIMEOUT_S) -> ProbeResult:
    """Boot the kernel of ``spec`` under KVM, without a root, as far as it can come."""
    argv = [*spec.qemu_argv_prefix, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-machine", "q35,accel=kvm", "-cpu", spec.cpu, "-m", "256M", "-no-reboot"]
    argv += ["-kernel", spec.vmlinuz, "-append", "console=ttyS0 panic=-1", "-serial", "stdio"]
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_this_process(),  # noqa: PLW1509 - it only calls prctl
        )
    except OSError as error:
        raise HostError(f"cannot run QEMU ({argv[0]}): {error.strerror}") from error
    with process:
        try:
            output, how = _read_until_mark(process, timeout_s)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    if any(evidence in output for evidence in _EVIDENCE):
        return ProbeResult(True, "it booted")
    return ProbeResult(False, f"{how}, {_telling_line(output)}")


def _read_until_mark(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, str]:
    """What the guest and QEMU said, and what ended the reading."""
    assert process.stdout is not None
    stdout, give_up = process.stdout.fileno(), time.monotonic() + timeout_s
    output = b""
    while not any(mark in output for mark in _EVIDENCE + _REFUSALS):
        left_s = give_up - time.monotonic()
        if left_s <= 0 or not select.select([stdout], [], [], left_s)[0]:
            return output, f"no sign of a boot within {timeout_s:g} s"
        data = os.read(stdout, 64 << 10)
        if not data or len(output) > _PROBE_OUTPUT_LIMIT:
            return output, "QEMU ended"
        output += data
    return output, "QEMU gave up"


def _telling_line(output: bytes) -> str:
    """The line that refuses, else the last one."""
    lines = [line.strip() for line in output.split(b"\n") if line.strip()]
    refusing = [line for line in lines if any(mark in line for mark in _REFUSALS)]
    for line in (*refusing[:1], *lines[-1:]):
        return f"saying {line[-160:].decode(errors='replace')!r}"
    return "and nothing was printed"
