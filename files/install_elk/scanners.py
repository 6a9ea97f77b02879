"""Who scanned: totals, countries, networks, sources and last lines of a time span, as one JSON document.

The very document that files/collector/scanners.py makes of the embedded stack's database, here from Elasticsearch.
"""

from __future__ import annotations

import argparse
import glob
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import countries
from documents import SCANS, built, clauses, compact, network_of, now, search, told
from query import Query

PIPELINE = "/etc/logstash/conf.d/knockmap-*.conf"
# As Logstash packages them; they have no version in their name.
BUNDLED = (
    "/usr/share/logstash/vendor/**/GeoLite2-City.mmdb",
    "/usr/share/logstash/vendor/**/GeoLite2-ASN.mmdb",
)
PLACE = {"country": "source.geo.country_iso_code", "city": "source.geo.city_name"}
BUCKETS = 10_000  # addresses in one answer


def sources(asked: Query) -> Iterator[tuple[str, str, str, int]]:
    """(address, country, city, number of SYNs) of every source: all sums come of these, so they are exact."""
    fields = {"address": "source.ip", **PLACE}
    by = [
        {name: {"terms": {"field": path, "missing_bucket": name in PLACE}}} for name, path in fields.items()
    ]
    composite: dict[str, Any] = {"size": BUCKETS, "sources": by}
    while True:
        body = {
            "size": 0,
            "query": {"bool": {"filter": clauses(asked)}},
            "aggs": {"all": {"composite": composite}},
        }
        found = search(body)["aggregations"]["all"]
        for bucket in found["buckets"]:
            key = bucket["key"]
            yield key["address"], key["country"] or "", key["city"] or "", bucket["doc_count"]
        if "after_key" not in found:
            return
        composite["after"] = found["after_key"]


def report(asked: Query, limit: int) -> dict[str, Any]:
    families: Counter[int] = Counter()
    by_country: Counter[str] = Counter()
    by_network: Counter[str] = Counter()
    by_source: Counter[tuple[str, str, str]] = Counter()
    code_of: dict[str, str] = {}
    for address, code, city, number in sources(asked):
        network = network_of(address)
        families[6 if ":" in address else 4] += number
        by_country[code] += number
        by_network[network] += number
        by_source[address, code, city] += number
        code_of[network] = max(code, code_of.get(network, ""))
    at, kinds = built(databases())
    return {
        "since": asked.since,
        "until": asked.until,
        "total": families.total(),
        "ipv4": families[4],
        "ipv6": families[6],
        "unparsed": unparsed(),
        "countries": [
            {"code": code, "name": countries.name(code), "count": n} for code, n in most(by_country)
        ],
        "networks": [
            {"network": network, "code": code_of[network], "count": n}
            for network, n in most(by_network)[:limit]
        ],
        "sources": [
            {"address": address, "code": code, "city": city, "count": n}
            for (address, code, city), n in most(by_source)[:limit]
        ],
        "lines": last_lines(asked, limit),
        "geo": {"built": at, "kinds": kinds},
    }


def most(counted: Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))


def last_lines(asked: Query, limit: int) -> list[str]:
    """The raw text of the newest events of the span, oldest of them first."""
    newest = {"size": limit, "sort": [{"@timestamp": "desc"}], "_source": ["message"]}
    hits = search({**newest, "query": {"bool": {"filter": clauses(asked)}}})["hits"]["hits"]
    # Of those of one millisecond, the lines themselves know more.
    return [line for _, line in sorted((hit["sort"][0], hit["_source"]["message"]) for hit in hits)]


def unparsed() -> int:
    """Lines of the log that were no packets, of all that are kept."""
    failed = {"bool": {"must_not": [SCANS, {"exists": {"field": "source.ip"}}]}}
    answer = search({"size": 0, "track_total_hits": True, "query": failed})
    return int(answer["hits"]["total"]["value"])


def databases() -> list[str]:
    """The GeoIP databases that the pipeline names; else those that come with Logstash."""
    named: list[str] = []
    for path in glob.glob(PIPELINE):
        with open(path, encoding="utf-8") as file:
            named += re.findall(r"^\s*database\s*=>\s*[\"']([^\"']+)", file.read(), re.M)
    return named or [path for pattern in BUNDLED for path in glob.glob(pattern, recursive=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=86400)
    parser.add_argument("--limit", type=int, default=10)
    given = parser.parse_args()
    until = now()
    sys.stdout.write(compact(report(Query(until - given.seconds, until), given.limit)))


if __name__ == "__main__":
    told(main)
