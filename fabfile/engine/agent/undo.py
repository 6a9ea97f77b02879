"""Put back what the journal knows, newest first."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import Any

from . import wire
from .converge import attempt, item_of
from .files import HIDDEN, content_at, text_diff
from .item import Item
from .journal import Journal, holds_secret
from .machine import at, must, run
from .paths import STATE
from .units import will_ask
from .wire import emit


def undo(job: dict[str, Any]) -> None:
    """Put back what the journal knows, newest first. Refuses, before anything is touched, where somebody edited since."""
    import shutil  # noqa: F401 - now: undo may remove the Python that it runs on

    options, check, journal = job["undo"], job["mode"] == "check" or job.get("check", False), Journal()
    will_ask(e["want"]["unit"] for e in journal.entries.values() if e["kind"] == "service")
    items = {
        id: item_of({**entry["want"], "kind": entry["kind"], "task": entry["task"]}, journal)
        for id, entry in reversed(journal.entries.items())
        if not options["tasks"] or entry["task"] in options["tasks"]
    }
    edited = {id for id, item in items.items() if is_edited(item, journal.entries[id])}
    refused = bool(edited) and not options["keep_edited"]
    services = [e for e in journal.entries.values() if e["kind"] == "service"]  # undone before their files
    restart: dict[str, str] = {}
    for id, item in items.items():
        entry = journal.entries[id]
        emit("start", id=id, task=entry["task"])
        if id in edited:
            tell_edited(item, entry, options["keep_edited"])
        elif refused or wire.gone:
            emit("result", id=id, task=entry["task"], status="skipped", message="")
        elif check:
            kept = item.keeps(entry["before"], options)
            status, message = ("ok", kept) if kept else ("changed", "back to what it was")
            emit("result", id=id, task=entry["task"], status=status, message=message)
        elif not attempt({"id": id, "task": entry["task"]}, partial(undo_one, item, entry, journal, options)):
            refused = True
        elif id not in journal.entries:
            note_restarts(id, services, restart)
    if not check and not refused:
        finish_undo(restart, journal)


def is_edited(item: Item, entry: dict[str, Any]) -> bool:
    now = item.observe()
    back = all(now.get(key) == value for key, value in entry["before"].items() if key != "mtime")
    return not back and not item.unchanged_since(now, entry["after"])


def tell_edited(item: Item, entry: dict[str, Any], keep: bool) -> None:
    now, after = item.observe(), entry["after"]
    differing = [key for key in after if now.get(key) != after[key] and key != "mtime"]
    words = (f"{key} {shown(key, after[key])} → {shown(key, now.get(key))}" for key in differing)
    what = ", ".join("content" if word.startswith("sha256") else word for word in words)
    if keep:
        emit(
            "result", id=item.want["id"], task=entry["task"], status="ok", message=f"kept as edited ({what})"
        )
        return
    message = f"changed by somebody since ({what}), so nothing was undone; --keep-edited leaves it and undoes the rest"
    emit(
        "result",
        id=item.want["id"],
        task=entry["task"],
        status="failed",
        message=message,
        diff=edit_diff(item, entry),
    )


def shown(key: str, value: Any) -> str:
    return f"{value:04o}" if key == "mode" and value is not None else str(value)


def edit_diff(item: Item, entry: dict[str, Any]) -> str:
    """What somebody changed in a file since we wrote it."""
    if holds_secret(item.want):
        return HIDDEN
    kept = at(f"{STATE}/journal/objects/{entry['after'].get('sha256')}")
    if item.want["kind"] != "file" or not os.path.exists(kept):
        return ""
    with open(kept, "rb") as file:
        return text_diff(item.want["path"], file.read(), content_at(item.want["path"]))


def undo_one(item: Item, entry: dict[str, Any], journal: Journal, options: dict[str, Any]) -> None:
    id, former = item.want["id"], item.observe()
    kept = item.keeps(entry["before"], options) or item.restore(entry["before"], options)
    if kept:
        emit("result", id=id, task=entry["task"], status="ok", message=kept)
        return
    journal.forget(id)
    emit(
        "result",
        id=id,
        task=entry["task"],
        status="changed" if former != item.observe() else "ok",
        message="as it was",
    )


def note_restarts(id: str, services: list[dict[str, Any]], restart: dict[str, str]) -> None:
    """Which units that ran before us have to read again that `id` is back to what it was, and by which verb."""
    for service in services:
        want = service["want"]
        if id in want["restart_on"] + want["reload_on"] and service["before"].get("running"):
            verb = "restart" if id in want["restart_on"] else "reload-or-restart"
            restart[want["unit"]] = "restart" if restart.get(want["unit"]) == "restart" else verb


def finish_undo(restart: dict[str, str], journal: Journal) -> None:
    """Units read their old configuration again; an empty journal leaves nothing of ours behind."""
    run("systemctl", "daemon-reload")
    for unit, verb in restart.items():
        # One whose package went, too, is gone for good.
        if run("systemctl", "is-active", unit).returncode == 0:
            must(f"{unit} did not come back", "systemctl", verb, unit)
    if not journal.entries and os.path.isdir(at(STATE)):
        import shutil

        for name in ("journal", "incoming", "secrets"):
            shutil.rmtree(at(f"{STATE}/{name}"), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(at(STATE))
