#!/usr/bin/python3 -Bs
"""On the target: the outlines of all countries as an index of ours, so that the map needs no map service.

outlines.py check     exit 0 if the index holds this file's outlines
outlines.py load      make it so
outlines.py remove    for undo
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

import countries
import kibana_api
from kibana_api import asked, elasticsearch

INDEX = "knockmap-countries"
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "world.json")
Ring = list[list[float]]


def mappings(digest: str) -> dict[str, Any]:
    # One outline that Elasticsearch cannot take shall not cost all others.
    shape = {"type": "geo_shape", "ignore_malformed": True}
    keyword = {"type": "keyword"}
    return {
        "dynamic": "strict",
        "_meta": {"sha256": digest},
        "properties": {"iso_code": keyword, "name": keyword, "geometry": shape},
    }


def contents() -> tuple[str, list[dict[str, Any]]]:
    """The file's hash, and its features."""
    with open(FILE, "rb") as file:
        data = file.read()
    return hashlib.sha256(data).hexdigest(), json.loads(data)["features"]


def turned(ring: Ring, counter_clockwise: bool) -> Ring:
    """Elasticsearch takes a wide ring that runs the other way for one over the date line (Antarctica)."""
    pairs = zip(ring, ring[1:] + ring[:1], strict=True)
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)
    return ring if (area > 0) == counter_clockwise else ring[::-1]


def geometry(shape: dict[str, Any]) -> dict[str, Any]:
    polygons = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
    turned_all = [[turned(ring, at == 0) for at, ring in enumerate(polygon)] for polygon in polygons]
    return {"type": "MultiPolygon", "coordinates": turned_all}


def lines(features: list[dict[str, Any]]) -> str:
    """The body of a `_bulk`; one country may be several features."""
    merged: dict[str, list[Any]] = {}
    for feature in features:
        code = feature["properties"]["name"]
        merged.setdefault(code, []).extend(geometry(feature["geometry"])["coordinates"])
    out = []
    for code, polygons in merged.items():
        shape = {"type": "MultiPolygon", "coordinates": polygons}
        out.append(json.dumps({"index": {"_id": code}}))
        out.append(json.dumps({"iso_code": code, "name": countries.NAMES.get(code, code), "geometry": shape}))
    return "\n".join(out) + "\n"


def check() -> int:
    """Asked as the viewer, who has to be able to read it."""
    status, found = elasticsearch.call("GET", f"/{INDEX}/_mapping", auth=kibana_api.viewer())
    if status != 200:
        return 1
    loaded = found[INDEX]["mappings"].get("_meta", {}).get("sha256")
    status, counted = elasticsearch.call("GET", f"/{INDEX}/_count", auth=kibana_api.viewer())
    digest, features = contents()
    return 0 if loaded == digest and status == 200 and counted["count"] == number(features) else 1


def number(features: list[dict[str, Any]]) -> int:
    return len({feature["properties"]["name"] for feature in features})


def load() -> None:
    digest, features = contents()
    asked(*elasticsearch.call("DELETE", f"/{INDEX}"), "removing the former outlines", 404)
    settings = {"number_of_shards": 1, "number_of_replicas": 0}
    wanted = {"settings": settings, "mappings": mappings(digest)}
    asked(*elasticsearch.call("PUT", f"/{INDEX}", wanted), f"making the index {INDEX}")
    done = asked(
        *elasticsearch.call("POST", f"/{INDEX}/_bulk?refresh=true", lines(features)), "storing the outlines"
    )
    if done["errors"]:
        first = next(item["index"] for item in done["items"] if item["index"]["status"] >= 300)
        raise kibana_api.Refused(f"the outline of {first['_id']}: {elasticsearch.reason(first)}")


def remove() -> None:
    try:
        elasticsearch.call("DELETE", f"/{INDEX}")
    except elasticsearch.Unreachable as error:
        print(f"left in Elasticsearch: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(kibana_api.run("outlines.py", {"check": check, "load": load, "remove": remove}))
