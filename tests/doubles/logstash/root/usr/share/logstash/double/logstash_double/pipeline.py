"""A pipeline: configuration → plugins → events from the inputs through the filters to the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from . import NotDoubled, conditions
from .elasticsearch import Elasticsearch
from .event import Event
from .file_input import FileInput
from .filters import Cidr, Date, Fingerprint, GrokFilter, Mutate, Translate
from .geoip import GeoIP
from .language import Branch, Plugin, Sections, Statement, parse
from .outputs import Stdout
from .plugins import Filter, Output
from .plugins import Plugin as Part

Kind = TypeVar("Kind", bound=Part)

INPUTS = {"file": FileInput}
FILTERS: dict[str, type[Filter]] = {
    kind.name: kind for kind in (GrokFilter, Date, Fingerprint, Cidr, Translate, Mutate, GeoIP)
}
OUTPUTS: dict[str, type[Output]] = {"elasticsearch": Elasticsearch, "stdout": Stdout}


class Dropped(Exception):
    """A condition that cannot be decided; upstream loses the event."""


class Pipeline:
    """Made: what `-t` looks at. Registered: what a start looks at."""

    def __init__(self, text: str) -> None:
        self.sections: Sections = parse(text)
        self.filters = {id(node): make(node, FILTERS) for node in nodes(self.sections["filter"])}
        self.outputs = {id(node): make(node, OUTPUTS) for node in nodes(self.sections["output"])}
        self.inputs = [make(node, INPUTS) for node in nodes(self.sections["input"])]
        if any(isinstance(s, Branch) for s in (*self.sections["input"], *self.sections["output"])):
            raise NotDoubled("branches in the inputs or the outputs")

    def register(self) -> None:
        """In upstream's order."""
        self.register_outputs()
        self.register_filters()
        self.register_inputs()

    def register_outputs(self) -> None:
        for output in self.outputs.values():
            output.register()

    def register_filters(self) -> None:
        for branch in branches(self.sections["filter"]):
            for test, _ in branch.cases:
                if test is not None:
                    conditions.check(test)
        for plugin in self.filters.values():
            plugin.register()

    def register_inputs(self) -> None:
        for source in self.inputs:
            source.register()

    def filter(self, events: Iterable[Event]) -> list[Event]:
        """Those that come through."""
        kept = []
        for event in events:
            try:
                self.run(self.sections["filter"], event)
            except conditions.Incomparable:
                continue
            kept.append(event)
        return kept

    def run(self, statements: Iterable[Statement], event: Event) -> None:
        for statement in statements:
            if isinstance(statement, Plugin):
                self.filters[id(statement)].filter(event)
            else:
                self.run(chosen(statement, event), event)

    def write(self, events: list[Event]) -> None:
        for output in self.outputs.values():
            output.receive(events)


def chosen(branch: Branch, event: Event) -> tuple[Statement, ...]:
    for test, body in branch.cases:
        if test is None or conditions.holds(test, event):
            return body
    return ()


def nodes(statements: Iterable[Statement]) -> Iterator[Plugin]:
    for statement in statements:
        if isinstance(statement, Plugin):
            yield statement
        else:
            for _, body in statement.cases:
                yield from nodes(body)


def branches(statements: Iterable[Statement]) -> Iterator[Branch]:
    for statement in statements:
        if isinstance(statement, Branch):
            yield statement
            for _, body in statement.cases:
                yield from branches(body)


def make(node: Plugin, classes: dict[str, type[Kind]]) -> Kind:
    """Logstash has many more plugins; the double refuses those, too, and says so."""
    if node.name not in classes:
        raise NotDoubled(f"any {node.kind} plugin named '{node.name}'")
    return classes[node.name](node)
