"""Saved objects: what an import is asked for, and what an export says. They survive a restart in one file."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

Object = dict[str, Any]
Errors = list[dict[str, Any]]
# The newest shape that is known of each type.
NEWEST = {
    "index-pattern": "8.0.0",
    "lens": "8.9.0",
    "map": "8.4.0",
    "search": "10.5.0",
    "dashboard": "10.4.0",
    "visualization": "8.5.0",
}
MOST_OBJECTS, MOST_BYTES = 10_000, 26_214_400
DASHBOARD_KEYS = {
    *("title", "description", "panelsJSON", "optionsJSON", "timeRestore", "timeFrom", "timeTo"),
    *("refreshInterval", "kibanaSavedObjectMeta", "version", "controlGroupInput", "hits"),
}
SEARCH_KEYS = {
    *(
        "title",
        "description",
        "columns",
        "sort",
        "grid",
        "hideChart",
        "isTextBasedQuery",
        "usesAdHocDataView",
    ),
    *(
        "kibanaSavedObjectMeta",
        "timeRestore",
        "timeRange",
        "refreshInterval",
        "viewMode",
        "rowHeight",
        "tabs",
    ),
}


class Bad(Exception):
    """The whole request is refused: (status, words, more)."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.more = status, message, more


def parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def name(item: Object) -> tuple[str, str]:
    return item["type"], item["id"]


def is_text(attributes: Object, key: str) -> str:
    value = attributes.get(key)
    if value is None or isinstance(value, str):
        return ""
    kind = "Array" if isinstance(value, list) else type(value).__name__.replace("dict", "Object")
    return f"[attributes.{key}]: expected value of type [string] but got [{kind}]"


def schema_fault(item: Object) -> str:
    """The words of the first thing in the attributes that Kibana would not take; empty if there is none."""
    kind, attributes = item["type"], item["attributes"]
    if kind not in ("index-pattern",) and not isinstance(attributes.get("title"), str):
        return "[attributes.title]: expected value of type [string] but got [undefined]"
    checks = {"dashboard": dashboard_faults, "search": search_faults, "map": map_faults}
    return next((fault for fault in checks.get(kind, no_faults)(attributes) if fault), "")


def no_faults(attributes: Object) -> Iterator[str]:
    yield ""


def unknown_keys(attributes: Object, known: set[str]) -> Iterator[str]:
    for key in sorted(attributes.keys() - known):
        yield f"[attributes.{key}]: definition for this key is missing"


def dashboard_faults(attributes: Object) -> Iterator[str]:
    yield from unknown_keys(attributes, DASHBOARD_KEYS)
    yield is_text(attributes, "panelsJSON")
    yield is_text(attributes, "optionsJSON")
    yield from meta_faults(attributes)
    interval = attributes.get("refreshInterval")
    if interval is not None and set(interval) != {"pause", "value"}:
        yield "[attributes.refreshInterval]: both pause and value are needed"
    for panel in json.loads(attributes.get("panelsJSON", "[]")):
        if panel["gridData"].get("i") != panel["panelIndex"]:
            yield f"[attributes.panelsJSON]: panel {panel['panelIndex']} is not the grid's i"


def search_faults(attributes: Object) -> Iterator[str]:
    yield from unknown_keys(attributes, SEARCH_KEYS)
    if "kibanaSavedObjectMeta" not in attributes:
        yield "[attributes.kibanaSavedObjectMeta.searchSourceJSON]: expected value of type [string] but got [undefined]"
    yield from meta_faults(attributes)


def map_faults(attributes: Object) -> Iterator[str]:
    for key in ("mapStateJSON", "layerListJSON", "uiStateJSON"):
        yield is_text(attributes, key)


def meta_faults(attributes: Object) -> Iterator[str]:
    yield is_text(attributes.get("kibanaSavedObjectMeta", {}), "searchSourceJSON").replace(
        "[attributes.", "[attributes.kibanaSavedObjectMeta."
    )


def refers_to_nothing(item: Object) -> list[str]:
    """Names of references that its attributes use and its references lack: Kibana stumbles over them when it shows it."""
    names = {reference["name"] for reference in item["references"]}
    text = json.dumps(item["attributes"])
    used = set()
    if item["type"] == "map":
        for layer in json.loads(item["attributes"]["layerListJSON"]):
            for source in (layer["sourceDescriptor"], *(join["right"] for join in layer.get("joins", []))):
                used.add(source.get("indexPatternRefName"))
    elif item["type"] == "dashboard":
        panels = json.loads(item["attributes"]["panelsJSON"])
        used = {
            f"{panel['panelIndex']}:{panel['panelRefName']}" for panel in panels if "panelRefName" in panel
        }
    elif item["type"] == "search" and "indexRefName" in text:
        source = json.loads(item["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])
        used = {source["indexRefName"]}
    elif item["type"] == "lens":
        layers = (
            item["attributes"]
            .get("state", {})
            .get("datasourceStates", {})
            .get("formBased", {})
            .get("layers", {})
        )
        used = {f"indexpattern-datasource-layer-{layer}" for layer in layers}
    return sorted(used - names - {None})


def read_ndjson(raw: bytes) -> list[Object]:
    if len(raw) > MOST_BYTES:
        raise Bad(413, "Payload content length greater than maximum allowed: 26214400")
    try:
        lines = [json.loads(line) for line in raw.decode().splitlines() if line.strip()]
    except ValueError as error:
        raise Bad(400, f"Unexpected token in JSON: {error}") from None
    items = [line for line in lines if "exportedCount" not in line]
    if len(items) > MOST_OBJECTS:
        raise Bad(400, f"Can't import more than {MOST_OBJECTS} objects")
    names = [f"{item.get('type')}:{item.get('id')}" for item in items]
    if doubled := sorted({text for text in names if names.count(text) > 1}):
        raise Bad(400, f"Non-unique import objects detected: [{','.join(doubled)}]")
    return items


class Store:
    def __init__(self, path: str) -> None:
        self.path, self.lock = path, threading.Lock()
        self.items: dict[tuple[str, str], Object] = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.items = {name(item): item for item in json.load(file)}

    def save(self) -> None:
        with open(f"{self.path}.new", "w", encoding="utf-8") as file:
            json.dump(list(self.items.values()), file)
        os.rename(f"{self.path}.new", self.path)

    def put(self, item: Object) -> None:
        """As Kibana keeps it: in its newest version, with times."""
        migrated = {
            **item,
            "attributes": dict(item["attributes"]),
            "typeMigrationVersion": NEWEST[item["type"]],
        }
        if item["type"] == "search":  # filled in by later versions of this type
            migrated["attributes"].setdefault("tabs", [{"id": "default", "label": "Untitled"}])
        at = now()
        self.items[name(item)] = {**migrated, "created_at": at, "updated_at": at, "managed": False}

    def fault(self, item: Object, coming: set[tuple[str, str]], overwrite: bool) -> dict[str, Any] | None:
        """Why one object cannot be imported, as in `errors[].error`."""
        if item.get("type") not in NEWEST:
            return {"type": "unsupported_type"}
        version = item.get("typeMigrationVersion")
        if version is None:  # the migrations of 7.x then run over a modern object
            raise Bad(500, "An internal server error occurred. Check Kibana server logs for details.")
        if parts(version) > parts(NEWEST[item["type"]]):
            words = f'Document "{item["id"]}" belongs to a more recent version of Kibana [{version}] when the last known version is [{NEWEST[item["type"]]}].'
            return {"type": "unknown", "message": words, "statusCode": 422}
        there = coming | self.items.keys()
        missing = [ref for ref in item.get("references", []) if (ref["type"], ref["id"]) not in there]
        if missing:
            return {
                "type": "missing_references",
                "references": [{"type": ref["type"], "id": ref["id"]} for ref in missing],
            }
        if words := schema_fault(item):
            return {"type": "unknown", "message": words, "statusCode": 400}
        if unnamed := refers_to_nothing(item):
            return {
                "type": "unknown",
                "message": f'Could not find reference "{unnamed[0]}"',
                "statusCode": 400,
            }
        if name(item) in self.items and not overwrite:
            return {"type": "conflict"}
        return None

    def bring_in(self, items: list[Object], overwrite: bool) -> dict[str, Any]:
        """The answer of `_import`: 200 also where some failed."""
        with self.lock:
            coming = {name(item) for item in items if item.get("type") in NEWEST}
            errors: Errors = []
            results = []
            for item in items:
                title = item.get("attributes", {}).get("title", "")
                head = {"type": item.get("type"), "id": item.get("id"), "meta": {"title": title}}
                if error := self.fault(item, coming, overwrite):
                    errors.append({**head, "title": title, "error": error})
                else:
                    self.put(item)
                    results.append({**head, "managed": False, **({"overwrite": True} if overwrite else {})})
            self.save()
        answer = {"successCount": len(results), "success": not errors, "warnings": []}
        more = {"errors": errors} if errors else {}
        return {**answer, **more, **({"successResults": results} if results else {})}

    def export(self, wanted: list[dict[str, str]], deep: bool) -> tuple[list[Object], list[dict[str, str]]]:
        """(objects, references to nothing). Raises Bad if one that was asked for by name is not there."""
        with self.lock:
            absent = [item for item in wanted if (item["type"], item["id"]) not in self.items]
            if absent:
                error = {"statusCode": 404, "error": "Not Found", "message": "Saved object not found"}
                objects = [{**item, "error": error} for item in absent]
                raise Bad(400, "Error fetching objects to export", attributes={"objects": objects})
            found: dict[tuple[str, str], Object] = {}
            missing: list[dict[str, str]] = []
            queue = [(item["type"], item["id"]) for item in wanted]
            while queue:
                key = queue.pop()
                if key in found:
                    continue
                if key not in self.items:
                    missing.append({"type": key[0], "id": key[1]})
                    continue
                found[key] = self.items[key]
                if deep:
                    queue += [(ref["type"], ref["id"]) for ref in found[key]["references"]]
            return list(found.values()), missing

    def delete(self, kind: str, id: str) -> None:
        """What a person's click in the browser comes to; who refers to it is not asked."""
        with self.lock:
            if self.items.pop((kind, id), None) is None:
                raise Bad(404, f"Saved object [{kind}/{id}] not found")
            self.save()

    def update(self, kind: str, id: str, attributes: Object) -> Object:
        """What a person's edit in the browser comes to."""
        with self.lock:
            if (kind, id) not in self.items:
                raise Bad(404, f"Saved object [{kind}/{id}] not found")
            item = self.items[kind, id]
            item = {**item, "attributes": {**item["attributes"], **attributes}, "updated_at": now()}
            self.items[kind, id] = item
            self.save()
            return item
