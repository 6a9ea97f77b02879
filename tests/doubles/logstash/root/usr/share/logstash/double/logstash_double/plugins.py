"""What inputs, filters and outputs have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from . import ConfigurationError, NotDoubled
from .event import Event
from .language import Plugin as Node
from .options import Option, Options, validated

COMMON: Options = {"id": Option(), "enable_metric": Option("boolean", True)}
OBSOLETE = "You can achieve this same behavior with the new conditionals."


class Plugin:
    """Made by `-t` and at the start; `register` runs at the start only."""

    name: ClassVar[str]
    options: ClassVar[Options]
    shared: ClassVar[Options] = {}

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings: dict[str, Any] = validated(node, {**COMMON, **self.shared, **self.options})

    def register(self) -> None:
        """What only a start finds. Raises ConfigurationError."""

    def refuse(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"{self.node.kind} {self.name}: {why}")


class Filter(Plugin):
    shared: ClassVar[Options] = {
        "add_tag": Option("array", []),
        "remove_tag": Option("array", []),
        "add_field": Option("hash", {}),
        "remove_field": Option("array", []),
        "periodic_flush": Option("boolean", False, doubled=False),
        "type": Option(obsolete=OBSOLETE),
        "tags": Option(obsolete=OBSOLETE),
        "exclude_tags": Option(obsolete=OBSOLETE),
    }

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.counts: dict[str, int] = {}  # what the API tells of it

    def filter(self, event: Event) -> None:
        raise NotImplementedError

    def failed(self, event: Event) -> None:
        """Tagged by `tag_on_failure`, and counted."""
        self.counts["failures"] = self.counts.get("failures", 0) + 1
        for tag in self.settings["tag_on_failure"]:
            event.tag(tag)

    def matched(self, event: Event) -> None:
        """The options of every filter, in upstream's order, where it succeeded."""
        for field, values in self.settings["add_field"].items():
            for value in values if isinstance(values, list) else [values]:
                add_field(event, event.fill(field), event.fill(value))
        for field in self.settings["remove_field"]:
            event.remove(event.fill(field))
        if new := self.settings["add_tag"]:
            tags = event.get("tags") or []
            event.set("tags", [*tags, *(event.fill(tag) for tag in new)])
        if old := self.settings["remove_tag"]:
            event.set("tags", [tag for tag in event.get("tags") or [] if tag not in old])


def add_field(event: Event, field: str, value: Any) -> None:
    """A second value makes a list of what was one."""
    if event.includes(field):
        there = event.get(field)
        value = [*(there if isinstance(there, list) else [there]), value]
    event.set(field, value)


class Output(Plugin):
    shared: ClassVar[Options] = {
        "codec": Option("codec", Node("codec", "plain")),
        "workers": Option("number"),
        "type": Option(obsolete=OBSOLETE),
        "tags": Option(obsolete=OBSOLETE),
        "exclude_tags": Option(obsolete=OBSOLETE),
    }

    def receive(self, events: list[Event]) -> None:
        raise NotImplementedError


def plain_codec(node: Node) -> None:
    """Raises NotDoubled for any other."""
    if node.name not in ("plain", "line") or set(node.settings) - {"charset"}:
        raise NotDoubled(f"the codec {node.name} with {sorted(node.settings)}")
    if node.settings.get("charset", "UTF-8") != "UTF-8":
        raise NotDoubled(f"the charset {node.settings['charset']}")
