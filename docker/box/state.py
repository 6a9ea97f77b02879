"""What the boxes of this checkout share: the folder .box with its lock, key pair, ssh_config and known_hosts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".box"
SSH_CONFIG, KNOWN_HOSTS, KEY = FOLDER / "ssh_config", FOLDER / "known_hosts", FOLDER / "id_ed25519"
PORTS = (22, 2022, 2222, 80, 443)


@contextlib.contextmanager
def lock(name: str = "lock", shared: bool = False) -> Iterator[None]:
    """One process of this checkout at a time, or `shared` ones together. Released when the process ends, however it does."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    with (FOLDER / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def attack_lock(name: str) -> Path:
    """The lock that one attack at a time on this box holds."""
    return FOLDER / f"attack-{name}.lock"


def public_key() -> str:
    """The key that opens every box; the pair is made once for each checkout."""
    if not KEY.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "knockmap-box", "-f", str(KEY)]
        subprocess.run(command, check=True)
    return KEY.with_suffix(".pub").read_text()


def load(name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((FOLDER / name).read_text()))
    except FileNotFoundError:
        return {}


def store(name: str, value: dict[str, Any]) -> None:
    (FOLDER / name).write_text(json.dumps(value, indent=1))


def write_ssh_files(entries: dict[str, dict[str, Any]]) -> None:
    """ssh_config and known_hosts for these boxes: name -> {address, keys}."""
    config, known = [], []
    for name, entry in entries.items():
        config.append(
            f"Host {name}\n    HostName {entry['address']}\n    Port 22\n    User root\n"
            f"    IdentityFile {KEY}\n    IdentitiesOnly yes\n    UserKnownHostsFile {KNOWN_HOSTS}\n"
        )
        for port in (22, 2022, 2222):
            host = entry["address"] if port == 22 else f"[{entry['address']}]:{port}"
            known += [f"{host} {key}" for key in entry["keys"]]
    for path, text in ((SSH_CONFIG, "\n".join(config)), (KNOWN_HOSTS, "\n".join(known) + "\n")):
        temporary = path.with_suffix(".new")
        temporary.write_text(text)
        os.replace(temporary, path)
