"""The envelope of a saved object: its versions, its references, and JSON that has to travel as text."""

from __future__ import annotations

import json
from typing import Any

SavedObject = dict[str, Any]
Reference = dict[str, str]

# The newest shape that every 9.x takes. Without it Kibana replays the migrations of 7.x over a modern object.
TYPE_VERSIONS = {
    "index-pattern": "8.0.0",
    "lens": "8.9.0",
    "map": "8.4.0",
    "search": "10.5.0",
    "dashboard": "10.2.0",
}
CORE_VERSION = "8.8.0"


def saved_object(
    type: str, id: str, attributes: dict[str, Any], references: list[Reference] | None = None
) -> SavedObject:
    return {
        "type": type,
        "id": id,
        "attributes": attributes,
        "references": references or [],
        "coreMigrationVersion": CORE_VERSION,
        "typeMigrationVersion": TYPE_VERSIONS[type],
        "managed": False,
    }


def as_text(document: Any) -> str:
    """A document within a document: Kibana wants it as text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def kql(query: str = "") -> dict[str, str]:
    """A query in Kibana's own language."""
    return {"query": query, "language": "kuery"}


def reference(name: str, type: str, id: str) -> Reference:
    return {"name": name, "type": type, "id": id}


def search_source(query: str = "", index_reference: str = "") -> dict[str, str]:
    """What a saved search and a dashboard keep of their query."""
    source: dict[str, Any] = {"query": kql(query), "filter": []}
    if index_reference:
        source["indexRefName"] = index_reference
    return {"searchSourceJSON": as_text(source)}
