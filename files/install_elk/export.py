"""Every event of a span on stdout, as CSV or NDJSON: what `fab export` runs where the events are in Elasticsearch.

The columns are those of the embedded stack's export.
"""

from __future__ import annotations

import argparse
import csv
import ipaddress
import sys
import time
from typing import Any

from documents import compact, epoch, field, network_of, now, pages, told
from query import query

COLUMNS = {
    "address": "source.ip",
    "country": "source.geo.country_iso_code",
    "city": "source.geo.city_name",
    "latitude": "source.geo.location.lat",
    "longitude": "source.geo.location.lon",
    "protocol": "network.transport",
    "source_port": "source.port",
    "target_port": "destination.port",
    "ttl": "iptables.ttl",
    "window": "iptables.tcp.window",
    "line": "message",
}
ORDER = ("address", "network", *list(COLUMNS)[1:])


def event(document: dict[str, Any]) -> dict[str, Any]:
    found = {name: field(document, path) for name, path in COLUMNS.items()}
    found["address"] = str(ipaddress.ip_address(str(found["address"])))  # a line has IPv6 in full length
    found["network"] = network_of(found["address"])
    found["country"], found["city"] = found["country"] or "", found["city"] or ""
    found["protocol"] = str(found["protocol"] or "tcp").upper()
    return {"ts": epoch(document), **{name: found[name] for name in ORDER}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=86400)
    parser.add_argument("--format", choices=("csv", "ndjson"), default="csv")
    parser.add_argument("--where", action="append", default=[], help="a filter, such as country:CN")
    given = parser.parse_args()
    until = now()
    asked = query(str(until - given.seconds), str(until), given.where)
    out = csv.writer(sys.stdout, lineterminator="\n")
    if given.format == "csv":
        out.writerow(("time", *ORDER))
    for page in pages(asked):
        events = map(event, page)
        if given.format == "csv":
            out.writerows(
                (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(e.pop("ts"))), *e.values()) for e in events
            )
        else:
            sys.stdout.writelines(compact(e) + "\n" for e in events)


if __name__ == "__main__":
    told(main)
