"""What was there before us, so that it can come back."""

from __future__ import annotations

import os
from typing import Any

from .machine import at
from .paths import STATE, load, put, store
from .wire import Have, Want


class Journal:
    """What every resource was before we first changed it, and what we left it as: `entries`, oldest first.

    An entry: {id, kind, task, want, before, after}. `pending` names, for each unit, the resources that changed since
    it was last restarted; so an interrupted run cannot swallow a restart.
    """

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = load("journal.json", {})
        self.pending: dict[str, list[str]] = load("pending.json", {})

    def before(self, want: Want, have: Have) -> None:
        if want["id"] not in self.entries:
            if have.get("type") == "file" and "sha256" in have and not holds_data(want):
                self.keep(want["path"], have["sha256"])
            self.entries[want["id"]] = {"before": have, "after": have}
        self.entries[want["id"]].update(
            kind=want["kind"], task=want["task"], want=slim(want), unfinished=True
        )
        store("journal.json", self.entries)

    def after(self, want: Want, have: Have) -> None:
        """What we left, with a copy of small files that are no secret: so undo can show what somebody changed since."""
        copied = not (holds_data(want) or holds_secret(want) or want.get("blob"))
        if have.get("type") == "file" and copied:
            self.keep(want["path"], have["sha256"])
        self.entries[want["id"]].update(after=have, unfinished=False)
        store("journal.json", self.entries)

    def unfinished(self, want: Want) -> bool:
        """True if a run was killed between doing it and writing that down: what is there now is ours."""
        return bool(self.entries.get(want["id"], {}).get("unfinished"))

    def save(self) -> None:
        store("journal.json", self.entries)

    def bootstrapped(self, added: list[str]) -> None:
        """Python itself was installed, with these packages, before there was an agent to write it down."""
        want = {"id": "package:python3", "kind": "package", "name": "python3", "names": ["python3"]}
        have = {"missing": ["python3"]}
        entry = {
            "before": have,
            "after": have,
            "kind": "package",
            "task": "engine",
            "want": want,
            "added": added,
        }
        self.entries = {"package:python3": entry, **self.entries}
        store("journal.json", self.entries)

    def keep(self, path: str, sha256: str) -> None:
        store("journal.json", self.entries)  # makes the folder
        objects = f"{STATE}/journal/objects"
        os.makedirs(at(objects), 0o700, exist_ok=True)
        with open(at(path), "rb") as file:
            put(f"{objects}/{sha256}", file.read())

    def forget(self, id: str) -> None:
        del self.entries[id]
        store("journal.json", self.entries)

    def await_restart(self, unit: str, id: str) -> None:
        if id not in self.pending.setdefault(unit, []):
            self.pending[unit].append(id)
            store("pending.json", self.pending)

    def restarted(self, unit: str) -> None:
        if self.pending.pop(unit, None):
            store("pending.json", self.pending)


def slim(want: Want) -> Want:
    """A resource without its content: what undo needs to know of it."""
    known = {"secret": True} if want["kind"] == "file" and holds_secret(want) else {}
    return {key: value for key, value in want.items() if key not in ("text", "base64")} | known


def holds_secret(want: Want) -> bool:
    """True for a file whose content nobody is to be shown."""
    return bool(want.get("secret")) or "@@secret." in (want.get("text") or "")


def holds_data(want: Want) -> bool:
    """True for a file whose content is not ours, such as a log."""
    return bool(want.get("data"))
