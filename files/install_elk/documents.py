"""The events in Elasticsearch as `scanners` and `export` ask for them: filters to a query, a document to a row.

Their fields are ECS, as pipeline.conf makes them and mappings.json types them.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

from elasticsearch import DATA_STREAMS, Unreachable, call, reason
from mmdb import metadata
from query import TTLS, BadRequest, Query

SCANS = {"term": {"event.action": "ssh-scan"}}
PAGE = 5_000
KEEP_ALIVE = "2m"  # how long Elasticsearch holds the state that an export reads, from one page to the next


class SearchError(RuntimeError):
    """Elasticsearch did not answer a search: what it said."""


def search(body: dict[str, Any], path: str = f"/{DATA_STREAMS}/_search") -> dict[str, Any]:
    """Raises SearchError, also for an answer that is not whole."""
    status, answer = call("POST", path, body, auth="reader")
    if status != 200:
        raise SearchError(f"Elasticsearch answers {status}: {reason(answer)}")
    if answer.get("timed_out") or answer.get("_shards", {}).get("failed"):
        raise SearchError(f"Elasticsearch answers for a part of the data only: {answer.get('_shards')}")
    return dict(answer)


def clauses(asked: Query) -> list[dict[str, Any]]:
    """All that must hold: the span, and each filter. Raises BadRequest for one that only the embedded stack knows."""
    span = {"range": {"@timestamp": {"gte": asked.since, "lt": asked.until, "format": "epoch_second"}}}
    return [span, SCANS, *(clause for name, value in asked.where for clause in filter_of(name, value))]


def filter_of(name: str, value: str) -> list[dict[str, Any]]:
    if name == "country":
        return [term("source.geo.country_iso_code", value) if value else MISSING_COUNTRY]
    if name == "city":
        country, city = value.split("/", 1)
        return [term("source.geo.country_iso_code", country), term("source.geo.city_name", city)]
    if name == "ttl":
        least, most = TTLS[int(value)]
        return [{"range": {"iptables.ttl": {"gte": least, "lte": most}}}]
    if name == "family":
        return [term("network.type", f"ipv{value}")]
    if name in FIELDS:
        return [term(FIELDS[name], value)]
    raise BadRequest(f"{name}: cannot be asked for with stack = elastic; use Kibana")


def term(field: str, value: str) -> dict[str, Any]:
    return {"term": {field: value}}


MISSING_COUNTRY = {"bool": {"must_not": {"exists": {"field": "source.geo.country_iso_code"}}}}
# A term on a field of addresses may be a network.
FIELDS = {
    "network": "source.ip",
    "address": "source.ip",
    "window": "iptables.tcp.window",
    "port": "source.port",
}


def pages(asked: Query) -> Iterator[list[dict[str, Any]]]:
    """Every matching event, the newest first, as its documents; what comes meanwhile is not among them."""
    status, opened = call("POST", f"/{DATA_STREAMS}/_pit?keep_alive={KEEP_ALIVE}", None, auth="reader")
    if status != 200:
        raise SearchError(f"Elasticsearch answers {status}: {reason(opened)}")
    pit, after = opened["id"], None
    try:
        while True:
            body: dict[str, Any] = {
                "size": PAGE,
                "query": {"bool": {"filter": clauses(asked)}},
                "sort": [{"@timestamp": "desc"}, {"_shard_doc": "desc"}],
                "pit": {"id": pit, "keep_alive": KEEP_ALIVE},
                "track_total_hits": False,
                **({"search_after": after} if after else {}),
            }
            answer = search(body, "/_search")
            pit, hits = answer["pit_id"], answer["hits"]["hits"]
            if not hits:
                return
            yield [hit["_source"] for hit in hits]
            after = hits[-1]["sort"]
    finally:
        call("DELETE", "/_pit", {"id": pit}, auth="reader")


def field(document: dict[str, Any], path: str) -> Any:
    """The value at `source.geo.location.lat`; None where there is none."""
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def network_of(address: str) -> str:
    """The /24 or /48 that an address is in."""
    prefix = 48 if ":" in address else 24
    return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))


def epoch(document: dict[str, Any]) -> int:
    """Seconds since the epoch."""
    # Logstash's own clock has nanoseconds, which Python 3.10 does not take.
    stamp = re.sub(r"\.\d+", "", str(document["@timestamp"])).replace("Z", "+00:00")
    moment = datetime.fromisoformat(stamp)
    return int(moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp())


def built(paths: list[str]) -> tuple[int | None, str]:
    """(epoch at which the oldest of these GeoIP databases was built, their kinds); (None, "") of none."""
    known = [metadata(path) for path in paths if os.path.exists(path)]
    return min((at for at, _ in known), default=None), ", ".join(kind for _, kind in known)


def told(main: Callable[[], None]) -> None:
    """Run a program of ours; what Elasticsearch refuses becomes one sentence."""
    try:
        main()
    except (SearchError, Unreachable, BadRequest) as error:
        sys.exit(str(error))


def now() -> int:
    return int(time.time()) + 1


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
