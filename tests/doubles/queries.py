"""What Kibana's browser would ask Elasticsearch for our objects, so that the real one can be asked the same.

Written after Kibana's sources: the time range and the query are filters, Lens turns columns into aggregations, Maps asks
for tiles of a grid, for documents within the shown box, and for the terms of a join.
"""

from __future__ import annotations

import json
import re
from typing import Any

Query = dict[str, Any]
WORLD = {"top_left": {"lat": 85, "lon": -180}, "bottom_right": {"lat": -85, "lon": 180}}
GRID_PRECISION = 4  # of a coarse grid over the whole world


def kql(text: str) -> list[Query]:
    """The filters of the few forms of Kibana's language that our objects use. Raises ValueError for any other."""
    if not text:
        return []
    found = re.fullmatch(r'([\w.@]+) : (?:"([^"]*)"|(\S+))', text)
    if not found:
        raise ValueError(f"not one of the forms that are known here: {text}")
    field, phrase, word = found.groups()
    if phrase is not None:
        return [{"match_phrase": {field: phrase}}]
    if "*" in word:
        return [{"query_string": {"fields": [field], "query": word}}]
    return [{"match": {field: word}}]


def filtered(query: str, since: str, until: str, *more: Query) -> Query:
    clock = {"range": {"@timestamp": {"gte": since, "lte": until, "format": "strict_date_optional_time"}}}
    return {"bool": {"filter": [clock, *kql(query), *more], "must": [], "should": [], "must_not": []}}


# --- Lens -------------------------------------------------------------------------------------------------------


def lens_query(item: dict[str, Any], since: str, until: str) -> Query:
    state = item["attributes"]["state"]
    (layer,) = state["datasourceStates"]["formBased"]["layers"].values()
    aggregations: Query = {}
    columns = layer["columns"]
    metrics = {
        name: metric(columns[name]) for name in layer["columnOrder"] if not columns[name]["isBucketed"]
    }
    for name in reversed([name for name in layer["columnOrder"] if columns[name]["isBucketed"]]):
        inner = {**{key: value for key, value in metrics.items() if value}, **aggregations}
        aggregations = {name: {**bucket(columns[name], columns), **({"aggs": inner} if inner else {})}}
    query = filtered(state["query"]["query"], since, until)
    return {"size": 0, "track_total_hits": True, "query": query, "aggs": aggregations}


def metric(column: dict[str, Any]) -> Query | None:
    """A count is in every bucket anyway."""
    kinds = {"unique_count": "cardinality", "max": "max"}
    if column["operationType"] == "count":
        return None
    return {kinds[column["operationType"]]: {"field": column["sourceField"]}}


def bucket(column: dict[str, Any], columns: dict[str, Any]) -> Query:
    if column["operationType"] == "date_histogram":
        return {
            "date_histogram": {"field": column["sourceField"], "fixed_interval": "30m", "min_doc_count": 1}
        }
    params = column["params"]
    by = params["orderBy"]["columnId"]
    order = {"_count" if columns[by]["operationType"] == "count" else by: params["orderDirection"]}
    return {
        "terms": {"field": column["sourceField"], "order": order, "size": params["size"], "shard_size": 25}
    }


# --- Maps -------------------------------------------------------------------------------------------------------


def map_queries(item: dict[str, Any], since: str, until: str) -> dict[str, Query]:
    """One for each layer with data, and for each of its joins."""
    asked: dict[str, Query] = {}
    for layer in json.loads(item["attributes"]["layerListJSON"]):
        source = layer["sourceDescriptor"]
        query = layer.get("query", {}).get("query", "")
        if source["type"] == "ES_GEO_GRID":
            asked[layer["id"]] = grid(source, filtered(query, since, until, in_box(source["geoField"])))
        elif source["type"] == "ES_SEARCH":
            asked[layer["id"]] = documents(source, query, since, until)
        for number, join in enumerate(layer["joins"]):
            asked[f"{layer['id']} join {number}"] = joined(join["right"], since, until)
    return asked


def in_box(field: str) -> Query:
    """Where the shown part of the world is; documents without a place are left out."""
    return {"bool": {"must": [{"exists": {"field": field}}, {"geo_bounding_box": {field: WORLD}}]}}


def grid(source: dict[str, Any], query: Query) -> Query:
    tiles = {"field": source["geoField"], "precision": GRID_PRECISION, "bounds": WORLD, "size": 10000}
    centre = {"gridCentroid": {"geo_centroid": {"field": source["geoField"]}}}
    split = {"gridSplit": {"geotile_grid": tiles, "aggs": centre}}
    return {"size": 0, "track_total_hits": False, "query": query, "aggs": split}


def documents(source: dict[str, Any], query: str, since: str, until: str) -> Query:
    bounds = [in_box(source["geoField"])] if source["filterByMapBounds"] else []
    asked: Query = {
        "size": 10000,
        "track_total_hits": 10001,
        "_source": False,
        "fields": [source["geoField"]],
    }
    if source["applyGlobalTime"]:
        asked["query"] = filtered(query, since, until, *bounds)
    if source["sortField"]:
        asked["sort"] = [{source["sortField"]: {"order": source["sortOrder"]}}]
    return asked


def joined(source: dict[str, Any], since: str, until: str) -> Query:
    terms = {"field": source["term"], "size": source["size"]}
    query = filtered(source.get("whereQuery", {}).get("query", ""), since, until)
    return {"size": 0, "track_total_hits": False, "query": query, "aggs": {"join": {"terms": terms}}}


# --- Discover ---------------------------------------------------------------------------------------------------


def search_query(item: dict[str, Any], since: str, until: str) -> Query:
    attributes = item["attributes"]
    source = json.loads(attributes["kibanaSavedObjectMeta"]["searchSourceJSON"])
    return {
        "size": 500,
        "track_total_hits": True,
        "query": filtered(source["query"]["query"], since, until),
        "sort": [
            {field: {"order": order, "format": "strict_date_optional_time", "unmapped_type": "boolean"}}
            for field, order in attributes["sort"]
        ],
        "fields": [{"field": "*", "include_unmapped": True}],
        "_source": False,
    }


# --- all --------------------------------------------------------------------------------------------------------


def queries(objects: list[dict[str, Any]], since: str, until: str) -> dict[str, tuple[str, Query]]:
    """name -> (index, query) for every panel: a layer of a map is one of its own."""
    views = {item["id"]: item["attributes"]["title"] for item in objects if item["type"] == "index-pattern"}
    asked: dict[str, tuple[str, Query]] = {}
    for item in objects:
        if item["type"] == "lens":
            asked[item["id"]] = views[item["references"][0]["id"]], lens_query(item, since, until)
        elif item["type"] == "search":
            asked[item["id"]] = views[item["references"][0]["id"]], search_query(item, since, until)
        elif item["type"] == "map":
            layers = map_queries(item, since, until).items()
            for reference, (name, query) in zip(item["references"], layers, strict=True):
                asked[f"{item['id']}: {name}"] = views[reference["id"]], query
    return asked
