"""A firewall chain of ours."""

from __future__ import annotations

import os
from typing import Any

from .item import Item, changed_ids
from .machine import must, run
from .paths import load, look, store
from .wire import Failure, Have


def exists(family: str) -> bool:
    """A kernel may lack IPv6."""
    return family == "v4" or os.path.isdir("/proc/sys/net/ipv6")


class Rules(Item):
    FAMILIES = ("v4", "v6")

    def questions(self) -> list[tuple[str, ...]]:
        return [(*self.want["show"], family) for family in self.FAMILIES]

    def observe(self) -> Have:
        """For each family where the hook enters our chain, and its rules: ["1 -A INPUT …", "-A KNOCKMAP …"]."""
        return {family: run(*self.want["show"], family).stdout.splitlines() for family in self.FAMILIES}

    def sources(self) -> str:
        """Stands for the wanted rules: the content of the files they are loaded from."""
        return "".join(look(id.split(":", 1)[1]).get("sha256", "absent") for id in self.want["files"])

    def wanted(self) -> Have:
        """The kernel prints rules otherwise than they are written, so what it showed after loading is the measure."""
        loaded = load("rules.json", {}).get(self.want["chain"], {})
        if loaded.get("sources") != self.sources() or changed_ids & set(self.want["files"]):
            return {"v4": "to be loaded", "v6": "to be loaded"}
        return loaded["shown"]  # type: ignore[no-any-return]

    def apply(self, have: Have) -> None:
        must(f"the chain {self.want['chain']} was not loaded", *self.want["load"])
        shown = self.observe()
        for family in self.FAMILIES:
            jumps = [line for line in shown[family] if not line.startswith("-A ")]
            if [line.split()[0] for line in jumps] != ["1"] and exists(family):
                raise Failure(
                    f"{family}: the chain {self.want['chain']} is not entered first, and once, after loading"
                )
        changed_ids.difference_update(self.want["files"])
        loaded = {"sources": self.sources(), "shown": shown}
        store("rules.json", {**load("rules.json", {}), self.want["chain"]: loaded})

    def diff(self, have: Have) -> str:
        """What the kernel holds and shall not, and what it lacks; the files' own diffs show rules never loaded yet."""
        wanted = {family: lines if isinstance(lines, list) else [] for family, lines in self.wanted().items()}
        gone = [f"-{f}: {line}\n" for f in self.FAMILIES for line in have[f] if line not in wanted[f]]
        return "".join(
            gone + [f"+{f}: {line}\n" for f in self.FAMILIES for line in wanted[f] if line not in have[f]]
        )

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True  # rules that somebody flushed are back to what was before

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        must(f"the chain {self.want['chain']} was not removed", *self.want["unload"])
        return ""
