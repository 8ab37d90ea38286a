"""Whole builds, with fake host programs: what is cached, what a failure says and leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvisor import images
from dvisor.errors import HostError, NotFoundError
from dvisor.images import host
from dvisor.images.manifest import Manifest
from dvisor.images.store import Store
from tests.unit.images_fakes import FakeHost


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    directory = tmp_path / "bin"
    directory.mkdir()
    return FakeHost(directory, monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def left_behind(store: Store) -> list[Path]:
    return list((store.root / "staging").glob("*"))


def test_built_image_is_found_and_listed(fakes: FakeHost, store: Store) -> None:
    built = images.build("debian", store=store)
    assert images.find("debian", store=store) == built
    assert images.ls(store=store) == [built]
    assert built.kernel_release == "9.9-fake"
    assert built.disk is not None
    assert built.disk.read_text() == "ext4\n"
    assert built.vmlinuz.read_text() == "kernel"


def test_image_of_an_initramfs_has_no_disk(fakes: FakeHost, store: Store) -> None:
    built = images.build("tiny", store=store)
    assert built.disk is None
    assert built.initrd is not None


def test_second_build_runs_nothing(fakes: FakeHost, store: Store) -> None:
    first = images.build("debian", store=store)
    calls = fakes.calls
    assert images.build("debian", store=store) == first
    assert fakes.calls == calls


def test_second_kernel_does_not_install_the_userland_again(fakes: FakeHost, store: Store) -> None:
    images.build("debian", "6.12", store=store)
    before = len(fakes.calls)
    images.build("debian", "6.1", store=store)
    assert fakes.calls[before:] == ["--include=linux-image-cloud-amd64"]


def test_kernel_is_found_where_newer_packages_keep_it(fakes: FakeHost, store: Store) -> None:
    fakes.set("FAKE_VMLINUZ", "usr/lib/modules/9.9-fake/vmlinuz")
    assert images.kernel("7.2", store=store).vmlinuz.read_text() == "kernel"


def test_package_without_a_kernel_is_a_host_error(fakes: FakeHost, store: Store) -> None:
    fakes.set("FAKE_VMLINUZ", "boot/elsewhere")
    with pytest.raises(HostError, match=r"boot/vmlinuz-9\.9-fake"):
        images.kernel("6.12", store=store)
    assert left_behind(store) == []


def test_manifest_records_the_versions_that_were_taken(fakes: FakeHost, store: Store) -> None:
    images.build("debian", store=store)
    (kernel,), (userland,) = store.things("kernels"), store.things("userlands")
    assert Manifest.read(kernel).packages == {"some-package": "1:2.3-4"}
    assert Manifest.read(userland).packages == {"base": "1:2.3"}


def test_unreachable_mirror_is_quoted_and_leaves_nothing(fakes: FakeHost, store: Store) -> None:
    fakes.set("FAKE_FAILURE", "E: Could not resolve 'mirror.example'")
    with pytest.raises(HostError, match=r"Could not resolve 'mirror\.example'") as caught:
        images.build("tiny", store=store)
    assert "DVISOR_DEBIAN_MIRROR" in str(caught.value)
    assert left_behind(store) == []
    assert images.ls(store=store) == []


def test_full_disk_is_named_and_leaves_nothing(fakes: FakeHost, store: Store) -> None:
    fakes.set("FAKE_FAILURE", "dpkg-deb: error: No space left on device")
    with pytest.raises(HostError, match="is full"):
        images.build("debian", store=store)
    assert left_behind(store) == []


def test_build_goes_on_after_a_failure(fakes: FakeHost, store: Store) -> None:
    fakes.set("FAKE_FAILURE", "E: flaky")
    with pytest.raises(HostError):
        images.build("tiny", store=store)
    fakes.set("FAKE_FAILURE", "")
    assert images.build("tiny", store=store) == images.find("tiny", store=store)


def test_killed_build_takes_its_mmdebstrap_along(fakes: FakeHost, store: Store) -> None:
    """The fake holds a pipe open for as long as it, or a child of it, lives."""
    alive = store.root.parent / "alive"
    os.mkfifo(alive)
    fakes.put("mmdebstrap", f"#!/bin/sh\nexec 9>{alive}\nwhile :; do sleep 0.05; done\n")
    program = (
        "from pathlib import Path; from dvisor import images\n"
        f"images.build('tiny', store=images.Store(Path({str(store.root)!r})))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as builder:
        try:
            pipe = alive.open()
        finally:
            builder.kill()
    with pipe:
        assert pipe.read() == ""
    assert left_behind(store) != []
    store.sweep()
    assert left_behind(store) == []


def test_unknown_names_are_told_with_what_there_is(store: Store) -> None:
    with pytest.raises(NotFoundError, match="tiny, debian"):
        images.build("windows", store=store)
    with pytest.raises(NotFoundError, match=r"6\.1, 6\.12, 7\.2, rt"):
        images.build("tiny", "2.4", store=store)
    assert not store.root.exists()


def test_image_that_is_not_built_says_how_to_build_it(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"dvisor image build tiny --kernel 6\.1"):
        images.find("tiny", "6.1", store=store)


def test_damaged_image_says_what_to_remove(fakes: FakeHost, store: Store) -> None:
    built = images.build("tiny", store=store)
    (built.vmlinuz.parent / "image.json").write_text("{")
    with pytest.raises(HostError, match="damaged"):
        images.ls(store=store)


def test_missing_program_names_its_package() -> None:
    with pytest.raises(HostError, match="apt-get install some-package"):
        host.program("no-such-program", "some-package")


def test_removal_keeps_the_parts_of_other_images(fakes: FakeHost, store: Store) -> None:
    images.build("debian", "6.12", store=store)
    kept = images.build("tiny", "6.1", store=store)
    assert images.rm("debian", store=store) > 0
    assert images.ls(store=store) == [kept]
    assert [path.name.split("-")[0] for path in store.things("kernels")] == ["6.1"]
    assert store.things("userlands") == []
    assert store.things("roots") != []


def test_removal_of_all_leaves_an_empty_cache(fakes: FakeHost, store: Store) -> None:
    images.build("debian", store=store)
    images.rm(tools=True, store=store)
    assert [store.things(kind) for kind in ("images", "kernels", "userlands", "roots")] == [[]] * 4


def test_removal_of_what_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError):
        images.rm("tiny", store=store)


def test_new_enough_system_qemu_is_preferred(fakes: FakeHost, store: Store) -> None:
    fakes.put("qemu-system-x86_64", "#!/bin/sh\necho QEMU emulator version 12.0.1\n")
    found = images.qemu_binary(store=store)
    assert (found.version, found.root) == ((12, 0, 1), None)
    assert fakes.calls == []


@pytest.mark.parametrize("said", ["QEMU emulator version 7.2.0", "Segmentation fault", ""])
def test_old_or_broken_system_qemu_is_passed_over(fakes: FakeHost, store: Store, said: str) -> None:
    fakes.put("qemu-system-x86_64", f"#!/bin/sh\necho {said}\n")
    found = images.qemu_binary(store=store)
    assert found.version == (11, 1, 3)
    assert found.root is not None
    assert found.path.is_relative_to(found.root)


def test_private_qemu_too_old_says_what_was_found(fakes: FakeHost, store: Store) -> None:
    fakes.set("FAKE_PRIVATE_QEMU", "10.0.2")
    with pytest.raises(HostError, match=r"11\.0 or later is needed.*10\.0\.2"):
        images.qemu_binary(store=store)
