"""All of it on one page, with the time picker's first choice and a refresh."""

from __future__ import annotations

from typing import Any

from fabfile.saved_objects import discover, lens
from fabfile.saved_objects.shapes import SavedObject, as_text, reference, saved_object, search_source
from fabfile.saved_objects.world_map import MAP

DASHBOARD, TITLE = "knockmap-dashboard", "SSH Scanners"
WIDTH = 48
# Rows from above, of (type, id, width); with the height of the row.
ROWS: tuple[tuple[int, tuple[tuple[str, str, int], ...]], ...] = (
    (22, (("map", MAP, 32), ("lens", lens.COUNTRIES, 16))),
    (12, (("lens", lens.TIMELINE, 36), ("lens", lens.FAMILIES, 12))),
    (16, (("lens", lens.NETWORKS, 24), ("lens", lens.ADDRESSES, 24))),
    (18, (("search", discover.LINES, 48),)),
    (12, (("lens", lens.FAILURES, 16), ("search", discover.FAILED_LINES, 32))),
)


def panels() -> list[tuple[dict[str, Any], str]]:
    """(panel, the id of the object it shows) in order."""
    found: list[tuple[dict[str, Any], str]] = []
    y = 0
    for height, row in ROWS:
        x = 0
        for type, id, width in row:
            name = f"p{len(found) + 1}"
            grid = {"x": x, "y": y, "w": width, "h": height, "i": name}
            panel = {"type": type, "panelIndex": name, "gridData": grid, "embeddableConfig": {}}
            found.append(({**panel, "panelRefName": f"panel_{name}"}, id))
            x += width
        y += height
    return found


def dashboard() -> SavedObject:
    options = {
        "useMargins": True,
        "syncColors": False,
        "syncCursor": True,
        "syncTooltips": False,
        "hidePanelTitles": False,
    }
    attributes = {
        "title": TITLE,
        "description": "Who knocks at port 22, and from where.",
        "panelsJSON": as_text([panel for panel, _ in panels()]),
        "optionsJSON": as_text(options),
        "timeRestore": True,
        "timeFrom": "now-24h",
        "timeTo": "now",
        "refreshInterval": {"pause": False, "value": 30000},
        "kibanaSavedObjectMeta": search_source(),
    }
    references = [
        reference(f"{panel['panelIndex']}:{panel['panelRefName']}", panel["type"], id)
        for panel, id in panels()
    ]
    return saved_object("dashboard", DASHBOARD, attributes, references)
