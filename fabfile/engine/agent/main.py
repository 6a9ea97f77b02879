"""One job: read it, do it alone, say the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator

from . import wire
from .converge import TARGET, attempt, converge
from .machine import at
from .packages import LOCK_SECONDS
from .undo import undo
from .wire import Failure, emit, read_frame


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One run at a time. The lock is on a directory that only root can open: check mode makes no file."""
    fd = os.open(at("/root"), os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline or wire.gone:
                    raise Failure(
                        "another knockmap run is still at work on this target; nothing was touched"
                    ) from None
                emit("progress", id="target", text="waiting for another knockmap run on this target")
                time.sleep(1)
        yield
    finally:
        os.close(fd)


MODES = {"apply": converge, "check": converge, "undo": undo}


def stop(*_: object) -> None:
    wire.gone = True


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, stop)
    os.umask(0o022)
    job = json.loads(read_frame(sys.stdin.buffer))

    def work() -> None:
        with alone():
            MODES[job["mode"]](job)

    attempt(TARGET, work)
    emit("end")
