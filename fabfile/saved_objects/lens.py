"""Pie, timeline and tables: what Kibana calls Lens. Each has one layer over the data stream."""

from __future__ import annotations

from typing import Any

from fabfile.saved_objects.data_views import KNOCKS, SCANS
from fabfile.saved_objects.discover import FAILED
from fabfile.saved_objects.shapes import SavedObject, kql, reference, saved_object

LAYER = "layer1"
COUNTRIES, TIMELINE, FAMILIES = "knockmap-scanning-countries", "knockmap-timeline", "knockmap-families"
NETWORKS, ADDRESSES, FAILURES = "knockmap-networks", "knockmap-addresses", "knockmap-failures"
Column = dict[str, Any]


def count(label: str = "SYNs") -> Column:
    return {
        "label": label,
        "customLabel": True,
        "dataType": "number",
        "operationType": "count",
        "isBucketed": False,
        "scale": "ratio",
        "sourceField": "___records___",
        "params": {"emptyAsNull": True},
    }


def unique(field: str, label: str) -> Column:
    return {
        "label": label,
        "customLabel": True,
        "dataType": "number",
        "operationType": "unique_count",
        "isBucketed": False,
        "scale": "ratio",
        "sourceField": field,
        "params": {"emptyAsNull": True},
    }


def newest(label: str) -> Column:
    """The time of the last one."""
    return {
        "label": label,
        "customLabel": True,
        "dataType": "date",
        "operationType": "max",
        "isBucketed": False,
        "scale": "ratio",
        "sourceField": "@timestamp",
        "params": {"emptyAsNull": True},
    }


def terms(field: str, label: str, size: int, *, type: str = "string", other: bool = False) -> Column:
    """The `size` most frequent values of a field, by the column `count`."""
    return {
        "label": label,
        "customLabel": True,
        "dataType": type,
        "operationType": "terms",
        "isBucketed": True,
        "scale": "ordinal",
        "sourceField": field,
        "params": {
            "size": size,
            "orderBy": {"type": "column", "columnId": "count"},
            "orderDirection": "desc",
            "otherBucket": other,
            "missingBucket": False,
            "parentFormat": {"id": "terms"},
        },
    }


def over_time() -> Column:
    return {
        "label": "@timestamp",
        "dataType": "date",
        "operationType": "date_histogram",
        "isBucketed": True,
        "scale": "interval",
        "sourceField": "@timestamp",
        "params": {"interval": "auto", "includeEmptyRows": True, "dropPartials": False},
    }


def lens(
    id: str, title: str, type: str, columns: dict[str, Column], shown: dict[str, Any], query: str = SCANS
) -> SavedObject:
    """`columns` in Kibana's order: buckets first, then numbers."""
    assert list(columns) == sorted(columns, key=lambda name: not columns[name]["isBucketed"])
    layer = {"columnOrder": list(columns), "columns": columns, "incompleteColumns": {}}
    attributes = {
        "title": title,
        "description": "",
        "visualizationType": type,
        "state": {
            "datasourceStates": {"formBased": {"layers": {LAYER: layer}}},
            "visualization": shown,
            "query": kql(query),
            "filters": [],
            "internalReferences": [],
            "adHocDataViews": {},
        },
    }
    name = f"indexpattern-datasource-layer-{LAYER}"
    return saved_object("lens", id, attributes, [reference(name, "index-pattern", KNOCKS)])


def donut(id: str, title: str, bucket: Column) -> SavedObject:
    layer = {
        "layerId": LAYER,
        "layerType": "data",
        "primaryGroups": ["bucket"],
        "metrics": ["count"],
        "numberDisplay": "percent",
        "categoryDisplay": "default",
        "legendDisplay": "default",
        "nestedLegend": False,
    }
    return lens(
        id, title, "lnsPie", {"bucket": bucket, "count": count()}, {"shape": "donut", "layers": [layer]}
    )


def table(id: str, title: str, columns: dict[str, Column], query: str = SCANS) -> SavedObject:
    shown = {
        "layerId": LAYER,
        "layerType": "data",
        "columns": [{"columnId": name} for name in columns],
        "sorting": {"columnId": "count", "direction": "desc"},
    }
    return lens(id, title, "lnsDatatable", columns, shown, query)


def timeline() -> SavedObject:
    columns = {
        "country": terms("source.geo.country_name", "Country", 8, other=True),
        "time": over_time(),
        "count": count(),
    }
    layer = {
        "layerId": LAYER,
        "layerType": "data",
        "seriesType": "bar_stacked",
        "xAccessor": "time",
        "splitAccessor": "country",
        "accessors": ["count"],
    }
    shown = {
        "legend": {"isVisible": True, "position": "right"},
        "preferredSeriesType": "bar_stacked",
        "valueLabels": "hide",
        "fittingFunction": "None",
        "layers": [layer],
    }
    return lens(TIMELINE, "Timeline", "lnsXY", columns, shown)


def networks() -> SavedObject:
    columns = {
        "name": terms("source.as.organization.name", "Network", 15),
        "number": terms("source.as.number", "ASN", 1, type="number"),
        "count": count(),
        "addresses": unique("source.ip", "Addresses"),
    }
    return table(NETWORKS, "Top networks (ASN)", columns)


def addresses() -> SavedObject:
    columns = {
        "address": terms("source.ip", "Address", 15, type="ip"),
        "country": terms("source.geo.country_name", "Country", 1),
        "count": count(),
        "last": newest("Last seen"),
    }
    return table(ADDRESSES, "Top addresses", columns)


def objects() -> list[SavedObject]:
    return [
        donut(COUNTRIES, "Scanning Countries", terms("source.geo.country_name", "Country", 15, other=True)),
        timeline(),
        donut(FAMILIES, "IPv4 and IPv6", terms("network.type", "Family", 2)),
        networks(),
        addresses(),
        table(
            FAILURES,
            "Failures by kind",
            {"tag": terms("tags", "Tag", 10), "count": count("Lines")},
            FAILED,
        ),
    ]
