"""Who scanned: totals, countries, networks, sources and last lines of a time span, as one JSON document.

{"since", "until" (epoch), "total", "ipv4", "ipv6", "unparsed", "countries": [{"code", "name", "count"}],
 "networks": [{"network", "code", "count"}], "sources": [{"address", "code", "city", "count"}], "lines": [text],
 "geo": {"built" (epoch or null), "kinds"}}; counts fall, the newest line is the last.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import time
import zlib
from typing import Any

import countries
import database

IN_SPAN = "FROM event WHERE ts >= :since AND ts < :until"


def report(db: sqlite3.Connection, since: int, until: int, limit: int) -> dict[str, Any]:
    database.tally(db, since, until)
    span = {"since": since, "until": until, "limit": limit}

    def rows(sql: str) -> list[Any]:
        return db.execute(sql, span).fetchall()

    families = dict(
        rows("SELECT instr(address, ':') > 0, sum(events) FROM tally JOIN source ON id = source GROUP BY 1")
    )
    meta = dict(rows("SELECT key, value FROM meta"))
    return {
        "since": since,
        "until": until,
        "total": sum(families.values()),
        "ipv4": families.get(0, 0),
        "ipv6": families.get(1, 0),
        "unparsed": meta.get("unparsed", 0),
        "countries": [
            {"code": code, "name": countries.name(code), "count": n}
            for code, n in rows(
                "SELECT country, sum(events) AS k FROM tally JOIN place ON id = place GROUP BY country ORDER BY k DESC, country"
            )
        ],
        "networks": [
            {"network": network, "code": code, "count": n}
            for network, code, n in rows(
                "SELECT network, max(country), sum(events) AS k FROM tally t JOIN source s ON s.id = t.source"
                " JOIN place p ON p.id = s.place GROUP BY network ORDER BY k DESC, network LIMIT :limit"
            )
        ],
        "sources": [
            {"address": address, "code": code, "city": city, "count": n}
            for address, code, city, n in rows(
                "SELECT address, country, city, sum(events) AS k FROM tally t JOIN source s ON s.id = t.source"
                " JOIN place p ON p.id = s.place GROUP BY t.source ORDER BY k DESC, address LIMIT :limit"
            )
        ],
        "lines": last_lines(db, since, until, limit),
        "geo": {"built": meta.get("geo_built"), "kinds": meta.get("geo_kinds", "")},
    }


def last_lines(db: sqlite3.Connection, since: int, until: int, limit: int) -> list[str]:
    """The raw text of the newest events of the span, oldest of them first."""
    ids = [
        row[0]
        for row in db.execute(
            f"SELECT id {IN_SPAN} ORDER BY ts DESC, id DESC LIMIT :limit",
            {"since": since, "until": until, "limit": limit},
        )
    ]
    blocks: dict[int, list[bytes]] = {}
    lines = []
    for id in reversed(ids):
        first, text = db.execute(
            "SELECT first, text FROM line WHERE first <= ? ORDER BY first DESC LIMIT 1", (id,)
        ).fetchone()
        if first not in blocks:
            blocks[first] = zlib.decompress(text).split(b"\n")
        lines.append(blocks[first][id - first].decode(errors="replace"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default=database.PATH)
    parser.add_argument("--seconds", type=int, default=86400)
    parser.add_argument("--limit", type=int, default=10)
    given = parser.parse_args()
    until = int(time.time()) + 1
    try:
        db = database.reader(given.db)
        json.dump(report(db, until - given.seconds, until, given.limit), sys.stdout)
    except sqlite3.OperationalError as error:
        sys.exit(f"{given.db} cannot be read: {error}")


if __name__ == "__main__":
    main()
