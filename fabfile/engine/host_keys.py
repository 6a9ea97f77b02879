"""Is it the right host? The operator's known_hosts files, as OpenSSH reads and writes them.

Lines of other programs are never rewritten; a key that the operator accepts is appended to the first
UserKnownHostsFile. Certificates (`@cert-authority`) are not understood by paramiko, so such lines prove nothing here.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

USER_FILES = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
GLOBAL_FILES = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"


@dataclass(frozen=True)
class HostKey:
    """A public host key: its type (`ssh-ed25519`) and its blob in base64, as in a known_hosts line."""

    type: str
    base64: str

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen -l shows it: `SHA256:…`."""
        digest = hashlib.sha256(base64.b64decode(self.base64)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.type} {self.fingerprint}"


@dataclass(frozen=True)
class Line:
    """One line of a known_hosts file."""

    hosts: str
    key: HostKey
    revoked: bool
    path: Path
    number: int

    def names(self, name: str) -> bool:
        """True if this line is about `name` (`host` or `[host]:port`)."""
        if self.hosts.startswith("|1|"):
            return _hashed(self.hosts, name)
        patterns = self.hosts.lower().split(",")
        if any(_matches(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
            return False
        return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    # Brackets stand for themselves in known_hosts ("[host]:2222"), but not in fnmatch.
    return fnmatch.fnmatchcase(name.lower(), pattern.replace("[", "[[]"))


def _hashed(hosts: str, name: str) -> bool:
    try:
        _, _, salt, wanted = hosts.split("|")
        mac = hmac.new(base64.b64decode(salt), name.lower().encode(), hashlib.sha1).digest()
        return hmac.compare_digest(mac, base64.b64decode(wanted))
    except (ValueError, binascii.Error):
        return False


def read(paths: Iterable[Path]) -> list[Line]:
    """The lines of all files that are there and readable; what is no key line is passed over, as OpenSSH does."""
    lines = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for number, raw in enumerate(text.splitlines(), 1):
            if line := _parse(raw, path, number):
                lines.append(line)
    return lines


def _parse(raw: str, path: Path, number: int) -> Line | None:
    fields = raw.split()
    if not fields or fields[0].startswith("#"):
        return None
    marker = fields.pop(0) if fields[0].startswith("@") else ""
    if marker == "@cert-authority" or len(fields) < 3:
        return None
    try:
        base64.b64decode(fields[2], validate=True)
    except (ValueError, binascii.Error):
        return None
    return Line(fields[0], HostKey(fields[1], fields[2]), marker == "@revoked", path, number)


def lookup_name(host: str, port: int, alias: str | None = None) -> str:
    """The name under which OpenSSH looks a host up: an alias stands for itself, port 22 is not written."""
    if alias:
        return alias
    return host if port == 22 else f"[{host}]:{port}"


def files(ssh_config: Mapping[str, str], tokens: Mapping[str, str]) -> tuple[list[Path], list[Path]]:
    """(the user's, the system's) known_hosts files by ssh_config's UserKnownHostsFile and GlobalKnownHostsFile."""
    user = ssh_config.get("userknownhostsfile", USER_FILES)
    system = ssh_config.get("globalknownhostsfile", GLOBAL_FILES)
    return _paths(user, tokens), _paths(system, tokens)


def _paths(value: str, tokens: Mapping[str, str]) -> list[Path]:
    paths = []
    for word in shlex.split(value):
        for token, text in tokens.items():
            word = word.replace(token, text)
        if word != "none":
            paths.append(Path(word).expanduser())
    return paths


def append(path: Path, name: str, key: HostKey) -> None:
    """Add one line to the file, which is made (0600) if it is not there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(fd, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        start = b"\n" if size and file.read(1) != b"\n" else b""
        file.write(start + f"{name} {key.type} {key.base64}\n".encode())
