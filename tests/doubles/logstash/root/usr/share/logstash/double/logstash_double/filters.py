"""The filters grok, date, mutate, fingerprint, cidr and translate."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any, ClassVar

from . import NotDoubled
from .event import Event, now, text_of
from .grok import Grok, folder
from .oniguruma import TooLong, compiled
from .options import Option, Options
from .plugins import Filter


class GrokFilter(Filter):
    name = "grok"
    options: ClassVar[Options] = {
        "match": Option("hash", {}),
        "patterns_dir": Option("array", []),
        "patterns_files_glob": Option(default="*"),
        "pattern_definitions": Option("hash", {}),
        "break_on_match": Option("boolean", True),
        "named_captures_only": Option("boolean", True, doubled=False),
        "keep_empty_captures": Option("boolean", False),
        "target": Option(doubled=False),
        "tag_on_failure": Option("array", ["_grokparsefailure"]),
        "timeout_millis": Option("number", 30000, doubled=False),
        "timeout_scope": Option(default="pattern", choices=("pattern", "event"), doubled=False),
        "tag_on_timeout": Option(default="_groktimeout"),
        "overwrite": Option("array", []),
        "ecs_compatibility": Option(choices=("disabled", "v1", "v8"), doubled=False),
    }

    def register(self) -> None:
        patterns = folder(self.settings["patterns_dir"], self.settings["patterns_files_glob"])
        patterns |= self.settings["pattern_definitions"]
        self.groks = {
            field: [Grok(text, patterns) for text in (texts if isinstance(texts, list) else [texts])]
            for field, texts in self.settings["match"].items()
        }

    def filter(self, event: Event) -> None:
        try:
            found = sum(self.field(event, field) for field in self.fields()) > 0
        except TooLong:
            event.tag(self.settings["tag_on_timeout"])
            return
        if found:
            self.matched(event)
        else:
            self.failed(event)

    def fields(self) -> list[str]:
        if len(self.groks) > 1 and self.settings["break_on_match"]:
            raise NotDoubled("grok of several fields at once")
        return list(self.groks)

    def field(self, event: Event, field: str) -> bool:
        values = event.get(field)
        return sum(self.text(event, field, value) for value in as_list(values) or [None]) > 0

    def text(self, event: Event, field: str, value: Any) -> bool:
        found = False
        for grok in self.groks[field]:
            captures = grok.match("" if value is None else text_of(value))
            if captures is not None:
                found = True
                for name, captured in captures:
                    self.capture(event, name, captured)
                if self.settings["break_on_match"]:
                    break
        return found

    def capture(self, event: Event, field: str, value: Any) -> None:
        """A second capture makes a list of a string; a number stays as it is, in silence."""
        if value is None or (value == "" and not self.settings["keep_empty_captures"]):
            return
        there = event.get(field)
        if there is None or field in self.settings["overwrite"]:
            event.set(field, value)
        elif isinstance(there, (str, list)):
            event.set(field, [*(there if isinstance(there, list) else [there]), value])


MONTHS = dict(
    zip(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
        range(1, 13),
        strict=True,
    )
)
ISO8601 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))?(Z|[+-]\d\d:?\d\d)?")
BSD = {
    "MMM dd HH:mm:ss": re.compile(r"([A-Z][a-z]{2}) (\d{1,2}) (\d\d):(\d\d):(\d\d)"),
    "MMM  d HH:mm:ss": re.compile(r"([A-Z][a-z]{2})  (\d{1,2}) (\d\d):(\d\d):(\d\d)"),
    "MMM d HH:mm:ss": re.compile(r"([A-Z][a-z]{2}) (\d{1,2}) (\d\d):(\d\d):(\d\d)"),
}


class Date(Filter):
    name = "date"
    options: ClassVar[Options] = {
        "match": Option("array", []),
        "timezone": Option(),
        "locale": Option(doubled=False),
        "target": Option(default="@timestamp"),
        "tag_on_failure": Option("array", ["_dateparsefailure"]),
        "precision": Option(default="ms", choices=("ms", "ns"), doubled=False),
    }

    clock = staticmethod(now)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if len(self.settings["match"]) < 2:
            raise self.refuse(
                "The match setting should contains first a field name and at least one date format, "
                f"current value is {self.settings['match']}"
            )
        self.source, *self.formats = self.settings["match"]
        for format_ in self.formats:
            if format_ != "ISO8601" and format_ not in BSD:
                raise NotDoubled(f"the date format {format_!r}")
        if self.settings["timezone"] not in ("UTC", None):
            raise NotDoubled("a timezone but UTC")

    def filter(self, event: Event) -> None:
        text = event.get(self.source)
        if text is None:
            return
        for format_ in self.formats:
            if isinstance(text, str) and (moment := self.parsed(text, format_)):
                event.set(self.settings["target"], moment)
                self.matched(event)
                return
        self.failed(event)

    def parsed(self, text: str, format_: str) -> datetime | None:
        try:
            return iso8601(text) if format_ == "ISO8601" else bsd(text, format_, self.clock())
        except ValueError:
            return None


def iso8601(text: str) -> datetime | None:
    """Cut to milliseconds."""
    if not (found := ISO8601.fullmatch(text)):
        return None
    zone = (found[3] or "Z").replace("Z", "+0000").replace(":", "")
    moment = datetime.strptime(f"{found[1]}{zone}", "%Y-%m-%dT%H:%M:%S%z").astimezone(timezone.utc)
    return moment.replace(microsecond=1000 * int(f"{found[2] or ''}000"[:3]))


def bsd(text: str, format_: str, today: datetime) -> datetime | None:
    """This year's, except December read in January, and January read in December."""
    if not (found := BSD[format_].fullmatch(text)) or found[1] not in MONTHS:
        return None
    month = MONTHS[found[1]]
    year = today.year - (month == 12 and today.month == 1) + (month == 1 and today.month == 12)
    day, hour, minute, second = map(int, found.groups()[1:])
    return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)


class Fingerprint(Filter):
    name = "fingerprint"
    METHODS = ("SHA1", "SHA256", "SHA384", "SHA512", "MD5")
    options: ClassVar[Options] = {
        "source": Option("array", ["message"]),
        "target": Option(default="[event][hash]"),
        "method": Option(
            default="SHA1",
            choices=(*METHODS, "MURMUR3", "MURMUR3_128", "IPV4_NETWORK", "UUID", "PUNCTUATION"),
        ),
        "key": Option("password", doubled=False),
        "base64encode": Option("boolean", False, doubled=False),
        "concatenate_sources": Option("boolean", False, doubled=False),
        "concatenate_all_fields": Option("boolean", False, doubled=False),
        "ecs_compatibility": Option(choices=("disabled", "v1", "v8"), doubled=False),
    }

    def register(self) -> None:
        if self.settings["method"] not in self.METHODS:
            raise NotDoubled(f"the method {self.settings['method']}")

    def filter(self, event: Event) -> None:
        for field in self.settings["source"]:
            if event.includes(field):
                digest = hashlib.new(self.settings["method"].lower())
                digest.update(text_of(event.get(field)).encode())
                event.set(self.settings["target"], digest.hexdigest())
        self.matched(event)


class Cidr(Filter):
    name = "cidr"
    options: ClassVar[Options] = {
        "address": Option("array", []),
        "address_field": Option("field", doubled=False),
        "network": Option("array", []),
        "network_path": Option("path", doubled=False),
        "refresh_interval": Option("number", 600, doubled=False),
        "separator": Option(default="\n", doubled=False),
    }

    def filter(self, event: Event) -> None:
        """An address or a network that is none is passed over, with a warning upstream."""
        addresses = [ip for text in self.settings["address"] if (ip := network(event.fill(text)))]
        networks = [net for text in self.settings["network"] if (net := network(event.fill(text)))]
        for address in addresses:
            if any(net.version == address.version and address.subnet_of(net) for net in networks):  # type: ignore[arg-type]
                self.matched(event)
                return


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return None


class Translate(Filter):
    name = "translate"
    options: ClassVar[Options] = {
        "source": Option("field"),
        "target": Option("field"),
        "dictionary": Option("hash", {}),
        "fallback": Option(),
        "override": Option("boolean"),
        "dictionary_path": Option("path", doubled=False),
        "exact": Option("boolean", True, doubled=False),
        "regex": Option("boolean", False, doubled=False),
        "refresh_interval": Option("number", 300, doubled=False),
        "refresh_behaviour": Option(default="merge", choices=("merge", "replace"), doubled=False),
        "iterate_on": Option(doubled=False),
        "field": Option(doubled=False),
        "destination": Option(doubled=False),
        "ecs_compatibility": Option(choices=("disabled", "v1", "v8"), doubled=False),
    }

    def register(self) -> None:
        if not self.settings["source"]:
            raise self.refuse("No source field specified, please provide the `source => ...` option")

    def filter(self, event: Event) -> None:
        source, target = self.settings["source"], self.settings["target"] or self.settings["source"]
        override = self.settings["override"] or source == target
        if not event.includes(source) or (event.includes(target) and not override):
            return
        found = self.settings["dictionary"].get(text_of(event.get(source)))
        if found is None and self.settings["fallback"] is not None:
            found = event.fill(self.settings["fallback"])
        if found is not None:
            event.set(target, found)
        if found is not None or source == target:
            self.matched(event)


def each(value: Any, change: Callable[[str], Any]) -> Any:
    """Strings changed, also in a list; anything else stays."""
    if isinstance(value, list):
        return [change(item) if isinstance(item, str) else item for item in value]
    return change(value) if isinstance(value, str) else value


class Mutate(Filter):
    """Its operations have an order of their own, whatever order they stand in."""

    name = "mutate"
    TYPES = ("string", "integer", "float", "boolean", "integer_eu", "float_eu")
    options: ClassVar[Options] = {
        "coerce": Option("hash"),
        "rename": Option("hash"),
        "update": Option("hash"),
        "replace": Option("hash"),
        "convert": Option("hash"),
        "gsub": Option("array"),
        "uppercase": Option("array"),
        "capitalize": Option("array"),
        "lowercase": Option("array"),
        "strip": Option("array"),
        "split": Option("hash"),
        "join": Option("hash"),
        "merge": Option("hash"),
        "copy": Option("hash"),
        "tag_on_failure": Option(default="_mutate_error"),
    }
    ORDER = tuple(name for name in options if name != "tag_on_failure")

    def register(self) -> None:
        for kind in (self.settings["convert"] or {}).values():
            if kind not in self.TYPES:
                raise self.refuse(
                    f"Invalid conversion type '{kind}', expected one of '{','.join(self.TYPES)}'"
                )
            if kind not in ("string", "integer"):
                raise NotDoubled(f"conversion to {kind}")
        gsub = self.settings["gsub"] or []
        if len(gsub) % 3:
            raise self.refuse(
                f"Invalid gsub configuration {gsub}. gsub requires 3 non-nil elements per config entry"
            )
        for needle in gsub[1::3]:
            compiled(needle, multiline=False)

    def filter(self, event: Event) -> None:
        try:
            for name in self.ORDER:
                if self.settings[name]:
                    getattr(self, name)(event, self.settings[name])
        except ValueError:
            event.tag(self.settings["tag_on_failure"])
            return
        self.matched(event)

    def coerce(self, event: Event, fields: dict[str, str]) -> None:
        for field, default in fields.items():
            if event.includes(field) and event.get(field) is None:
                event.set(field, event.fill(default))

    def rename(self, event: Event, fields: dict[str, str]) -> None:
        for old, new in fields.items():
            if event.includes(event.fill(old)):
                event.set(event.fill(new), event.remove(event.fill(old)))

    def update(self, event: Event, fields: dict[str, Any]) -> None:
        for field, value in fields.items():
            if event.includes(field):
                event.set(field, event.fill(value))

    def replace(self, event: Event, fields: dict[str, Any]) -> None:
        for field, value in fields.items():
            event.set(field, event.fill(value))

    def convert(self, event: Event, fields: dict[str, str]) -> None:
        for field, kind in fields.items():
            if event.get(field) is not None:
                change: Callable[[str], Any] = (
                    str if kind == "string" else lambda text: int(float(text.replace(",", "")))
                )
                value = event.get(field)
                event.set(field, str(value) if kind == "string" else each(value, change))

    def gsub(self, event: Event, triples: list[str]) -> None:
        """Plain needles only, which is all that is needed; Ruby's \\1 is no business of the double."""
        for field, needle, replacement in zip(triples[::3], triples[1::3], triples[2::3], strict=True):
            if re.escape(needle) != needle:
                raise NotDoubled(f"gsub by the regular expression {needle!r}")
            new = event.fill(replacement)
            self.change(event, field, partial(replaced, old=needle, new=new))

    def change(self, event: Event, field: str, change: Callable[[str], Any]) -> None:
        if event.get(field) is not None:
            event.set(field, each(event.get(field), change))

    def uppercase(self, event: Event, fields: list[str]) -> None:
        for field in fields:
            self.change(event, field, str.upper)

    def capitalize(self, event: Event, fields: list[str]) -> None:
        for field in fields:
            self.change(event, field, str.capitalize)

    def lowercase(self, event: Event, fields: list[str]) -> None:
        for field in fields:
            self.change(event, field, str.lower)

    def strip(self, event: Event, fields: list[str]) -> None:
        for field in fields:
            self.change(event, field, str.strip)

    def split(self, event: Event, fields: dict[str, str]) -> None:
        for field, separator in fields.items():
            if isinstance(text := event.get(field), str):
                event.set(field, text.split(separator))

    def join(self, event: Event, fields: dict[str, str]) -> None:
        for field, separator in fields.items():
            if isinstance(items := event.get(field), list):
                event.set(field, separator.join(map(text_of, items)))

    def merge(self, event: Event, fields: dict[str, Any]) -> None:
        """As upstream reads the target once: of several new fields only the last stays where there was none."""
        for target, added in fields.items():
            there = event.get(target)
            for field in added if isinstance(added, list) else [added]:
                new = event.get(field)
                if isinstance(there, dict) or isinstance(new, dict):
                    raise NotDoubled("merging hashes")
                event.set(target, [*as_list(there), *as_list(new)])

    def copy(self, event: Event, fields: dict[str, str]) -> None:
        for source, target in fields.items():
            if (value := event.get(source)) is not None:
                event.set(target, value)


def replaced(text: str, old: str, new: str) -> str:
    return text.replace(old, new)


def as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
