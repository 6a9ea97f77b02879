"""Commands with a guard, and what must hold before anything changes."""

from __future__ import annotations

from typing import Any

from .facts import QUESTIONS, fact
from .item import Item
from .machine import must, run
from .units import patiently
from .wire import Failure, Have, emit

# What a guard prints after this the operator shall know, though nothing is to be done about it.
NOTE = "note: "
told: set[str] = set()


class Command(Item):
    def questions(self) -> list[tuple[str, ...]]:
        return [tuple(self.want["unless"])]

    def wanted(self) -> Have:
        return {"done": True}

    def observe(self) -> Have:
        done = run(*self.want["unless"])
        for line in done.stdout.splitlines():
            if line.startswith(NOTE) and line not in told:
                told.add(line)
                emit("notice", text=line[len(NOTE) :])
        return {"done": done.returncode == 0}

    def apply(self, have: Have) -> None:
        returncode, said = patiently(self.want["id"], self.want["title"], tuple(self.want["argv"]))
        if returncode:
            raise Failure(
                f"{self.want['title']}: `{' '.join(self.want['argv'])}` exited with {returncode}", said
            )

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        if self.want["undo"]:
            must(f"undoing {self.want['title']}", *self.want["undo"])
        return ""


class Requirement(Item):
    """Looked at before everything else (`converge.require`); it is never changed, and never undone."""

    def questions(self) -> list[tuple[str, ...]]:
        return [QUESTIONS[self.want["fact"]]] if self.want["fact"] in QUESTIONS else []

    def wanted(self) -> Have:
        return {"in_the_way": ""}

    def observe(self) -> Have:
        return {"in_the_way": fact(self.want["fact"], *self.want["given"])}

    def require(self) -> None:
        if reason := self.observe()["in_the_way"]:
            raise Failure(f"{reason}; nothing was touched")
