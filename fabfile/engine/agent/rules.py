"""A firewall chain of ours."""

from __future__ import annotations

from typing import Any

from .item import Item, changed_ids
from .machine import must, run
from .paths import load, look, store
from .wire import Failure, Have


class Rules(Item):
    FAMILIES = (("v4", "iptables"), ("v6", "ip6tables"))

    def observe(self) -> Have:
        return {family: self.lines(program) for family, program in self.FAMILIES}

    def lines(self, program: str) -> list[str]:
        """Our chain's rules and, in front of them, where in the hook it is entered: ["1 -p tcp …", "-A KNOCKMAP …"]."""
        shown = run(program, "-w", "10", "-S").stdout.splitlines()
        hook = [line for line in shown if line.startswith(f"-A {self.want['hook']} ")]
        jumps = [
            f"{i} {line}" for i, line in enumerate(hook, 1) if line.endswith(f" -j {self.want['chain']}")
        ]
        return jumps + [line for line in shown if line.startswith(f"-A {self.want['chain']} ")]

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
        for family, program in self.FAMILIES:
            if not shown[family] or not shown[family][0].startswith("1 "):
                raise Failure(
                    f"{program} does not enter {self.want['chain']} first in {self.want['hook']} after loading"
                )
        changed_ids.difference_update(self.want["files"])
        loaded = {"sources": self.sources(), "shown": shown}
        store("rules.json", {**load("rules.json", {}), self.want["chain"]: loaded})

    def diff(self, have: Have) -> str:
        return "".join(
            f"{'-' if have[f] else '+'} {f}: {line}\n" for f, _ in self.FAMILIES for line in have[f]
        )

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True  # rules that somebody flushed are back to what was before

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        must(f"the chain {self.want['chain']} was not removed", *self.want["unload"])
        return ""
