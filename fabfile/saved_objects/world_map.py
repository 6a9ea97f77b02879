"""The map SSH Scanners: countries shaded by what came from them, clusters, and single points close up.

The outlines are an index of ours, so that no browser has to ask Elastic's map service; that is an option.
"""

from __future__ import annotations

from typing import Any

from fabfile.saved_objects.data_views import COUNTRIES, KNOCKS, SCANS
from fabfile.saved_objects.shapes import Reference, SavedObject, as_text, kql, reference, saved_object

MAP = "knockmap-map"
POINTS_FROM_ZOOM = 5
Layer = dict[str, Any]


def static(**options: Any) -> dict[str, Any]:
    return {"type": "STATIC", "options": options}


def by_number(field: str, origin: str, **options: Any) -> dict[str, Any]:
    """A style that follows a number of each feature."""
    return {
        "type": "DYNAMIC",
        "options": {
            "field": {"name": field, "origin": origin},
            "fieldMetaOptions": {"isEnabled": True, "sigma": 3},
            **options,
        },
    }


def style(*, aware: bool = True, **properties: Any) -> dict[str, Any]:
    """What is not said here is as Kibana has it."""
    usual = {
        "icon": static(value="marker"),
        "symbolizeAs": {"options": {"value": "circle"}},
        "lineColor": static(color="#FFFFFF"),
        "lineWidth": static(size=1),
    }
    return {"type": "VECTOR", "properties": {**usual, **properties}, "isTimeAware": aware}


def layer(id: str, label: str, source: dict[str, Any], style: dict[str, Any], **more: Any) -> Layer:
    return {
        "id": id,
        "label": label,
        "minZoom": 0,
        "maxZoom": 24,
        "alpha": 0.75,
        "visible": True,
        "includeInFitToBounds": True,
        "type": "GEOJSON_VECTOR",
        "style": style,
        "sourceDescriptor": source,
        "joins": [],
        **more,
    }


def basemap() -> Layer:
    source = {"type": "EMS_TMS", "isAutoSelect": True, "lightModeDefault": "road_map_desaturated"}
    look = {"type": "EMS_VECTOR_TILE", "color": ""}
    return layer("basemap", "", source, look, type="EMS_VECTOR_TILE", alpha=1)


def countries(number: int) -> Layer:
    """Outlines, whatever the time and the filters; the shade is the number of scans within both."""
    shade = f"__kbnjoin__count__{COUNTRIES}-join"
    source = {
        "type": "ES_SEARCH",
        "id": f"{COUNTRIES}-source",
        "indexPatternRefName": f"layer_{number}_source_index_pattern",
        "geoField": "geometry",
        "scalingType": "LIMIT",
        "filterByMapBounds": False,
        "tooltipProperties": ["name"],
        "applyGlobalQuery": False,
        "applyGlobalTime": False,
        "applyForceRefresh": False,
        "sortField": "",
        "sortOrder": "desc",
        "topHitsSplitField": "",
        "topHitsSize": 1,
    }
    term = {
        "type": "ES_TERM_SOURCE",
        "id": f"{COUNTRIES}-join",
        "indexPatternRefName": f"layer_{number}_join_0_index_pattern",
        "term": "source.geo.country_iso_code",
        "size": 250,
        "metrics": [{"type": "count", "label": "SYNs"}],
        "whereQuery": kql(SCANS),
        "applyGlobalQuery": True,
        "applyGlobalTime": True,
        "applyForceRefresh": True,
    }
    look = style(
        aware=False,
        fillColor=by_number(shade, "join", type="ORDINAL", color="Yellow to Red", useCustomColorRamp=False),
        lineColor=static(color="#98A2B3"),
    )
    joins = [{"leftField": "iso_code", "right": term}]
    return layer("countries", "Scans by country", source, look, joins=joins, includeInFitToBounds=False)


def clusters(number: int) -> Layer:
    source = {
        "type": "ES_GEO_GRID",
        "id": "knockmap-clusters-source",
        "indexPatternRefName": f"layer_{number}_source_index_pattern",
        "geoField": "source.geo.location",
        "requestType": "point",
        "resolution": "COARSE",
        "metrics": [{"type": "count"}],
        "applyGlobalQuery": True,
        "applyGlobalTime": True,
        "applyForceRefresh": True,
    }
    look = style(
        fillColor=by_number(
            "doc_count", "source", type="ORDINAL", color="Yellow to Red", useCustomColorRamp=False
        ),
        iconSize=by_number("doc_count", "source", minSize=5, maxSize=28),
        labelText=by_number("doc_count", "source"),
    )
    return layer("clusters", "Scans, clustered", source, look, query=kql(SCANS), maxZoom=POINTS_FROM_ZOOM)


def points(number: int) -> Layer:
    source = {
        "type": "ES_SEARCH",
        "id": "knockmap-points-source",
        "indexPatternRefName": f"layer_{number}_source_index_pattern",
        "geoField": "source.geo.location",
        "scalingType": "LIMIT",
        "filterByMapBounds": True,
        "tooltipProperties": [
            *("@timestamp", "source.ip", "source.geo.city_name", "source.geo.country_name"),
            "source.as.organization.name",
        ],
        "applyGlobalQuery": True,
        "applyGlobalTime": True,
        "applyForceRefresh": True,
        "sortField": "@timestamp",
        "sortOrder": "desc",
        "topHitsSplitField": "",
        "topHitsSize": 1,
    }
    look = style(fillColor=static(color="#E7664C"), iconSize=static(size=6))
    return layer("points", "Single SYNs", source, look, query=kql(SCANS), minZoom=POINTS_FROM_ZOOM)


def references(layers: list[Layer]) -> list[Reference]:
    """By the names that the layers use; a name holds the layer's place in the list."""
    found = []
    for layer in layers:
        for source in (layer["sourceDescriptor"], *(join["right"] for join in layer["joins"])):
            if name := source.get("indexPatternRefName"):
                outlines = source["id"] == f"{COUNTRIES}-source"
                found.append(reference(name, "index-pattern", COUNTRIES if outlines else KNOCKS))
    return found


def world_map(*, maps_service: bool) -> SavedObject:
    layers = [basemap()] if maps_service else []
    for build in (countries, clusters, points):
        layers.append(build(len(layers)))
    state = {
        "zoom": 1.5,
        "center": {"lon": 10, "lat": 25},
        "timeFilters": {"from": "now-24h", "to": "now"},
        "refreshConfig": {"isPaused": False, "interval": 30000},
        "query": kql(),
        "filters": [],
        "settings": {"autoFitToDataBounds": False, "initialLocation": "LAST_SAVED_LOCATION"},
    }
    attributes = {
        "title": "SSH Scanners",
        "description": "From where port 22 is knocked at.",
        "mapStateJSON": as_text(state),
        "layerListJSON": as_text(layers),
        "uiStateJSON": as_text({"isLayerTOCOpen": False, "openTOCDetails": []}),
    }
    return saved_object("map", MAP, attributes, references(layers))
