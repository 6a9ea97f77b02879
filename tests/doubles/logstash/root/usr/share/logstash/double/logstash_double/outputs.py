"""The output stdout, and how the codec rubydebug shows an event."""

from __future__ import annotations

import json
import sys
from typing import Any, ClassVar

from . import NotDoubled
from .event import Event
from .options import Options
from .plugins import Output


class Stdout(Output):
    name = "stdout"
    options: ClassVar[Options] = {}

    def register(self) -> None:
        codec = self.settings["codec"]
        if codec.name not in ("rubydebug", "json_lines") or set(codec.settings) - {"metadata"}:
            raise NotDoubled(f"the codec {codec.name} with {sorted(codec.settings)}")
        self.codec, self.metadata = codec.name, codec.settings.get("metadata") in (True, "true")

    def receive(self, events: list[Event]) -> None:
        for event in events:
            document = event.document() | ({"@metadata": event.metadata} if self.metadata else {})
            text = json.dumps(document) if self.codec == "json_lines" else rubydebug(document)
            print(text, flush=True)
        sys.stdout.flush()


def rubydebug(value: Any, indent: int = 0) -> str:
    """As awesome_print: keys right-aligned by the longest."""
    inner = " " * (indent + 4)
    if isinstance(value, dict):
        if not value:
            return "{}"
        width = max(len(json.dumps(key)) for key in value)
        items = [
            f"{' ' * (width - len(json.dumps(key)))}{json.dumps(key)} => {rubydebug(item, indent + 4)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(f"{inner}{item}" for item in items) + "\n" + " " * indent + "}"
    if isinstance(value, list):
        items = [f"[{number}] {rubydebug(item, indent + 4)}" for number, item in enumerate(value)]
        return (
            "[\n" + ",\n".join(f"{inner}{item}" for item in items) + "\n" + " " * indent + "]"
            if value
            else "[]"
        )
    return "nil" if value is None else json.dumps(value, ensure_ascii=False)
