"""What a box leaves on this machine while it lives: names for images, ssh_config, known_hosts, one sysctl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from box import images, machine, state


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A .box of this test's own."""
    files = {"FOLDER": "", "SSH_CONFIG": "ssh_config", "KNOWN_HOSTS": "known_hosts", "KEY": "id_ed25519"}
    for name, file in files.items():
        monkeypatch.setattr(state, name, tmp_path / file)
    return tmp_path


def test_openssh_reads_address_user_key_and_host_keys_of_a_box_from_its_ssh_config(folder: Path) -> None:
    entries: dict[str, Any] = {
        "one": {"address": "127.0.22.1", "keys": ["ssh-ed25519 AAAA"]},
        "two": {"address": "127.0.22.2", "keys": ["ssh-ed25519 BBBB"]},
    }
    state.write_ssh_files(entries)
    argv = ["ssh", "-G", "-F", str(folder / "ssh_config"), "two"]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = ["hostname 127.0.22.2", "user root", "port 22", "identitiesonly yes"]
    wanted += [f"identityfile {folder / 'id_ed25519'}", f"userknownhostsfile {folder / 'known_hosts'}"]
    assert set(wanted) <= set(shown)
    known = (folder / "known_hosts").read_text().splitlines()
    assert [line for line in known if "BBBB" in line] == [
        "127.0.22.2 ssh-ed25519 BBBB",
        "[127.0.22.2]:2022 ssh-ed25519 BBBB",
        "[127.0.22.2]:2222 ssh-ed25519 BBBB",
    ]


def test_a_box_that_is_gone_is_in_no_file(folder: Path) -> None:
    state.write_ssh_files({"one": {"address": "127.0.22.1", "keys": ["ssh-ed25519 AAAA"]}})
    state.write_ssh_files({})
    assert (folder / "ssh_config").read_text() == "" and "127" not in (folder / "known_hosts").read_text()


def test_the_key_pair_is_made_once(folder: Path) -> None:
    assert state.public_key() == state.public_key()
    assert (folder / "id_ed25519").stat().st_mode & 0o777 == 0o600


def test_an_image_is_named_by_what_it_is_made_from() -> None:
    names = {
        images.tag(images.BOX_FILES, "debian:trixie", "full"),
        images.tag(images.BOX_FILES, "debian:trixie", "bare"),
        images.tag(images.BOX_FILES, "debian:bookworm", "full"),
        images.tag(images.TOOLS_FILES, "debian:trixie", "full"),
    }
    assert len(names) == 4
    assert images.tag(images.BOX_FILES, "debian:trixie", "full") in names


def test_a_box_has_ports_of_its_own_under_their_real_numbers() -> None:
    address, way = machine.published(7)
    assert address == "127.0.22.7"
    assert way["ports"] == {
        "22/tcp": (address, 22),
        "2022/tcp": (address, 2022),
        "2222/tcp": (address, 2222),
        "80/tcp": (address, 80),
        "443/tcp": (address, 443),
    }


def test_no_capability_is_asked_for_twice_or_gives_all() -> None:
    assert len(set(machine.CAPABILITIES)) == len(machine.CAPABILITIES)
    assert "ALL" not in machine.CAPABILITIES
