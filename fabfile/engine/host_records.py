"""What this operator's machine remembers of a host: its keys and the ports on which it proved to be reachable.

    $XDG_STATE_HOME/knockmap/hosts/<name>.json   {"keys": [[type, base64], …], "ports": [2222, …], "old_port": 22}

A record only speeds up finding the port and pins the keys over the move of the port; without it all still works.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fabfile.engine.host_keys import HostKey


@dataclass(frozen=True)
class HostRecord:
    """`ports` in the order in which they are tried; `old_port` is the one before the first move."""

    keys: tuple[HostKey, ...] = ()
    ports: tuple[int, ...] = ()
    old_port: int | None = None


def path(name: str) -> Path:
    """The file of a host, by its name as written after -H (without user and port)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state / "knockmap" / "hosts" / f"{quote(name.lower(), safe='[]:')}.json"


def recorded(name: str) -> HostRecord:
    """The record of a host; an empty one if there is none or if it cannot be read."""
    try:
        found = json.loads(path(name).read_text(encoding="utf-8"))
        keys = tuple(HostKey(str(type), str(blob)) for type, blob in found["keys"])
        return HostRecord(keys, tuple(int(port) for port in found["ports"]), found.get("old_port"))
    except (OSError, ValueError, KeyError, TypeError):
        return HostRecord()


def record(name: str, keys: Iterable[HostKey], ports: Iterable[int], old_port: int | None = None) -> None:
    """Write a host's record, whole: call it after a login over the first of `ports` was proven."""
    target = path(name)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fields = {"keys": [[key.type, key.base64] for key in keys], "ports": list(ports), "old_port": old_port}
    beside = target.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    beside.replace(target)


def forget(name: str) -> None:
    """Remove a host's record, if there is one."""
    path(name).unlink(missing_ok=True)
