"""Where an address is, by MaxMind-format databases: those of MaxMind, DB-IP and IPinfo, nested and flat."""

from __future__ import annotations

import glob
import os
from typing import Any, NamedTuple

try:
    import maxminddb
except ImportError:  # the service collects without it, and says so
    maxminddb = None  # type: ignore[assignment]


class Place(NamedTuple):
    """ISO 3166 country code ("" if unknown), city name ("" if unknown), degrees north and east or None."""

    country: str
    city: str
    latitude: float | None
    longitude: float | None


NOWHERE = Place("", "", None, None)


# Each lookup leaves pages of the mapped files in our memory (64 kB at a time); opening them anew, in 0.15 ms, gives those back.
REOPEN_AFTER = 200


class Atlas:
    """All databases of a folder. `changed()` tells when one came or went; then make a new Atlas."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.seen = self.files()
        self.lookups = 0
        self.readers = self.open()
        self.know_ipv4 = list(map(knows_ipv4, self.readers))

    def open(self) -> list[Any]:
        """A larger database knows cities; a smaller one only countries, for what the first does not know."""
        paths = sorted((path for path, *_ in self.seen), key=os.path.getsize, reverse=True)
        return [reader for path in paths if (reader := open_database(path))]

    def files(self) -> list[tuple[str, int, int]]:
        """(path, inode, mtime) of each database."""
        found = []
        for path in sorted(glob.glob(f"{self.folder}/*.mmdb")):
            try:
                info = os.stat(path)
            except FileNotFoundError:
                continue
            found.append((path, info.st_ino, info.st_mtime_ns))
        return found

    def contents(self) -> list[tuple[str, int]]:
        """(name, when it was built) of each database: the same data, pushed again, are the same."""
        return [
            (str(reader.metadata().database_type), int(reader.metadata().build_epoch))
            for reader in self.readers
        ]

    def changed(self) -> bool:
        return self.files() != self.seen

    def locate(self, address: str) -> Place:
        """Of all databases the one that says most."""
        self.lookups += 1
        if self.lookups % REOPEN_AFTER == 0:
            self.readers = self.open()
        best = NOWHERE
        ipv6 = ":" in address
        for reader, ipv4 in zip(self.readers, self.know_ipv4, strict=True):
            record = answer(reader, address) if ipv6 or ipv4 else None
            if isinstance(record, dict):
                place = place_of(record)
                if place.latitude is not None and place.country:
                    return place
                best = max(best, place, key=lambda p: bool(p.country) + bool(p.city))
        return best

    def built(self) -> int | None:
        """When the oldest database was built, in seconds since the epoch."""
        return min((int(reader.metadata().build_epoch) for reader in self.readers), default=None)

    def kinds(self) -> list[str]:
        return [str(reader.metadata().database_type) for reader in self.readers]


def open_database(path: str) -> Any:
    """A reader, or None for a file that is no database (it is named in the log by the caller)."""
    if maxminddb is None:
        return None
    try:
        return maxminddb.open_database(path)  # by mapping into memory: pages that are not used cost nothing
    except (maxminddb.InvalidDatabaseError, OSError, ValueError):
        return None


def knows_ipv4(reader: Any) -> bool:
    """False for a database that is all IPv6: it has one answer for the whole of IPv4, and that is none."""
    try:
        return bool(reader.get_with_prefix_len("192.0.2.1")[1])
    except (ValueError, RuntimeError):
        return False


def answer(reader: Any, address: str) -> Any:
    try:
        return reader.get(address)
    except (ValueError, RuntimeError):  # an IPv6 address and a database of IPv4; or a damaged database
        return None


def place_of(record: dict[str, Any]) -> Place:
    """A record in MaxMind's nested layout, or in the flat ones of DB-IP's packages and IPinfo."""
    country, city, location = record.get("country", {}), record.get("city", ""), record.get("location", {})
    if isinstance(country, dict):
        code = country.get("iso_code") or record.get("country_code")
    else:  # IPinfo: "country" is the code; with "country_code" beside it, "country" is a name
        code = record.get("country_code") or country
    if isinstance(city, dict):
        city = city.get("names", {}).get("en", "")
    source = location if isinstance(location, dict) and "latitude" in location else record
    latitude, longitude = (
        degrees(source.get("latitude", source.get("lat"))),
        degrees(source.get("longitude", source.get("lng"))),
    )
    if latitude is None or longitude is None:
        latitude = longitude = None
    return Place(str(code or "")[:2].upper(), str(city or ""), latitude, longitude)


def degrees(value: Any) -> float | None:
    try:
        return round(float(value), 2)
    except (TypeError, ValueError):
        return None
