"""The Debian archive is found from the host's own apt configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvisor.errors import HostError
from dvisor.images import mirror
from dvisor.images.mirror import AptTarget, debian_mirror, main_archive, parse_targets

MAIN = AptTarget("http://a.example/debian/", "Debian", "Debian")
SECURITY = AptTarget("http://a.example/debian-security/", "Debian", "Debian-Security")
THIRD_PARTY = AptTarget("http://b.example/node/", "Node Source", "Node Source")
UBUNTU = AptTarget("http://c.example/ubuntu/", "Ubuntu", "Ubuntu")


def fake_apt(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    for name in ("apt-get", "apt-config"):
        (directory / name).write_text(f"#!/bin/sh\n{body}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    monkeypatch.delenv(mirror.OVERRIDE, raising=False)


def test_main_archive_is_chosen_over_security_and_third_parties() -> None:
    assert main_archive([SECURITY, THIRD_PARTY, MAIN]) == MAIN.uri


def test_backports_alone_name_the_archive_too() -> None:
    backports = AptTarget("http://a.example/debian/", "Debian", "Debian Backports")
    assert main_archive([SECURITY, backports]) == backports.uri


def test_installation_medium_is_no_archive() -> None:
    assert main_archive([AptTarget("cdrom://disc/", "Debian", "Debian"), MAIN]) == MAIN.uri


def test_before_the_first_update_the_address_decides() -> None:
    unknown = [AptTarget(uri, "", "") for uri in (SECURITY.uri, "http://x.example/y/", MAIN.uri)]
    assert main_archive(unknown) == MAIN.uri


def test_ubuntu_host_has_no_debian_archive() -> None:
    assert main_archive([UBUNTU]) is None


def test_targets_are_read_from_lines_of_three_fields() -> None:
    text = "http://a/debian/\tDebian\tDebian\nnot a target\nhttp://b/\t\t\n"
    assert parse_targets(text) == [
        AptTarget("http://a/debian/", "Debian", "Debian"),
        AptTarget("http://b/", "", ""),
    ]


def test_host_without_debian_is_told_how_to_name_a_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apt(tmp_path, monkeypatch, r"printf 'http://c.example/ubuntu/\tUbuntu\tUbuntu\n'")
    with pytest.raises(HostError, match=mirror.OVERRIDE):
        debian_mirror()


def test_failing_apt_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path, monkeypatch, "echo 'E: sources are broken' >&2; exit 100")
    with pytest.raises(HostError, match="E: sources are broken"):
        debian_mirror()


def test_environment_overrides_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mirror.OVERRIDE, "http://mine.example/debian")
    assert debian_mirror() == "http://mine.example/debian/"


def test_proxy_of_the_host_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'Acquire::http::Proxy "http://p:3142";\nAcquire::https::Proxy "";'
    fake_apt(tmp_path, monkeypatch, f"echo '{said}'")
    assert mirror.proxy_options() == ['Acquire::http::Proxy "http://p:3142";']
