"""What Kibana shows, as reviewed source: small builders, and the NDJSON that Kibana's import takes.

shapes.py       the envelope, its versions, references, JSON that has to travel as text
data_views.py   what an index is to Kibana         discover.py   log lines (saved searches)
lens.py         pie, timeline, tables               world_map.py  the map SSH Scanners
dashboard.py    all of them on one page             references.py does every reference resolve?
"""

from __future__ import annotations

import json

from fabfile.saved_objects import dashboard, data_views, discover, lens, world_map
from fabfile.saved_objects.shapes import SavedObject


def objects(*, maps_service: bool = False) -> list[SavedObject]:
    """Every object of ours; what others refer to comes first."""
    return [
        *data_views.objects(),
        *discover.objects(),
        *lens.objects(),
        world_map.world_map(maps_service=maps_service),
        dashboard.dashboard(),
    ]


def ndjson(*, maps_service: bool = False) -> str:
    """One object a line, as `_import` takes them; the same objects give the same bytes."""
    return "".join(json.dumps(found, sort_keys=True) + "\n" for found in objects(maps_service=maps_service))
