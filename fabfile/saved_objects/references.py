"""Does every reference resolve, and is everything that names one among the references? Kibana says so only at import."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fabfile.saved_objects.shapes import TYPE_VERSIONS, SavedObject

# JSON that has to be text, by type.
TEXTS = {
    "map": ("mapStateJSON", "layerListJSON", "uiStateJSON"),
    "dashboard": ("panelsJSON", "optionsJSON"),
}


def problems(objects: Iterable[SavedObject]) -> list[str]:
    """One line for each thing that Kibana would stumble over; empty if there is none."""
    found = list(objects)
    there = {(item["type"], item["id"]) for item in found}
    lines = [line for item in found for line in of_one(item, there)]
    if len(there) < len(found):
        lines.append("two objects have the same type and id")
    return lines


def of_one(item: SavedObject, there: set[tuple[str, str]]) -> Iterator[str]:
    name = f"{item['type']} {item['id']}"
    if item.get("typeMigrationVersion") != TYPE_VERSIONS.get(item["type"]):
        yield f"{name}: typeMigrationVersion is {item.get('typeMigrationVersion')}"
    for reference in item["references"]:
        if (reference["type"], reference["id"]) not in there:
            yield f"{name}: {reference['name']} refers to {reference['type']} {reference['id']}, which is not there"
    for key in TEXTS.get(item["type"], ()):
        if not isinstance(item["attributes"].get(key), str):
            yield f"{name}: {key} must be text"
            return
    names = {reference["name"] for reference in item["references"]}
    wanted = set(names_used(item))
    yield from (f"{name}: nothing is referred to as {missing}" for missing in sorted(wanted - names))
    yield from (f"{name}: nobody uses the reference {unused}" for unused in sorted(names - wanted))
    if item["type"] == "dashboard":
        yield from of_grid(name, json.loads(item["attributes"]["panelsJSON"]))


def names_used(item: SavedObject) -> Iterator[str]:
    """The names of references that the attributes of an object speak of."""
    attributes = item["attributes"]
    if item["type"] == "lens":
        layers = attributes["state"]["datasourceStates"]["formBased"]["layers"]
        yield from (f"indexpattern-datasource-layer-{layer}" for layer in layers)
    elif item["type"] == "dashboard":
        for panel in json.loads(attributes["panelsJSON"]):
            yield f"{panel['panelIndex']}:{panel['panelRefName']}"
    elif item["type"] == "map":
        yield from re.findall(r'"indexPatternRefName":"([^"]+)"', attributes["layerListJSON"])
    elif item["type"] == "search":
        source = json.loads(attributes["kibanaSavedObjectMeta"]["searchSourceJSON"])
        yield source.get("indexRefName", "(indexRefName is missing)")


def of_grid(name: str, panels: list[dict[str, Any]]) -> Iterator[str]:
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridData"]
        if grid["i"] != panel["panelIndex"]:
            yield f"{name}: panel {panel['panelIndex']} has the grid's i {grid['i']}"
        if grid["x"] + grid["w"] > 48:
            yield f"{name}: panel {panel['panelIndex']} is wider than the page"
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        if cells & taken:
            yield f"{name}: panel {panel['panelIndex']} lies on another"
        taken |= cells
