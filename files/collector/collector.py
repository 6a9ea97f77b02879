"""Follows an iptables log into SQLite: nothing lost, nothing doubled.

How far each log file was read is committed in the same transaction as its rows.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import sqlite3
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import database
from database import DAY, month_after, month_of
from geoip import Atlas, Place
from iptables_line import SECONDS, Event, Fields, Unparsed, hours, parse, usual_event, usual_fields
from log_files import LogFiles, Position

KEPT_UNPARSED = 10_000
KEPT_POSITIONS = 1_000  # of log files; more than any rotation keeps
FULL_BLOCK = 500  # lines; one alone would not get smaller, and to show one all are unpacked
CACHED_SOURCES = 60_000  # bounds our memory


@dataclass(frozen=True)
class Options:
    log: str = "/var/log/iptables.log"
    db: str = database.PATH
    geo: str = "/var/lib/knockmap/geo"
    retention_days: int = 400
    retention_bytes: int = 1 << 30
    free_bytes: int = 128 << 20  # we pause while the disk has less left


class Source(NamedTuple):
    """Ids of a source and its place."""

    id: int
    place: int


Row = tuple[Any, ...]  # as in the table `event`


class Collector:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.db = database.writer(options.db)
        self.atlas = Atlas(options.geo)
        self.sources: dict[bytes, Source] = {}  # by the address as printed
        self.places: dict[Place, int] = {}
        self.countries: dict[int, str] = dict(self.db.execute("SELECT id, country FROM place"))
        positions = self.db.execute("SELECT id, first, offset, tail FROM position")
        self.files = LogFiles(options.log, [Position(*row) for row in positions])
        self.next_retention = 0.0
        self.geo = self.note_atlas()

    # --- the log ---------------------------------------------------------------------------------------------

    def step(self) -> int:
        """Read on to the end of all files; gives the number of lines taken."""
        if self.atlas.changed():
            self.atlas = Atlas(self.options.geo)
            self.forget_ids()
            self.geo = self.note_atlas()
        taken = 0
        for path in self.files.unread():
            for lines, position in self.files.chunks(path):
                self.wait_for_room()
                self.store(lines, position)
                taken += len(lines)
        return taken

    # --- rows ------------------------------------------------------------------------------------------------

    def store(self, lines: list[bytes], position: Position) -> None:
        """These lines and the position behind them, in one transaction."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            first = self.next_id()
            rows, texts, unparsed = self.rows(lines, first, time.time())
            if rows:
                self.db.executemany("INSERT INTO event VALUES(?,?,?,?,?,?,?,?,?)", rows)
                self.insert_texts(first, texts)
                self.add_up(rows)
            if unparsed:
                self.insert_unparsed(unparsed)
            self.db.execute(
                "INSERT OR REPLACE INTO position VALUES(?, ?, ?, ?)",
                (position.id, position.first, position.offset, position.tail),
            )
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:  # a full disk has rolled it back already
                self.db.execute("ROLLBACK")
            self.forget_ids()
            raise
        self.files.read(position)

    def next_id(self) -> int:
        """The id of the next event: its text comes right behind the last one's."""
        last = self.db.execute("SELECT first + count FROM line ORDER BY first DESC LIMIT 1").fetchone()
        return int(last[0]) if last else 1

    def rows(self, lines: list[bytes], id: int, now: float) -> tuple[list[Row], list[bytes], list[Any]]:
        """Rows of `event` from `id` on, with the text of each; and rows of `unparsed`."""
        fields = usual_fields(lines)
        usual_lines = [usual for usual in fields if usual]
        rows = self.usual_rows(usual_lines, id) if len(usual_lines) == len(lines) else []
        if rows:
            return rows, lines, []
        texts: list[bytes] = []
        unparsed: list[Any] = []
        for line, usual in zip(lines, fields, strict=True):
            event = parse(line, now)
            if isinstance(event, Unparsed):
                unparsed.append((int(now), event.reason, line[:4096]))
                continue
            source = self.sources.get(usual[3]) if usual else None
            source = source or self.source(event, usual[3] if usual else b"")
            rows += [row_of(event, source, number) for number in range(id, id + event.times)]
            id += event.times
            texts += [line] * event.times
        return rows, texts, unparsed

    def usual_rows(self, lines: list[Fields], id: int) -> list[Row]:
        """The rows of usual lines; none if one cannot be. A flood spends its time here: little is done for a line."""
        known, last = self.sources, b""
        for fields in lines:
            if fields[3] not in known or fields[0] != last:
                last = fields[0]
                if (event := usual_event(fields)) and fields[3] not in known:
                    self.source(event, fields[3])
        try:
            return [
                (
                    hours[hour + zone] + SECONDS[second],
                    number,
                    (source := known[printed])[1],
                    source[0],
                    None,
                    int(source_port),
                    int(target_port),
                    int(window),
                    int(ttl),
                )
                for number, (hour, second, zone, printed, ttl, source_port, target_port, window) in enumerate(
                    lines, id
                )
            ]
        except KeyError:  # an hour or an address that cannot be, or so many sources that some were dropped
            return []

    def add_up(self, rows: list[Row]) -> None:
        """The sums of these rows onto those that are there."""
        countries = self.countries
        by_hour = Counter([(row[0] // 3600 * 3600, countries[row[2]]) for row in rows])
        days = Counter([(row[0] // DAY * DAY, row[3], row[2]) for row in rows])
        month = {day: month_of(day) for day in {day for day, _, _ in days}}
        months: Counter[tuple[int, int, int]] = Counter()
        for (day, source, place), count in days.items():
            months[month[day], source, place] += count
        add = "ON CONFLICT DO UPDATE SET events = events + excluded.events"
        self.db.executemany(
            f"INSERT INTO hour VALUES(?,?,?) {add}", ((*k, n) for k, n in sorted(by_hour.items()))
        )
        self.db.executemany(
            f"INSERT INTO day VALUES(?,?,?,?) {add}", ((*k, n) for k, n in sorted(days.items()))
        )
        self.db.executemany(
            f"INSERT INTO month VALUES(?,?,?,?) {add}", ((*k, n) for k, n in sorted(months.items()))
        )

    def insert_texts(self, first: int, texts: list[bytes]) -> None:
        """The raw lines in blocks; the first ones fill up the last block that is there."""
        last = self.db.execute("SELECT first, count, text FROM line ORDER BY first DESC LIMIT 1").fetchone()
        if last and last[1] < FULL_BLOCK:
            first, texts = last[0], [*zlib.decompress(last[2]).split(b"\n"), *texts]
        blocks = ((start, texts[start : start + FULL_BLOCK]) for start in range(0, len(texts), FULL_BLOCK))
        self.db.executemany(
            "INSERT OR REPLACE INTO line VALUES(?,?,?)",
            ((first + start, len(block), zlib.compress(b"\n".join(block), 1)) for start, block in blocks),
        )

    def insert_unparsed(self, unparsed: list[Any]) -> None:
        self.db.executemany("INSERT INTO unparsed(ts, reason, line) VALUES(?,?,?)", unparsed[-KEPT_UNPARSED:])
        newest = self.db.execute("SELECT max(id) FROM unparsed").fetchone()[0]
        self.db.execute("DELETE FROM unparsed WHERE id <= ?", (newest - KEPT_UNPARSED,))
        self.db.execute(
            "INSERT INTO meta VALUES('unparsed', ?) ON CONFLICT(key) DO UPDATE SET value = value + excluded.value",
            (len(unparsed),),
        )

    def source(self, event: Event, printed: bytes) -> Source:
        """An event's source; located when it is seen for the first time with this GeoIP data."""
        row = self.db.execute(
            "SELECT id, place, geo FROM source WHERE address = ?", (event.source,)
        ).fetchone()
        found = (
            Source(*row[:2]) if row and row[2] == self.geo else self.locate(event, row[0] if row else None)
        )
        if len(self.sources) >= CACHED_SOURCES:
            self.sources.clear()
        if printed:
            self.sources[printed] = found
        return found

    def locate(self, event: Event, id: int | None) -> Source:
        """Look a source up in the GeoIP data, and write that down: `id` is its row if it has one."""
        place_id = self.place(self.atlas.locate(event.source))
        if id:
            self.db.execute("UPDATE source SET place = ?, geo = ? WHERE id = ?", (place_id, self.geo, id))
            return Source(id, place_id)
        id = self.db.execute(
            "INSERT INTO source(address, network, place, first_seen, geo) VALUES(?,?,?,?,?)",
            (event.source, network_of(event.source), place_id, event.ts, self.geo),
        ).lastrowid
        return Source(id or 0, place_id)

    def place(self, place: Place) -> int:
        if place not in self.places:
            row = self.db.execute(
                "SELECT id FROM place WHERE country = ? AND city = ? AND ifnull(latitude, 999) = ifnull(?, 999)"
                " AND ifnull(longitude, 999) = ifnull(?, 999)",
                place,
            ).fetchone()
            insert = "INSERT INTO place(country, city, latitude, longitude) VALUES(?,?,?,?)"
            self.places[place] = row[0] if row else self.db.execute(insert, place).lastrowid or 0
            self.countries[self.places[place]] = place.country
        return self.places[place]

    def forget_ids(self) -> None:
        """After a transaction that is not to be: our caches may name rows that do not exist."""
        self.sources.clear()
        self.places.clear()
        self.countries = dict(self.db.execute("SELECT id, country FROM place"))

    # --- upkeep ----------------------------------------------------------------------------------------------

    def note_atlas(self) -> int:
        """Note what sources are located with, since it is shown with them; gives the number of that state of the data."""
        self.note("geo_built", self.atlas.built())
        self.note("geo_kinds", ", ".join(self.atlas.kinds()))
        known = dict(self.db.execute("SELECT key, value FROM meta WHERE key IN ('geo', 'geo_files')"))
        files = repr(self.atlas.contents())
        if known.get("geo_files") != files:
            known["geo"] = known.get("geo", 0) + 1
            self.note("geo", known["geo"])
            self.note("geo_files", files)
        return int(known["geo"])

    def note(self, key: str, value: object) -> None:
        self.db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))

    def wait_for_room(self) -> None:
        """Pause while the disk is nearly full: what we do not take now is still in the log."""
        paused = False
        while free_bytes(self.options.db) < self.options.free_bytes:
            if not paused:
                paused = True
                print(
                    f"paused: less than {self.options.free_bytes >> 20} MiB free for {self.options.db}",
                    flush=True,
                )
                self.note("paused", int(time.time()))
            self.retain()
            time.sleep(0.5)
        if paused:
            print("going on: there is room again", flush=True)
            self.db.execute("DELETE FROM meta WHERE key = 'paused'")

    def retain(self) -> None:
        """Forget what is too old, and the oldest while the database is too large."""
        today = int(time.time()) // DAY * DAY
        self.forget(today - self.options.retention_days * DAY)
        while self.used_bytes() > self.options.retention_bytes:
            # Two queries: each by itself SQLite takes from the end of the index.
            oldest, newest = self.db.execute(
                "SELECT (SELECT min(ts) FROM event), (SELECT max(ts) FROM event)"
            ).fetchone()
            if oldest is None:
                break
            # By hours in the end: a flood of today must not cost all of today.
            span = DAY if newest - oldest > 2 * DAY else 3600
            self.forget(oldest - oldest % span + span)
        self.db.execute(
            "DELETE FROM position WHERE id <= (SELECT max(id) FROM position) - ?", (KEPT_POSITIONS,)
        )
        self.db.execute("PRAGMA incremental_vacuum")

    def used_bytes(self) -> int:
        pages, free, size = (
            self.db.execute(f"PRAGMA {p}").fetchone()[0]
            for p in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def forget(self, before: int) -> None:
        """Delete all events before `before` (epoch of a full hour), their sums and their lines, in one transaction."""
        if not self.db.execute("SELECT 1 FROM event WHERE ts < ? LIMIT 1", (before,)).fetchone():
            return
        self.db.execute("BEGIN IMMEDIATE")
        try:
            self.db.execute("DELETE FROM event WHERE ts < ?", (before,))
            self.db.execute("DELETE FROM hour WHERE hour < ?", (before,))
            self.add_up_again(before)
            kept = self.db.execute("SELECT min(id) FROM event").fetchone()[0]
            # Without events, ids begin anew: then no old text may stay, or it would be taken for theirs.
            self.db.execute("DELETE FROM line WHERE ?1 IS NULL OR first + count <= ?1", (kept,))
            self.db.execute("DELETE FROM source WHERE id NOT IN (SELECT source FROM month)")
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise
        finally:
            self.forget_ids()

    def add_up_again(self, before: int) -> None:
        """The sums of the day and the month that lost only a part; earlier ones go."""
        day, month = before - before % DAY, month_of(before)
        self.db.execute("DELETE FROM day WHERE day <= ?", (day,))
        self.db.execute(
            "INSERT INTO day SELECT ?, source, place, count(*) FROM event WHERE ts >= ? AND ts < ? GROUP BY source, place",
            (day, day, day + DAY),
        )
        self.db.execute("DELETE FROM month WHERE month <= ?", (month,))
        self.db.execute(
            "INSERT INTO month SELECT ?, source, place, sum(events) FROM day WHERE day >= ? AND day < ? GROUP BY source, place",
            (month, month, month_after(month)),
        )

    def run(self, poll: float) -> None:
        while True:
            try:
                self.step()
                if time.monotonic() >= self.next_retention:
                    self.next_retention = time.monotonic() + 3600
                    self.retain()
            except sqlite3.OperationalError as error:  # locked by a reader, or the disk is full after all
                print(f"waiting: {error}", flush=True)
                time.sleep(5)
            time.sleep(poll)


def row_of(event: Event, source: Source, id: int) -> Row:
    protocol = None if event.protocol == "TCP" else event.protocol
    numbers = event.source_port, event.target_port, event.window, event.ttl
    return event.ts, id, source.place, source.id, protocol, *numbers


def network_of(address: str) -> str:
    """The /24 or /48 that an address is in."""
    if ":" not in address:
        return address[: address.rindex(".")] + ".0/24"
    return str(ipaddress.ip_network((address, 48), strict=False))


def free_bytes(path: str) -> int:
    info = os.statvfs(os.path.dirname(path) or ".")
    return info.f_bavail * info.f_frsize


def options(argv: list[str]) -> tuple[Options, float, bool]:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("log", "db", "geo"):
        parser.add_argument(f"--{name}", default=getattr(Options, name))
    for name in ("retention-days", "retention-bytes", "free-bytes"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Options, name.replace("-", "_")))
    parser.add_argument("--poll", type=float, default=0.5, help="seconds between looks at the log")
    parser.add_argument("--once", action="store_true", help="stop at the end of the log")
    given = vars(parser.parse_args(argv))
    poll, once = given.pop("poll"), given.pop("once")
    return Options(**given), poll, once


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    chosen, poll, once = options(sys.argv[1:])
    collector = Collector(chosen)
    print(f"collecting from {chosen.log}, GeoIP: {', '.join(collector.atlas.kinds()) or 'none'}", flush=True)
    if once:
        collector.step()
    else:
        collector.run(poll)


if __name__ == "__main__":
    main()

__all__ = ["Collector", "Event", "Options"]
