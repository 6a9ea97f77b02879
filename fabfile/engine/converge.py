"""From a plan to a report: `converge(c, {"iptables_log": resources(settings)}, check=check)` is what a task calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from fabfile.engine.report import Report, Result, result
from fabfile.engine.resources import Plan, blobs, manifest
from fabfile.engine.transport import packed_agent, run_agent

Made = TypeVar("Made")
OnEvent = Callable[[dict[str, Any]], None]


def while_connecting(c: Any, make: Callable[[], Made]) -> Made:
    """What `make` gives: a plan, say, that needs no connection, made while the target still answers."""
    made: Future[Made] = Future()

    def work() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    # Not a pool's: a host that cannot be reached is told at once, whatever is being downloaded.
    for target in (work, packed_agent):
        Thread(target=target, daemon=True).start()
    c.open()
    return made.result()


def converge(
    c: Any,
    plan: Plan,
    *,
    check: bool = False,
    diff: bool = False,
    held: Sequence[str] = (),
    preflight: bool = False,
    on_event: OnEvent | None = None,
) -> Report:
    """Bring the target to the plan; with `check` (or Invoke's --dry) only say what would change.

    With `preflight` only what would stop it half-way is looked for, and brought: requirements, room, clock, packages.
    The resources of `held` tasks are only looked at: {"held": id} in the report's data names each that differs.

    Events go to `on_event`, or else to the screen of `c`. A failed resource is in the report; what is raised is a
    HostError: the way to the target failed.
    """
    check = check or bool(c.config.run.dry)
    job = {
        "mode": "check" if check else "apply",
        "diff": diff,
        "held": list(held),
        "preflight": preflight,
        "resources": manifest(plan),
    }
    return _run(c, job, blobs(plan), check, on_event)


def undo(
    c: Any,
    tasks: Sequence[str] = (),
    *,
    packages: bool = False,
    data: bool = False,
    keep_edited: bool = False,
    check: bool = False,
    diff: bool = False,
    on_event: OnEvent | None = None,
) -> Report:
    """Put back what the target's journal knows of these tasks (none named: of all)."""
    check = check or bool(c.config.run.dry)
    options = {"tasks": list(tasks), "packages": packages, "data": data, "keep_edited": keep_edited}
    job = {"mode": "undo", "check": check, "diff": diff, "resources": [], "undo": options}
    return _run(c, job, {}, check, on_event)


def _run(
    c: Any, job: dict[str, Any], files: Mapping[str, Path], check: bool, on_event: OnEvent | None
) -> Report:
    results: list[Result] = []
    notices: list[str] = []
    data: list[Any] = []

    def take(event: dict[str, Any]) -> None:
        if event["event"] == "result":
            results.append(result(event))
        elif event["event"] == "notice":
            notices.append(str(event["text"]))
        elif event["event"] == "data":
            data.append(event["value"])
        if on_event:
            on_event(event)
        elif c.screen:
            c.screen.event(event, check)

    c.open()
    run_agent(c, {**job, "time": time.time()}, files, take)
    return Report(str(c.original_host), check, tuple(results), tuple(notices), tuple(data))
