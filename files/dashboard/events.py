"""Single events: log lines in pages, what is new, what could not be parsed, and all of them as a file."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from query import Query
from view import View

PAGE = 50  # lines
NEW = 200  # events that a look for new ones shows
RECENT = 900  # seconds; what is stored later than that is history, not news
EXPORT_PAGE = 5_000
COLUMNS = ("id", "ts", "address", "network", "country", "city", "latitude", "longitude")
PACKET = ("protocol", "source_port", "target_port", "ttl", "window")


def lines(view: View, before: tuple[int, int] | None) -> dict[str, Any]:
    """{"lines": [{id, ts, address, …, text}], "next": what `before` is for the next page, or null}."""
    events = view.events("ts, id, source, place", PAGE + 1, before)
    page = events[:PAGE]
    texts = raw(view.db, [id for _, id, _, _ in page])
    shown = []
    for ts, id, source, place in page:
        address, network = view.db.execute(
            "SELECT address, network FROM source WHERE id = ?", (source,)
        ).fetchone()
        where = view.db.execute("SELECT country, city FROM place WHERE id = ?", (place,)).fetchone()
        names = ("id", "ts", "address", "network", "country", "city", "text")
        shown.append(dict(zip(names, (id, ts, address, network, *where, texts[id]), strict=True)))
    more = f"{page[-1][0]}.{page[-1][1]}" if len(events) > PAGE else None
    return {"lines": shown, "next": more}


def raw(db: sqlite3.Connection, ids: list[int]) -> dict[int, str]:
    """The text of events; each block is unpacked once."""
    found: dict[int, str] = {}
    first, block = 0, list[bytes]()
    for id in sorted(ids):
        if not first <= id < first + len(block):
            row = db.execute(
                "SELECT first, text FROM line WHERE first <= ? ORDER BY first DESC LIMIT 1", (id,)
            ).fetchone()
            first, block = (row[0], zlib.decompress(row[1]).split(b"\n")) if row else (id, [b""])
        found[id] = block[id - first].decode(errors="replace").strip() if id - first < len(block) else ""
    return found


def live(db: sqlite3.Connection, after: int, public: bool) -> dict[str, Any]:
    """What was stored behind the event `after`, if it is news, and the newest event's id. With after = 0 only that."""
    row = db.execute("SELECT first + count - 1 FROM line ORDER BY first DESC LIMIT 1").fetchone()
    last, now = (row[0] if row else 0), int(time.time())
    events = []
    if 0 < after < last:
        events = db.execute(
            "SELECT e.id, e.ts, country, city, latitude, longitude, network, address FROM"
            " (SELECT * FROM event WHERE ts > ? AND id > ? ORDER BY ts DESC, id DESC LIMIT ?) e"
            " JOIN source s ON s.id = e.source JOIN place p ON p.id = e.place ORDER BY e.ts DESC, e.id DESC",
            (now - RECENT, after, NEW),
        ).fetchall()
    names = ("id", "ts", "country", "city", "latitude", "longitude", "network", "address")
    return {
        "last": last,
        "events": [dict(zip(names, event[: -1 if public else None], strict=False)) for event in events],
    }


def unparsed(db: sqlite3.Connection, since: int, until: int) -> dict[str, Any]:
    """The newest lines that were no packets, with the reason; how many there are of the newest 10,000."""
    span = "FROM unparsed WHERE ts >= ? AND ts < ?"
    number = db.execute(f"SELECT count(*) {span}", (since, until)).fetchone()[0]
    rows = db.execute(f"SELECT ts, reason, line {span} ORDER BY id DESC LIMIT 20", (since, until)).fetchall()
    return {
        "count": number,
        "lines": [
            {"ts": ts, "reason": reason, "text": line.decode(errors="replace")} for ts, reason, line in rows
        ],
    }


class Export:
    """Every matching event, the newest first, in parts; each part is asked for by itself."""

    KINDS: ClassVar = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}

    def __init__(
        self, ask: Callable[[Callable[[sqlite3.Connection], Any]], Any], query: Query, form: str
    ) -> None:
        self.ask, self.query, self.form = ask, query, form

    def parts(self) -> Iterator[bytes]:
        if self.form == "csv":
            yield table([("time", *COLUMNS[2:], *PACKET, "line")])
        before: tuple[int, int] | None = None
        while page := self.ask(partial(self.page, before=before)):
            yield table(map(row_of, page)) if self.form == "csv" else documents(page)
            before = page[-1]["ts"], page[-1]["id"]

    def page(self, db: sqlite3.Connection, before: tuple[int, int] | None) -> list[dict[str, Any]]:
        view = View(db, self.query)
        events = view.events(f"id, ts, source, place, {', '.join(PACKET)}", EXPORT_PAGE, before)
        texts = raw(db, [event[0] for event in events])
        return [self.event(db, event, texts[event[0]]) for event in events]

    def event(self, db: sqlite3.Connection, event: Any, text: str) -> dict[str, Any]:
        id, ts, source, place, protocol, *numbers = event
        of_source = db.execute("SELECT address, network FROM source WHERE id = ?", (source,)).fetchone()
        of_place = db.execute(
            "SELECT country, city, latitude, longitude FROM place WHERE id = ?", (place,)
        ).fetchone()
        values = (id, ts, *of_source, *of_place, protocol or "TCP", *numbers)
        return {**dict(zip((*COLUMNS, *PACKET), values, strict=True)), "line": text}


def row_of(event: dict[str, Any]) -> tuple[Any, ...]:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event["ts"]))
    return (at, *(event[name] for name in (*COLUMNS[2:], *PACKET, "line")))


def table(rows: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def documents(events: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
