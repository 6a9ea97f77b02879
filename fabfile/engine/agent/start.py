"""The first moments: take the job and the lock, and ask what takes longest while the rest of the agent is still loaded."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from typing import Any

from . import wire
from .machine import about_units, ask_ahead, at
from .wire import read_frame

UNITS = {"ssh_owner": "ssh.socket"}  # those that facts depend on
_lock: list[int] = []  # a file descriptor while we hold it


def begin() -> dict[str, Any]:
    """Gives the job. systemd takes longest to answer, and guards of commands are whole programs, so they start first."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, stop)
    os.umask(0o022)
    job: dict[str, Any] = json.loads(read_frame(sys.stdin.buffer))
    if lock():  # what another run still changes must not be looked at yet
        wants = (want for want in job["resources"] if want["kind"] == "command" and not want["when"])
        units = units_of(job["resources"])
        ask_ahead(([about_units(units)] if units else []) + [tuple(want["unless"]) for want in wants])
    return job


def units_of(wants: list[dict[str, Any]]) -> list[str]:
    """All that systemd will be asked about for these resources."""
    facts = {want["when"][0] for want in wants if want["when"]}
    units = [want["unit"] for want in wants if want["kind"] == "service"]
    return list(dict.fromkeys([*units, *(UNITS[name] for name in sorted(facts & UNITS.keys()))]))


def stop(*_: object) -> None:
    wire.gone = True


def lock() -> bool:
    """One run at a time. The lock is on a directory that only root can open: check mode makes no file."""
    if not _lock:
        fd = os.open(at("/root"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        _lock.append(fd)
    return True


def unlock() -> None:
    while _lock:
        os.close(_lock.pop())
