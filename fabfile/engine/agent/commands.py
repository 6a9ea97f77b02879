"""Commands with a guard."""

from __future__ import annotations

from typing import Any

from .item import Item
from .machine import must, run
from .wire import Have


class Command(Item):
    def questions(self) -> list[tuple[str, ...]]:
        return [tuple(self.want["unless"])]

    def wanted(self) -> Have:
        return {"done": True}

    def observe(self) -> Have:
        return {"done": run(*self.want["unless"]).returncode == 0}

    def apply(self, have: Have) -> None:
        must(self.want["title"], *self.want["argv"])

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        if self.want["undo"]:
            must(f"undoing {self.want['title']}", *self.want["undo"])
        return ""
