"""One job: do it alone, say the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from . import wire
from .converge import TARGET, attempt, converge
from .packages import LOCK_SECONDS
from .start import begin, lock, unlock
from .wire import Failure, emit


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other run is at work."""
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while not lock():
            if time.monotonic() > deadline or wire.gone:
                raise Failure("another knockmap run is still at work on this target; nothing was touched")
            emit("progress", id="target", text="waiting for another knockmap run on this target")
            time.sleep(1)
        yield
    finally:
        unlock()


def undo(job: dict[str, Any]) -> None:
    from .undo import undo as put_back  # which few jobs need

    put_back(job)


MODES = {"apply": converge, "check": converge, "undo": undo}


def main(job: dict[str, Any] | None = None) -> None:
    job = job or begin()

    def work() -> None:
        with alone():
            MODES[job["mode"]](job)

    attempt(TARGET, work)
    emit("end")
