"""The filter geoip, on real databases in MaxMind's format.

Which type of database it is decides what is looked up, as upstream: a name with "City", "Country", "GeoLite2-ASN", …;
with any other the pipeline starts, and dies at the first event. Records are MaxMind's nested ones: the flat ones of other
packages fail to be read, whatever their type says.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import maxminddb

from . import ConfigurationError, NotDoubled
from .event import Event
from .options import Option, Options
from .plugins import Filter

# The double brings tiny databases of its own in place of the bundled ones.
BUNDLED = Path(os.environ.get("LOGSTASH_DOUBLE_GEOIP", "/usr/share/logstash/vendor/geoip"))
TYPES = (
    "City",
    "Country",
    "GeoIP2-Domain",
    "GeoLite2-ASN",
    "GeoIP2-ISP",
    "Enterprise",
    "GeoIP2-Anonymous-IP",
)
FIELDS = {
    "autonomous_system_number": "[as][number]",
    "autonomous_system_organization": "[as][organization][name]",
    "city_name": "[geo][city_name]",
    "continent_code": "[geo][continent_code]",
    "continent_name": "[geo][continent_name]",
    "country_code2": "[geo][country_iso_code]",
    "country_name": "[geo][country_name]",
    "ip": "[ip]",
    "location": "[geo][location]",
    "postal_code": "[geo][postal_code]",
    "region_iso_code": "[geo][region_iso_code]",
    "region_name": "[geo][region_name]",
    "timezone": "[geo][timezone]",
}
DEFAULTS = {
    "City": "ip city_name continent_code country_name country_code2 postal_code region_name region_iso_code timezone location",
    "Country": "ip country_code2 country_name continent_name",
    "GeoLite2-ASN": "ip autonomous_system_number autonomous_system_organization",
}


class GeoIP(Filter):
    name = "geoip"
    options: ClassVar[Options] = {
        "source": Option(required=True),
        "target": Option(),
        "database": Option("path"),
        "default_database_type": Option(default="City", choices=("City", "ASN")),
        "fields": Option("array"),
        "cache_size": Option("number", 1000),
        "tag_on_failure": Option("array", ["_geoip_lookup_failure"]),
        "ecs_compatibility": Option(choices=("disabled", "v1", "v8"), doubled=False),
    }

    def register(self) -> None:
        self.target = self.settings["target"] or self.target_of_source()
        file = (
            self.settings["database"] or BUNDLED / f"GeoLite2-{self.settings['default_database_type']}.mmdb"
        )
        try:
            self.reader = maxminddb.open_database(file)
        except (maxminddb.InvalidDatabaseError, OSError) as error:
            raise self.refuse(f"The database provided is invalid or corrupted. ({error})") from error
        name = str(self.reader.metadata().database_type)
        self.kind = next((kind for kind in TYPES if kind in name), "")
        self.fields = self.settings["fields"] or DEFAULTS.get(self.kind, "").split()
        if illegal := sorted({field.lower() for field in self.fields} - FIELDS.keys()):
            raise self.refuse(f"illegal field value {illegal[0]}. valid values are {sorted(FIELDS)}")

    def target_of_source(self) -> str:
        source = str(self.settings["source"])
        if source.endswith("[ip]") and source != "[ip]":
            return source.removesuffix("[ip]")
        raise self.refuse(
            "GeoIP Filter in ECS-Compatiblity mode requires a `target` when `source` is not an `ip` sub-field, eg. [client][ip]"
        )

    def filter(self, event: Event) -> None:
        if not self.kind:
            raise ConfigurationError(f"Unsupported database type {self.reader.metadata().database_type}")
        found = self.located(event)
        if found is not None and event.get(self.target) is None:
            event.set(self.target, {})
        for field in found or {}:
            event.set(f"{self.target}{FIELDS[field]}", (found or {})[field])
        if found:
            self.matched(event)
        else:
            self.failed(event)

    def located(self, event: Event) -> dict[str, Any] | None:
        """None where there is no address at all; nothing in it where there is no record."""
        address = event.get(self.settings["source"])
        address = address[0] if isinstance(address, list) and address else address
        if not address:
            return None
        try:
            record = self.reader.get(address)
        except ValueError:  # no address; or IPv6 in a database of IPv4
            return {}
        if not isinstance(record, dict):
            return {}
        try:
            values = dict(self.values(record, address))
        except (AttributeError, TypeError):  # no record of MaxMind's: upstream logs it and goes on
            return {}
        return {
            field: values[field.lower()]
            for field in map(str.lower, self.fields)
            if values.get(field) is not None
        }

    def values(self, record: dict[str, Any], address: str) -> Iterator[tuple[str, Any]]:
        if self.kind == "City" and not (found := dict(city(record))):
            return
        yield "ip", java_form(address)
        if self.kind == "City":
            yield from found.items()
        elif self.kind == "Country":
            yield from country(record)
        elif self.kind == "GeoLite2-ASN":
            yield "autonomous_system_number", record.get("autonomous_system_number")
            yield "autonomous_system_organization", record.get("autonomous_system_organization")
        else:
            raise NotDoubled(f"a database of type {self.kind}")


def java_form(address: str) -> str:
    """IPv6 in eight groups, without leading zeros and without "::"."""
    ip = ipaddress.ip_address(address)
    return address if ip.version == 4 else ":".join(f"{int(group, 16):x}" for group in ip.exploded.split(":"))


def english(part: dict[str, Any]) -> Any:
    return part.get("names", {}).get("en")


def country(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "country_code2", record.get("country", {}).get("iso_code")
    yield "country_name", english(record.get("country", {}))
    yield "continent_name", english(record.get("continent", {}))


def city(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Nothing at all where there are no coordinates."""
    location = record.get("location", {})
    latitude, longitude = location.get("latitude"), location.get("longitude")
    if latitude is None and longitude is None:
        return
    region = (record.get("subdivisions") or [{}])[-1]
    code = record.get("country", {}).get("iso_code")
    yield from country(record)
    yield "continent_code", record.get("continent", {}).get("code")
    yield "city_name", english(record.get("city", {}))
    yield "postal_code", record.get("postal", {}).get("code")
    yield "region_name", english(region)
    yield "region_iso_code", f"{code}-{region['iso_code']}" if code and "iso_code" in region else None
    yield "timezone", location.get("time_zone")
    yield "location", {"lat": latitude, "lon": longitude}
