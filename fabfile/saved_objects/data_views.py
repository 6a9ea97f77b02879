"""What Kibana calls a data view (in its files: index-pattern)."""

from __future__ import annotations

from fabfile.saved_objects.shapes import SavedObject, saved_object

KNOCKS, KNOCKS_INDEX = "knockmap-knocks", "logs-iptables.ssh-*"
# Outlines of the countries, so that the map needs no service of Elastic's.
COUNTRIES = COUNTRIES_INDEX = "knockmap-countries"
SCANS = 'event.action : "ssh-scan"'


def objects() -> list[SavedObject]:
    knocks = {"title": KNOCKS_INDEX, "name": "SSH scanners", "timeFieldName": "@timestamp"}
    countries = {"title": COUNTRIES_INDEX, "name": "Countries (outlines)"}
    return [
        saved_object("index-pattern", KNOCKS, knocks),
        saved_object("index-pattern", COUNTRIES, countries),
    ]
