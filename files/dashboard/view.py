"""What the page shows of a span: every number of it is exact, whatever the filters.

Sums answer what they can (hour: countries; day and month: sources), and single events the rest, so that a year of
millions of events takes less than a second. See the tables in collector/database.py.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any

import countries
import database
from database import DAY
from query import TTLS, Query

STEPS = (10, 30, 60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, DAY, 2 * DAY, 7 * DAY, 30 * DAY)
BUCKETS = 130
PLACES = 1500  # circles on the map; the largest ones
ROWS = 12  # of a table of networks, addresses, …
SAMPLE = 20_000  # newest packets that fingerprints are counted of
MOST_EVENTS = 3_000_000  # that a filter on packets may read


class TooMuch(ValueError):
    """The answer would take too long: the message says what to ask instead."""


class View:
    """The queries on one span and its filters. `db` is a connection of database.reader()."""

    def __init__(self, db: sqlite3.Connection, query: Query) -> None:
        self.db, self.query, self.values = db, query, query.values()
        if query.of_packets and (number := self.events_at_most()) > MOST_EVENTS:
            raise TooMuch(
                f"a filter on TTL, window or port must read each of {number} events; choose a shorter span"
            )

    def rows(self, sql: str) -> list[Any]:
        return self.db.execute(sql, self.values).fetchall()

    def events_at_most(self) -> int:
        return int(
            self.rows("SELECT ifnull(sum(events), 0) FROM hour WHERE hour > :since - 3600 AND hour < :until")[
                0
            ][0]
        )

    # --- sums ------------------------------------------------------------------------------------------------

    def tally(self) -> None:
        """Fill the temporary table tally(source, place, events) with what the filters leave of the span."""
        query = self.query
        if query.of_packets:
            spans = [("event", "ts", "1", query.since, query.until)]
        else:
            spans = database.spans(query.since, query.until)
        condition = query.events_sql() if query.of_packets else query.sources_sql()
        parts = [
            f"SELECT source, place, {count} AS events FROM {table} WHERE {at} >= {start} AND {at} < {end}{condition}"
            for table, at, count, start, end in spans
            if start < end
        ]
        self.db.execute("DROP TABLE IF EXISTS temp.tally")
        self.db.execute("CREATE TEMP TABLE tally(source INTEGER, place INTEGER, events INTEGER)")
        self.db.execute(
            f"INSERT INTO tally SELECT source, place, sum(events) FROM ({' UNION ALL '.join(parts)}) GROUP BY source, place",
            self.values,
        )

    def answer(self, packets: bool = True) -> dict[str, Any]:
        self.tally()
        places = self.rows(
            "SELECT country, city, latitude, longitude, sum(events) AS k FROM tally JOIN place ON id = place"
            " GROUP BY place ORDER BY k DESC, place"
        )
        of_country: dict[str, int] = {}
        for country, *_, count in places:
            of_country[country] = of_country.get(country, 0) + count
        # Two queries: each by itself SQLite takes from an end of the index.
        first, last = self.db.execute(
            "SELECT (SELECT min(ts) FROM event), (SELECT max(ts) FROM event)"
        ).fetchone()
        step = self.step(first)
        return {
            "since": self.query.since,
            "until": self.query.until,
            "first": first,
            "last": last,
            "total": sum(of_country.values()),
            "sources": self.rows("SELECT count(DISTINCT source) FROM tally")[0][0],
            "countries": [
                {"code": code, "name": countries.name(code), "count": count}
                for code, count in sorted(of_country.items(), key=lambda item: (-item[1], item[0]))
            ],
            "places": [list(place) for place in places if place[2] is not None][:PLACES],
            "step": step,
            "series": self.series(step),
            "networks": self.networks(),
            "addresses": self.addresses(),
            "families": self.families(),
            "seen": self.seen(),
            "packets": self.packets() if packets else None,
        }

    def networks(self) -> list[dict[str, Any]]:
        rows = self.rows(
            "SELECT network, max(country), count(DISTINCT t.source), sum(events) AS k FROM tally t"
            " JOIN source s ON s.id = t.source JOIN place p ON p.id = t.place"
            f" GROUP BY network ORDER BY k DESC, network LIMIT {ROWS}"
        )
        return [dict(zip(("network", "code", "sources", "count"), row, strict=True)) for row in rows]

    def addresses(self) -> list[dict[str, Any]]:
        rows = self.rows(
            "SELECT address, country, city, k FROM (SELECT source, max(place) AS place, sum(events) AS k FROM tally"
            f" GROUP BY source ORDER BY k DESC, source LIMIT {ROWS}) t"
            " JOIN source s ON s.id = t.source JOIN place p ON p.id = t.place ORDER BY k DESC, t.source"
        )
        return [dict(zip(("address", "code", "city", "count"), row, strict=True)) for row in rows]

    def families(self) -> dict[str, dict[str, int]]:
        rows = self.rows(
            "SELECT instr(address, ':') > 0, count(DISTINCT source), sum(events) FROM tally JOIN source ON id = source GROUP BY 1"
        )
        found = {six: {"sources": sources, "count": count} for six, sources, count in rows}
        none = {"sources": 0, "count": 0}
        return {"4": found.get(0, none), "6": found.get(1, none)}

    def seen(self) -> dict[str, dict[str, int]]:
        """Sources that came for the first time in this span, and those that were here before it."""
        rows = self.rows(
            "SELECT first_seen >= :since, count(DISTINCT source), sum(events) FROM tally JOIN source ON id = source GROUP BY 1"
        )
        found = {new: {"sources": sources, "count": count} for new, sources, count in rows}
        none = {"sources": 0, "count": 0}
        return {"new": found.get(1, none), "returning": found.get(0, none)}

    # --- the timeline ----------------------------------------------------------------------------------------

    def step(self, first: int | None) -> int:
        """Seconds of a bar of the timeline, which begins with the first event there is."""
        span = self.query.until - max(self.query.since, min(first or 0, self.query.until))
        return next((step for step in STEPS if span / step <= BUCKETS), STEPS[-1])

    def series(self, step: int) -> list[list[int]]:
        """[[start of the bar, count]], without empty ones; bars begin at multiples of `step`."""
        query = self.query
        sums = [("event", "ts", "1", query.since, query.until)]
        condition = query.events_sql()
        if query.only_country and step >= 3600:
            sums = self.with_ends("hour", "hour", 3600)
            condition = ""
        elif not query.of_packets and step >= DAY:
            sums = self.with_ends("day", "day", DAY)
        parts = []
        for table, at, count, start, end in sums:
            only = " AND country = :country" if table == "hour" and query.where else ""
            only = query.sources_sql() if table == "event" and not condition else condition or only
            parts.append(
                f"SELECT {at} AS t, {count} AS n FROM {table} WHERE {at} >= {start} AND {at} < {end}{only}"
            )
        union = " UNION ALL ".join(parts)
        return [
            list(row)
            for row in self.rows(f"SELECT t / {step} * {step}, sum(n) FROM ({union}) GROUP BY 1 ORDER BY 1")
        ]

    def with_ends(self, table: str, at: str, unit: int) -> list[tuple[str, str, str, int, int]]:
        """The span from a table of sums where that has whole units of it, its ends from single events."""
        since, until = self.query.since, self.query.until
        first, last = -(-since // unit) * unit, until // unit * unit
        if first >= last:
            return [("event", "ts", "1", since, until)]
        return [
            ("event", "ts", "1", since, first),
            (table, at, "events", first, last),
            ("event", "ts", "1", last, until),
        ]

    # --- single events ---------------------------------------------------------------------------------------

    def stretches(self) -> Iterator[tuple[int, int]]:
        """(start, end) of the parts of the span in which there are matches, the newest first: what is rare is found quickly."""
        query = self.query
        if not query.of_sources or query.until - query.since <= 3 * DAY:
            yield query.since, query.until
            return
        first, last = query.since // DAY * DAY, query.until
        days = self.db.execute(
            f"SELECT DISTINCT day FROM day WHERE day >= {first} AND day < {last}{query.sources_sql()} ORDER BY day DESC",
            self.values,
        ).fetchall()
        for (day,) in days:
            yield max(day, query.since), min(day + DAY, query.until)

    def events(self, columns: str, most: int, before: tuple[int, int] | None = None) -> list[Any]:
        """At most so many matching events, the newest first; those before an event (ts, id) of an earlier page."""
        found: list[Any] = []
        for start, end in self.stretches():
            page = ""
            if before:
                end = min(end, before[0] + 1)
                page = f" AND (ts, id) < ({before[0]}, {before[1]})"
            if start < end:
                found += self.rows(
                    f"SELECT {columns} FROM event WHERE ts >= {start} AND ts < {end}{page}{self.query.events_sql()}"
                    f" ORDER BY ts DESC, id DESC LIMIT {most - len(found)}"
                )
            if len(found) >= most:
                break
        return found

    def packets(self) -> dict[str, Any]:
        """What the newest packets tell of who sends them: TTL at the start, window size, source port."""
        sample = self.events("ttl, window, source_port", SAMPLE)
        ttls, windows, ports = map(Counter, zip(*sample, strict=True)) if sample else (Counter(),) * 3
        starts: Counter[int] = Counter()
        for ttl, count in ttls.items():
            if ttl is not None:
                starts[initial_ttl(ttl)] += count
        return {"of": len(sample), "ttl": top(starts), "window": top(windows), "port": top(ports)}


def initial_ttl(ttl: int) -> int:
    """What a packet most likely set out with."""
    return next(start for start, (_, most) in TTLS.items() if ttl <= most)


def top(counts: Counter[Any]) -> list[list[int]]:
    known = [(value, count) for value, count in counts.items() if value is not None]
    return [list(item) for item in sorted(known, key=lambda item: (-item[1], item[0]))[:8]]
