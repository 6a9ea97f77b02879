"""Log lines: what Kibana calls a Discover session (in its files: search)."""

from __future__ import annotations

from fabfile.saved_objects.data_views import KNOCKS, SCANS
from fabfile.saved_objects.shapes import SavedObject, reference, saved_object, search_source

LINES, FAILED_LINES = "knockmap-lines", "knockmap-failed-lines"
FAILED = "tags : *failure*"
INDEX = "kibanaSavedObjectMeta.searchSourceJSON.index"


def session(id: str, title: str, description: str, columns: list[str], query: str) -> SavedObject:
    attributes = {
        "title": title,
        "description": description,
        "columns": columns,
        "sort": [["@timestamp", "desc"]],
        "grid": {},
        "hideChart": False,
        "isTextBasedQuery": False,
        "kibanaSavedObjectMeta": search_source(query, INDEX),
    }
    return saved_object("search", id, attributes, [reference(INDEX, "index-pattern", KNOCKS)])


def objects() -> list[SavedObject]:
    who = ["source.ip", "source.geo.country_name", "source.as.organization.name", "source.port"]
    return [
        session(LINES, "Log lines", "Every SYN to port 22.", [*who, "network.type", "message"], SCANS),
        session(
            FAILED_LINES,
            "Lines with a failure",
            "Lines that could not be parsed, or whose address no database knows.",
            ["tags", "message"],
            FAILED,
        ),
    ]
