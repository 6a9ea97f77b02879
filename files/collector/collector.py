"""Follows an iptables log into SQLite: nothing lost, nothing doubled.

How far each log file was read is committed in the same transaction as its rows.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sqlite3
import sys
import time
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import database
from database import DAY, month_after, month_of
from geoip import Atlas, Place
from iptables_line import SECONDS, Event, Unparsed, address_of, hours, numbers, parse, usual_columns
from log_files import Chunk, LogFiles, Position

TRANSACTION = 100_000  # lines at most; the sums of many are added up at once
MOST_UNPARSED = 1000  # in one transaction: they wait in memory
KEPT_UNPARSED = 10_000
KEPT_POSITIONS = 1_000  # of log files; more than any rotation keeps
FULL_BLOCK = 500  # lines, or more; one alone would not get smaller, and to show one all are unpacked
CACHED_SOURCES = 60_000  # bounds our memory


@dataclass(frozen=True)
class Options:
    log: str = "/var/log/iptables.log"
    db: str = database.PATH
    geo: str = "/var/lib/knockmap/geo"
    retention_days: int = 400
    retention_bytes: int = 1 << 30
    free_bytes: int = 128 << 20  # we pause while the disk has less left


# Ids of a source and of its place, and the country. A plain tuple, since it is counted for every line.
Source = tuple[int, int, str]
Row = tuple[Any, ...]  # as in the table `event`
INSERT_SOURCE = (
    "INSERT INTO source(address, network, place, first_seen, geo) VALUES(?,?,?,?,?) ON CONFLICT DO NOTHING"
)
USUAL_ROW = "(?,?,?,?,NULL,?,?,?,?)"
WIDTH = USUAL_ROW.count("?")
MANY = 500  # rows; in one statement they take half the time
INSERT_ANY = "INSERT INTO event VALUES(?,?,?,?,?,?,?,?,?)"
INSERT_ROW = f"INSERT INTO event VALUES{USUAL_ROW}"
INSERT_MANY = f"INSERT INTO event VALUES{','.join([USUAL_ROW] * MANY)}"


class Batch:
    """What a transaction has still to write: at its end, or as soon as there is enough to be written at once."""

    def __init__(self, first: int, texts: list[bytes], lines: int) -> None:
        self.first = first  # id of the first event whose text is in `texts`
        self.texts = texts  # of `lines` events, newline-separated
        self.lines = lines
        self.values: list[int] = []  # of the rows of usual lines
        self.hours: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self.days: defaultdict[int, Counter[Source]] = defaultdict(Counter)
        self.unparsed: list[Row] = []

    def next_id(self) -> int:
        """The id of the next event: its text comes right behind the last one's."""
        return self.first + self.lines

    def count(self, ts: list[int], sources: list[Source]) -> None:
        """Add events to the sums. In order of time, all of an hour are counted at once."""
        if ts != sorted(ts):
            order = sorted(range(len(ts)), key=ts.__getitem__)
            ts, sources = [ts[at] for at in order], [sources[at] for at in order]
        start = 0
        while start < len(ts):
            hour = ts[start] // 3600
            end = bisect_left(ts, (hour + 1) * 3600, start)
            self.hours[hour * 3600].update([country for _, _, country in sources[start:end]])
            self.days[hour // 24 * DAY].update(sources[start:end])
            start = end


class Collector:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.db = database.writer(options.db)
        self.atlas = Atlas(options.geo)
        self.sources: dict[bytes, Source] = {}  # by the address as printed
        self.places = self.known_places()
        positions = self.db.execute("SELECT id, first, offset, tail FROM position")
        self.files = LogFiles(options.log, [Position(*row) for row in positions])
        self.next_retention = 0.0
        # Noted by a collector that ended meanwhile, it is ours to take back.
        self.paused = bool(self.db.execute("SELECT 1 FROM meta WHERE key = 'paused'").fetchone())
        self.geo = self.note_atlas()

    # --- the log ---------------------------------------------------------------------------------------------

    def step(self) -> int:
        """Read on to the end of all files; gives the number of lines taken."""
        if self.atlas.changed():
            self.atlas = Atlas(self.options.geo)
            self.forget_ids()
            self.geo = self.note_atlas()
        if self.paused:
            self.wait_for_room()
        taken = 0
        for path in self.files.unread():
            chunks = self.files.chunks(path)
            for chunk in chunks:
                self.wait_for_room()
                taken += self.store(chain([chunk], chunks))
        return taken

    # --- rows ------------------------------------------------------------------------------------------------

    def store(self, chunks: Iterable[Chunk]) -> int:
        """The first of these chunks and the position behind them, in one transaction; gives the number of lines."""
        taken = 0
        self.db.execute("BEGIN IMMEDIATE")
        try:
            batch = self.begin()
            for text, position in chunks:  # noqa: B007 - the last one is noted
                self.insert(text, batch)
                taken += text.count(b"\n") + 1
                if taken >= TRANSACTION or len(batch.unparsed) >= MOST_UNPARSED:
                    break
            self.finish(batch)
            row = position.id, position.first, position.offset, position.tail
            self.db.execute("INSERT OR REPLACE INTO position VALUES(?, ?, ?, ?)", row)
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:  # a full disk has rolled it back already
                self.db.execute("ROLLBACK")
            self.forget_ids()
            self.files.finished.clear()  # what was read to its end is not stored
            raise
        self.files.read(position)
        return taken

    def begin(self) -> Batch:
        """A batch whose texts go on in the last block, if that is not full."""
        last = self.db.execute("SELECT first, count, text FROM line ORDER BY first DESC LIMIT 1").fetchone()
        first, lines, text = last or (1, 0, b"")
        if 0 < lines < FULL_BLOCK:
            return Batch(first, [zlib.decompress(text)], lines)
        return Batch(first + lines, [], 0)

    def insert(self, text: bytes, batch: Batch) -> None:
        """The lines of a text, as far as there is enough to be written at once."""
        if not self.insert_usual(text, batch):
            self.insert_any(text.split(b"\n"), batch)
        if batch.lines >= FULL_BLOCK:
            self.insert_texts(batch)
        while len(batch.values) >= MANY * WIDTH:
            self.db.execute(INSERT_MANY, batch.values[: MANY * WIDTH])
            del batch.values[: MANY * WIDTH]

    def finish(self, batch: Batch) -> None:
        """What of a batch was not written yet."""
        rows = (batch.values[at : at + WIDTH] for at in range(0, len(batch.values), WIDTH))
        self.db.executemany(INSERT_ROW, rows)
        if batch.lines:
            self.insert_texts(batch)
        self.add_up(batch)
        if batch.unparsed:
            self.insert_unparsed(batch.unparsed)

    def insert_usual(self, text: bytes, batch: Batch) -> bool:
        """Usual lines; False if one is none. A flood spends its time here, so all is done by columns."""
        columns = usual_columns(text)
        if not columns:
            return False
        hour, second, printed, ttl, source_port, target_port, window = columns
        try:
            ts = [hours[h] + SECONDS[s] for h, s in zip(hour, second, strict=True)]
            sources = [
                known or self.source(address, address_of(address), at)
                for known, address, at in zip(map(self.sources.get, printed), printed, ts, strict=True)
            ]
            ports, ttls = list(map(int, source_port)), [numbers[digits] for digits in ttl]
            target_ports = [numbers[digits] for digits in target_port]
            windows = [numbers[digits] for digits in window]
        except (KeyError, ValueError):  # a time, an address or a number that cannot be
            return False
        if max(ports) > 65535 or max(ttls) > 255:
            return False
        values = [0] * (WIDTH * len(ts))
        values[0::WIDTH] = ts
        values[1::WIDTH] = range(batch.next_id(), batch.next_id() + len(ts))
        values[2::WIDTH] = [place for _, place, _ in sources]
        values[3::WIDTH] = [id for id, _, _ in sources]
        values[4::WIDTH], values[5::WIDTH] = ports, target_ports
        values[6::WIDTH], values[7::WIDTH] = windows, ttls
        batch.values += values
        batch.texts.append(text)
        batch.lines += len(ts)
        batch.count(ts, sources)
        return True

    def insert_any(self, lines: list[bytes], batch: Batch) -> None:
        """Lines of any kind, one by one."""
        now = time.time()
        for line in lines:
            event = parse(line, now)
            if isinstance(event, Unparsed):
                batch.unparsed.append((int(now), event.reason, line[:4096]))
                continue
            key = event.source.encode()
            source = self.sources.get(key) or self.source(key, event.source, event.ts)
            batch.count([event.ts] * event.times, [source] * event.times)
            for _ in range(event.times):
                self.db.execute(INSERT_ANY, row_of(event, source, batch.next_id()))
                batch.texts.append(line)
                batch.lines += 1
                if batch.lines >= FULL_BLOCK:
                    self.insert_texts(batch)

    def insert_texts(self, batch: Batch) -> None:
        """The texts of a batch, as one block."""
        text = zlib.compress(b"\n".join(batch.texts), 1)
        self.db.execute("INSERT OR REPLACE INTO line VALUES(?,?,?)", (batch.first, batch.lines, text))
        batch.first, batch.texts, batch.lines = batch.next_id(), [], 0

    def add_up(self, batch: Batch) -> None:
        """The sums of a batch onto those that are there."""
        months: defaultdict[int, Counter[Source]] = defaultdict(Counter)
        for day, counts in batch.days.items():
            months[month_of(day)].update(counts)
        add = "ON CONFLICT DO UPDATE SET events = events + excluded.events"
        for hour, countries in batch.hours.items():
            self.db.executemany(f"INSERT INTO hour VALUES({hour},?,?) {add}", countries.items())
        for table, sums in (("day", batch.days), ("month", months)):
            for start, counts in sums.items():
                rows = ((id, place, events) for (id, place, _), events in counts.items())
                self.db.executemany(f"INSERT INTO {table} VALUES({start},?,?,?) {add}", rows)

    def insert_unparsed(self, unparsed: list[Any]) -> None:
        self.db.executemany("INSERT INTO unparsed(ts, reason, line) VALUES(?,?,?)", unparsed[-KEPT_UNPARSED:])
        newest = self.db.execute("SELECT max(id) FROM unparsed").fetchone()[0]
        self.db.execute("DELETE FROM unparsed WHERE id <= ?", (newest - KEPT_UNPARSED,))
        self.db.execute(
            "INSERT INTO meta VALUES('unparsed', ?) ON CONFLICT(key) DO UPDATE SET value = value + excluded.value",
            (len(unparsed),),
        )

    def source(self, key: bytes, address: str | None, ts: int) -> Source:
        """A source; located when it is seen for the first time with this GeoIP data."""
        if not address:
            raise ValueError(f"{key!r} is no address")
        place = self.atlas.locate(address)
        place_id = self.place(place)
        added = self.db.execute(INSERT_SOURCE, (address, network_of(address), place_id, ts, self.geo))
        id = (added.lastrowid or 0) if added.rowcount else self.source_again(address, place_id)
        if len(self.sources) >= CACHED_SOURCES:
            self.sources.clear()
        found = self.sources[key] = id, place_id, place.country
        return found

    def source_again(self, address: str, place: int) -> int:
        """The id of a source that is there; its place by the GeoIP data of today."""
        self.db.execute("UPDATE source SET place = ?, geo = ? WHERE address = ?", (place, self.geo, address))
        return int(self.db.execute("SELECT id FROM source WHERE address = ?", (address,)).fetchone()[0])

    def place(self, place: Place) -> int:
        if place not in self.places:
            insert = "INSERT INTO place(country, city, latitude, longitude) VALUES(?,?,?,?)"
            self.places[place] = self.db.execute(insert, place).lastrowid or 0
        return self.places[place]

    def forget_ids(self) -> None:
        """After a transaction that is not to be: our caches may name rows that do not exist."""
        self.sources.clear()
        self.places = self.known_places()

    def known_places(self) -> dict[Place, int]:
        rows = self.db.execute("SELECT country, city, latitude, longitude, id FROM place")
        return {Place(*row[:4]): row[4] for row in rows}

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
        while free_bytes(self.options.db) < self.options.free_bytes:
            if not self.paused:
                print(
                    f"paused: less than {self.options.free_bytes >> 20} MiB free for {self.options.db}",
                    flush=True,
                )
                self.note("paused", int(time.time()))
                self.paused = True
            self.retain()
            time.sleep(0.5)
        if self.paused:
            print("going on: there is room again", flush=True)
            self.db.execute("DELETE FROM meta WHERE key = 'paused'")
            self.paused = False

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
        self.db.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page

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
    return event.ts, id, source[1], source[0], protocol, *numbers


def network_of(address: str) -> str:
    """The /24 or /48 that an address is in."""
    if ":" not in address:
        return address[: address.rindex(".")] + ".0/24"
    packed = socket.inet_pton(socket.AF_INET6, address)
    return socket.inet_ntop(socket.AF_INET6, packed[:6] + bytes(10)) + "/48"


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
    gc.set_threshold(50_000)  # next to nothing here refers to itself, and to look for that takes time
    collector = Collector(chosen)
    print(f"collecting from {chosen.log}, GeoIP: {', '.join(collector.atlas.kinds()) or 'none'}", flush=True)
    if once:
        collector.step()
    else:
        collector.run(poll)


if __name__ == "__main__":
    main()

__all__ = ["Collector", "Event", "Options"]
