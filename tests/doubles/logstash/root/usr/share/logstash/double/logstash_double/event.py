"""An event: nested fields, `@metadata` that no output sees, `%{[a][b]}` in texts."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from . import ConfigurationError, NotDoubled

Document = dict[str, Any]

REFERENCE = re.compile(r"(?:\[[^\[\],]+\])+")
IN_TEXT = re.compile(r"%\{([^}]+)\}")


def path(reference: str) -> list[str]:
    """`[a][b]` → [a, b]; `a` → [a]. Raises ConfigurationError."""
    if REFERENCE.fullmatch(reference):
        return reference[1:-1].split("][")
    if not reference or "[" in reference or "]" in reference:
        raise ConfigurationError(f"Invalid FieldReference: `{reference}`")
    return [reference]


def stamp(moment: datetime) -> str:
    """As Logstash writes it: UTC, milliseconds at least."""
    text = moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def now() -> datetime:
    return datetime.now(timezone.utc)


class Event:
    """`fields` holds all but `@metadata`. `cancelled` is set by a filter that drops it."""

    def __init__(self, fields: Document | None = None) -> None:
        self.fields: Document = {"@timestamp": now(), "@version": "1"} | (fields or {})
        self.metadata: Document = {}

    def root(self, keys: list[str]) -> tuple[Document, list[str]]:
        """The fields, or the metadata and the path in them."""
        if keys[0] == "@metadata":
            return self.metadata, keys[1:]
        return self.fields, keys

    def get(self, reference: str) -> Any:
        here, keys = self.root(path(reference))
        value: Any = here
        for key in keys:
            if (
                isinstance(value, list)
                and re.fullmatch(r"-?\d+", key)
                and -len(value) <= int(key) < len(value)
            ):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                return None
        return value

    def includes(self, reference: str) -> bool:
        *above, last = path(reference)
        if not above:
            return last in self.fields
        holder = self.get("".join(f"[{key}]" for key in above))
        return isinstance(holder, dict) and last in holder

    def set(self, reference: str, value: Any) -> None:
        """Raises ValueError where a part of the path is no hash."""
        here, keys = self.root(path(reference))
        for key in keys[:-1]:
            here = here.setdefault(key, {})
            if not isinstance(here, dict):
                raise ValueError(f"Could not set field '{keys[-1]}' on object '{here}' to value '{value}'")
        here[keys[-1]] = value

    def remove(self, reference: str) -> Any:
        here, keys = self.root(path(reference))
        for key in keys[:-1]:
            if not isinstance(here.get(key), dict):
                return None
            here = here[key]
        return here.pop(keys[-1], None)

    def tag(self, tag: str) -> None:
        """Once; by a filter of its own. `add_tag` adds it whether it is there or not."""
        tags = self.fields.setdefault("tags", [])
        if tag not in tags:
            tags.append(tag)

    def fill(self, text: Any) -> Any:
        """`%{[a][b]}` by the field's value; what is not there stays as it stands."""
        if not isinstance(text, str):
            return text
        return IN_TEXT.sub(lambda found: self.filled(found[0], found[1]), text)

    def filled(self, whole: str, reference: str) -> str:
        if reference.startswith(("+", "{")):
            raise NotDoubled(f"the date format {whole}")
        value = self.get(reference)
        return whole if value is None else text_of(value)

    def document(self) -> Document:
        """What an output writes."""
        fields = copy.deepcopy(self.fields)
        fields["@timestamp"] = stamp(fields["@timestamp"])
        return fields


def text_of(value: Any) -> str:
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, list):
        return ",".join(text_of(item) for item in value)
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
