"""The table of who knocked."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from fabfile.engine.errors import UsageError
from fabfile.scanners import span, table, text


@pytest.mark.parametrize(
    ("given", "seconds"), [("30m", 1800), ("24h", 86400), ("7d", 604800), ("4w", 2419200)]
)
def test_spans_are_a_number_and_a_unit(given: str, seconds: int) -> None:
    assert span(given) == seconds


@pytest.mark.parametrize("given", ["", "h", "0h", "-1h", "24", "24s", "1.5h", "99999w"])
def test_another_span_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--since"):
        span(given)


def test_numbers_stand_to_the_right_with_thin_separators() -> None:
    lines = table(("Country", "SYNs"), [("Germany", 1234567), ("Iceland", 8)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].endswith("1\u202f234\u202f567") and lines[3].endswith("        8")


def report(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "total": 3,
        "ipv4": 2,
        "ipv6": 1,
        "unparsed": 0,
        "lines": ["one line "],
        "countries": [
            {"code": "DE", "name": "Germany", "count": 2},
            {"code": "SG", "name": "Singapore", "count": 1},
        ],
        "networks": [{"network": "192.0.2.0/24", "code": "DE", "count": 2}],
        "sources": [{"address": "192.0.2.1", "code": "DE", "city": "Berlin", "count": 2}],
        "geo": {"built": time.time() - 86400 * 40, "kinds": "DBIP-City-Lite"},
    }
    return {**base, **changes}


def test_says_totals_countries_and_where_the_places_are_from() -> None:
    shown = text(report(), "24h")
    assert "3 SYNs to port 22 in the last 24h: 2 IPv4, 1 IPv6" in shown
    assert re.search(r"Germany +2 +66\.7 %", shown) and "192.0.2.0/24" in shown and "one line" in shown
    assert "40 days old" in shown and "https://db-ip.com" in shown


def test_no_scan_says_the_likely_cause() -> None:
    assert "firewall" in text(report(total=0, ipv4=0, ipv6=0), "24h")


def test_lines_that_nobody_understands_are_not_taken_for_silence() -> None:
    shown = text(report(total=0, unparsed=7), "24h")
    assert "7 lines" in shown and "Nobody knocked" not in shown
    assert "Nobody knocked" in text(report(total=0), "24h")


def test_without_a_database_or_with_unknown_lines_it_says_so() -> None:
    shown = text(report(geo={"built": None, "kinds": ""}, unparsed=7), "24h")
    assert "No GeoIP database" in shown and "7 lines" in shown
