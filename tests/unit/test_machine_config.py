"""vm.toml is decoded strictly, and every error says what to correct, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvisor.errors import NotFoundError, UsageError
from dvisor.machine.config import (
    BootFiles,
    example_names,
    launch_spec,
    load_config,
    memory_bytes,
    override,
    parse_config,
)
from dvisor.machine.spec import Disk, Forward

QEMU = ("qemu",)


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "web1.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", example_names())
def test_built_in_examples_are_right(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert launch_spec(config, BootFiles("/vmlinuz"), QEMU).vcpus == 1


def test_a_vm_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "web1.toml").write_text('image = "tiny"\n')
    assert load_config(str(tmp_path / "web1.toml")).name == "web1"


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('vmlinuz = "k/vmlinuz"\n[[disk]]\npath = "root.img"\n')
    config = load_config(str(tmp_path / "a.toml"))
    assert config.vmlinuz == str(tmp_path / "k/vmlinuz")
    assert config.disk == (Disk(str(tmp_path / "root.img")),)


def test_an_unknown_key_is_named_with_its_line_and_the_allowed_ones(tmp_path: Path) -> None:
    message = refused(tmp_path, 'image = "tiny"\n\nmemroy = "1GiB"\n')
    assert "web1.toml, line 3: unknown key 'memroy' (allowed: name, image, kernel" in message


def test_an_unknown_key_of_a_table_lists_that_tables_keys(tmp_path: Path) -> None:
    message = refused(tmp_path, 'image = "tiny"\n[net]\nmode = "user"\nport = 1\n')
    assert "line 4: unknown key 'port' in [net] (allowed: mode, forwards)" in message
    message = refused(tmp_path, 'image = "tiny"\n[[disk]]\npath = "a"\nbus = "scsi"\n')
    assert "line 4: unknown key 'bus' in [disk] (allowed: path, readonly" in message


def test_an_unquoted_kernel_version_says_to_quote_it(tmp_path: Path) -> None:
    message = refused(tmp_path, 'image = "tiny"\nkernel = 6.12\n')
    assert "line 2: kernel: Expected `str" in message
    assert 'put it in quotes, as in kernel = "6.12"' in message


def test_a_wrong_choice_names_its_key(tmp_path: Path) -> None:
    assert "line 2: accel: Invalid enum value 'xen'" in refused(
        tmp_path, 'image = "tiny"\naccel = "xen"\n'
    )


def test_bad_toml_says_where(tmp_path: Path) -> None:
    assert "is not TOML" in refused(tmp_path, "image = \n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("vcpus = 1\n", "needs either image"),
        ('image = "tiny"\nvmlinuz = "/v"\n', "not both"),
        ('vmlinuz = "/v"\nkernel = "6.1"\n', "leave it out"),
        ('image = "tiny"\ninitrd = "/i"\n', "leave it out"),
        ('image = "tiny"\nname = "../x"\n', "cannot name a VM"),
        ('image = "tiny"\nmemory = "lots"\n', "is no size"),
        ('image = "tiny"\nmemory = "1MiB"\n', "at least 64MiB"),
        ('image = "tiny"\nvcpus = 0\n', "vcpus"),
        ('image = "tiny"\n[net]\nmode = "user"\nforwards = ["80:99999"]\n', "each port"),
        ('image = "tiny"\n[net]\nforwards = ["80:80"]\n', "no network"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    assert complaint in refused(tmp_path, text)


def test_a_missing_file_lists_the_examples() -> None:
    with pytest.raises(NotFoundError, match="debian, tiny"):
        load_config("no-such.toml")


def test_memory_sizes_are_binary() -> None:
    assert memory_bytes("512MiB") == memory_bytes("512M") == 512 << 20
    assert memory_bytes("2 GiB") == 2 << 30


def test_overrides_are_checked_as_the_file_is() -> None:
    config = override(load_config("tiny"), name="web1", vcpus=2, memory=None)
    assert (config.name, config.vcpus, config.memory) == ("web1", 2, "512MiB")
    with pytest.raises(UsageError, match="vcpus"):
        override(config, vcpus=0)


def test_command_line_is_the_images_then_the_users() -> None:
    config = parse_config('image = "tiny"\nname = "a"\nappend = "nokaslr"\ninit = "/x"\n', "t")
    boot = BootFiles("/v", "/i", kernel_command_line="console=ttyS0")
    assert launch_spec(config, boot, QEMU).cmdline == "console=ttyS0 nokaslr rdinit=/x"
    with_disk = BootFiles("/v", None, (Disk("/d"),), "root=/dev/vda")
    assert launch_spec(config, with_disk, QEMU).cmdline == "root=/dev/vda nokaslr init=/x"


def test_forwards_become_ports() -> None:
    text = 'image = "tiny"\n[net]\nmode = "user"\nforwards = ["8080:80", "udp:53:5353"]\n'
    spec = launch_spec(parse_config(text, "t"), BootFiles("/v"), QEMU)
    assert spec.net.forwards == (Forward(8080, 80), Forward(53, 5353, "udp"))
