"""Follows an iptables log into SQLite: nothing lost, nothing doubled.

The position in the log is committed in the same transaction as the rows. Log files are told apart, and put in order,
by their first line: that holds for rotation by renaming and by copytruncate, compressed or not, while we run or not.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import ipaddress
import os
import signal
import sqlite3
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import database
from geoip import NOWHERE, Atlas, Place
from iptables_line import Event, Unparsed, epoch, minutes, parse, usual_fields

CHUNK = 1 << 20  # bytes of log for one transaction: about 4,000 lines
KEPT_UNPARSED = 10_000
FULL_BLOCK = 2_000  # lines; live lines come one by one, and compress well only together
CACHED_SOURCES = 60_000  # bounds our memory


@dataclass(frozen=True)
class Options:
    log: str = "/var/log/iptables.log"
    db: str = database.PATH
    geo: str = "/var/lib/knockmap/geo"
    retention_days: int = 400
    retention_bytes: int = 1 << 30
    free_bytes: int = 128 << 20  # we pause while the disk has less left


@dataclass(frozen=True)
class LogFile:
    """A log file as its first line tells it: `at` (epoch) orders, `first` identifies."""

    at: float
    live: bool
    first: bytes
    path: str


LogReader = BufferedReader | gzip.GzipFile
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


class RotatedError(Exception):
    """Between looking and opening, a log became another file: look again."""


class Collector:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.db = database.writer(options.db)
        self.atlas = Atlas(options.geo)
        self.sources: dict[bytes, tuple[int, int]] = {}  # address as printed → (source id, place id)
        self.places: dict[Place, int] = {}
        self.first_lines: dict[str, tuple[tuple[int, int, int], bytes]] = {}
        self.damaged: set[bytes] = set()  # first lines of archives that were said to be damaged
        self.first: bytes = b""
        self.offset = 0
        self.go_back()
        self.next_retention = 0.0
        self.note_atlas()

    def go_back(self) -> None:
        """To the position behind the last line that is in the database."""
        self.first, self.offset = self.db.execute("SELECT first, offset FROM position").fetchone() or (b"", 0)

    # --- the log ---------------------------------------------------------------------------------------------

    def step(self) -> int:
        """Read on to the end of all files; gives the number of lines taken."""
        self.go_back()  # whatever broke the last step off, what is not in the database is read again
        if self.atlas.changed():
            self.atlas = Atlas(self.options.geo)
            self.forget_ids()
            self.note_atlas()
        taken = 0
        for file in self.to_read():
            if file.first != self.first:
                self.first, self.offset = file.first, 0
            try:
                for lines in self.chunks(file):
                    self.wait_for_room()
                    self.store(lines)
                    taken += len(lines)
            except DAMAGED as error:  # what was readable is in; what follows must not wait for the rest
                if file.first not in self.damaged:
                    print(f"{file.path} is damaged, its rest is left out: {error}", flush=True)
                self.damaged.add(file.first)
        return taken

    def to_read(self) -> list[LogFile]:
        """The file we are in and all that came after it, in order."""
        files: dict[bytes, LogFile] = {}
        paths = glob.glob(glob.escape(self.options.log) + "*")
        # A plain file comes before the .gz of it, which may still be being written.
        for path in sorted(paths, key=lambda path: path.endswith(".gz")):
            try:
                first = self.first_line(path)
            except (OSError, *DAMAGED):
                continue  # just renamed, or a .gz that is still being written
            if first:
                live = path == self.options.log
                found = LogFile(epoch(stamp_of(first)) or os.path.getmtime(path), live, first, path)
                # While copytruncate copies, two files begin alike: the live one is the longer.
                files[first] = found if live else files.get(first, found)
        # The live file is the last, also when the clock was set back while it was made.
        ordered = sorted(files.values(), key=lambda file: (file.live, file.at, micros(file.first)))
        for index, file in enumerate(ordered):
            if file.first == self.first:
                return ordered[index:]
        since = (epoch(stamp_of(self.first)) or 0, micros(self.first)) if self.first else (-1, b"")
        return [file for file in ordered if file.live or (file.at, micros(file.first)) >= since]

    def first_line(self, path: str) -> bytes:
        """The first line of a log file, cut at 4096 bytes; nothing while it is incomplete. Read again only if the file changed."""
        info = os.stat(path)
        compressed = path.endswith(".gz")
        mark = (info.st_ino, info.st_mtime_ns if compressed else 0, min(info.st_size, 4096))
        known = self.first_lines.get(path)
        # A log that was emptied in place keeps its inode: so a plain file's first line is always looked at.
        if compressed and known and known[0] == mark:
            return known[1]
        with opened(path) as file:
            line = file.readline(4096)
        first = line if line.endswith(b"\n") or len(line) == 4096 else b""
        self.first_lines[path] = (mark, first)
        return first

    def chunks(self, log: LogFile) -> Iterator[list[bytes]]:
        """Complete lines from our offset on; the offset moves with each chunk."""
        with opened(log.path) as file:
            if file.readline(4096) != log.first:
                raise RotatedError(log.path)
            file.seek(self.offset)
            rest = b""
            while more := filled(file):
                chunk = rest + more
                end = chunk.rfind(b"\n") + 1
                if not end and len(chunk) >= CHUNK:
                    end = len(chunk)  # a line without end: taken in pieces, all of them unparsed
                rest = chunk[end:]  # a line that is still being written, or goes on in the next chunk
                if end:
                    self.offset += end
                    yield chunk[:end].split(b"\n")[:-1] if chunk[end - 1] == 10 else [chunk[:end]]

    # --- rows ------------------------------------------------------------------------------------------------

    def store(self, lines: list[bytes]) -> None:
        """These lines and the position behind them, in one transaction."""
        now = time.time()
        try:
            self.db.execute("BEGIN IMMEDIATE")
            rows, texts, unparsed = self.rows(lines, now)
            self.insert(rows, texts)
            if unparsed:
                self.insert_unparsed(unparsed)
            self.db.execute("INSERT OR REPLACE INTO position VALUES(1, ?, ?)", (self.first, self.offset))
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            self.forget_ids()
            self.go_back()
            raise

    def rows(self, lines: list[bytes], now: float) -> tuple[list[Any], list[bytes], list[Any]]:
        rows: list[Any] = []
        texts: list[bytes] = []
        unparsed: list[Any] = []
        known = self.sources
        for line, usual in zip(lines, usual_fields(lines), strict=True):
            if usual:
                minute, second, zone, printed, ttl, source_port, target_port, window = usual
                source = known.get(printed)
                start = minutes.get(minute + zone)
                if start is None:
                    start = epoch(minute + b"00" + zone)
                if (
                    start is not None and source is not None
                ):  # nearly always, so this is all there is to a line
                    at = start + int(second)
                    rows.append(
                        (
                            at,
                            source[1],
                            source[0],
                            None,
                            int(source_port),
                            int(target_port),
                            int(ttl),
                            int(window),
                        )
                    )
                    texts.append(line)
                    continue
            event = parse(line, now)
            if isinstance(event, Unparsed):
                unparsed.append((int(now), event.reason, line[:4096]))
                continue
            source = self.source(event, usual[3] if usual else b"")
            protocol = None if event.protocol == "TCP" else event.protocol
            row = (
                event.ts,
                source[1],
                source[0],
                protocol,
                event.source_port,
                event.target_port,
                event.ttl,
                event.window,
            )
            rows += [row] * event.times
            texts += [line] * event.times
        return rows, texts, unparsed

    def insert(self, rows: list[Any], texts: list[bytes]) -> None:
        if not rows:
            return
        first = (self.db.execute("SELECT max(id) FROM event").fetchone()[0] or 0) + 1
        self.db.executemany(
            "INSERT INTO event(ts, place, source, protocol, source_port, target_port, ttl, window) VALUES(?,?,?,?,?,?,?,?)",
            rows,
        )
        hours = Counter((row[0] - row[0] % 3600, row[1]) for row in rows)
        self.db.executemany(
            "INSERT INTO hour VALUES(?,?,?) ON CONFLICT(hour, place) DO UPDATE SET events = events + excluded.events",
            [(*key, count) for key, count in hours.items()],
        )
        self.insert_texts(first, texts)

    def insert_texts(self, first: int, texts: list[bytes]) -> None:
        """The raw lines; joined to the last block while that is small."""
        last = self.db.execute("SELECT first, count, text FROM line ORDER BY first DESC LIMIT 1").fetchone()
        if last and last[1] + len(texts) <= FULL_BLOCK and last[0] + last[1] == first:
            first, texts = last[0], [*zlib.decompress(last[2]).split(b"\n"), *texts]
        block = (first, len(texts), zlib.compress(b"\n".join(texts), 1))
        self.db.execute("INSERT OR REPLACE INTO line VALUES(?,?,?)", block)

    def insert_unparsed(self, unparsed: list[Any]) -> None:
        self.db.executemany("INSERT INTO unparsed(ts, reason, line) VALUES(?,?,?)", unparsed[-KEPT_UNPARSED:])
        newest = self.db.execute("SELECT max(id) FROM unparsed").fetchone()[0]
        self.db.execute("DELETE FROM unparsed WHERE id <= ?", (newest - KEPT_UNPARSED,))
        self.db.execute(
            "INSERT INTO meta VALUES('unparsed', ?) ON CONFLICT(key) DO UPDATE SET value = value + excluded.value",
            (len(unparsed),),
        )

    def source(self, event: Event, printed: bytes) -> tuple[int, int]:
        """(source id, place id) of an event; located when its source is seen for the first time."""
        row = self.db.execute("SELECT id, place FROM source WHERE address = ?", (event.source,)).fetchone()
        if row and row[1] == self.place(NOWHERE):  # perhaps a GeoIP database came meanwhile
            row = (row[0], self.place(self.atlas.locate(event.source)))
            self.db.execute("UPDATE source SET place = ?2 WHERE id = ?1", row)
        if not row:
            place = self.place(self.atlas.locate(event.source))
            cursor = self.db.execute(
                "INSERT INTO source(address, network, place, first_seen) VALUES(?,?,?,?)",
                (event.source, network_of(event.source), place, event.ts),
            )
            row = (cursor.lastrowid, place)
        if len(self.sources) >= CACHED_SOURCES:
            self.sources.clear()
        if printed:
            self.sources[printed] = row
        return row  # type: ignore[no-any-return]

    def place(self, place: Place) -> int:
        if place not in self.places:
            row = self.db.execute(
                "SELECT id FROM place WHERE country = ? AND city = ? AND ifnull(latitude, 999) = ifnull(?, 999)"
                " AND ifnull(longitude, 999) = ifnull(?, 999)",
                place,
            ).fetchone()
            insert = "INSERT INTO place(country, city, latitude, longitude) VALUES(?,?,?,?)"
            self.places[place] = row[0] if row else self.db.execute(insert, place).lastrowid or 0
        return self.places[place]

    def forget_ids(self) -> None:
        """After a transaction that is not to be: our caches may name rows that do not exist."""
        self.sources.clear()
        self.places.clear()

    # --- upkeep ----------------------------------------------------------------------------------------------

    def note_atlas(self) -> None:
        """What the sources are located with: shown wherever places are shown."""
        self.note("geo_built", self.atlas.built())
        self.note("geo_kinds", ", ".join(self.atlas.kinds()))

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
        self.forget(int(time.time()) - self.options.retention_days * 86400)
        while self.used_bytes() > self.options.retention_bytes:
            # Two queries: each by itself SQLite takes from the end of the index.
            oldest, newest = self.db.execute(
                "SELECT (SELECT min(ts) FROM event), (SELECT max(ts) FROM event)"
            ).fetchone()
            if oldest is None:
                break
            # By hours in the end: a flood of today must not cost all of today.
            step = 86400 if newest - oldest > 2 * 86400 else 3600
            self.forget(oldest - oldest % step + step)
        self.db.execute("PRAGMA incremental_vacuum")

    def used_bytes(self) -> int:
        pages, free, size = (
            self.db.execute(f"PRAGMA {p}").fetchone()[0]
            for p in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def forget(self, before: int) -> None:
        """Delete all events of the hours before `before` (epoch), their sums and their lines, in one transaction."""
        before -= before % 3600
        if not self.db.execute("SELECT 1 FROM event WHERE ts < ? LIMIT 1", (before,)).fetchone():
            return
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute("DELETE FROM event WHERE ts < ?", (before,))
        self.db.execute("DELETE FROM hour WHERE hour < ?", (before,))
        kept = self.db.execute("SELECT min(id) FROM event").fetchone()[0]
        # Without events, ids begin anew: then no old text may stay, or it would be taken for theirs.
        self.db.execute("DELETE FROM line WHERE ?1 IS NULL OR first + count <= ?1", (kept,))
        self.db.execute("DELETE FROM source WHERE id NOT IN (SELECT source FROM event)")
        self.db.execute("COMMIT")
        self.forget_ids()

    def run(self, poll: float) -> None:
        while True:
            try:
                self.step()
                if time.monotonic() >= self.next_retention:
                    self.next_retention = time.monotonic() + 3600
                    self.retain()
            except RotatedError:
                continue
            except sqlite3.OperationalError as error:  # locked by a reader, or the disk is full after all
                print(f"waiting: {error}", flush=True)
                time.sleep(5)
            time.sleep(poll)


def opened(path: str) -> LogReader:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def filled(file: LogReader) -> bytes:
    """The next CHUNK bytes, fewer before the end or before damage; at damage itself one of DAMAGED is raised."""
    parts: list[bytes] = []
    room = CHUNK
    try:
        while room and (part := file.read1(room)):
            parts.append(part)
            room -= len(part)
    except DAMAGED:
        if not parts:
            raise
    return b"".join(parts)


def stamp_of(line: bytes) -> bytes:
    """The time at the beginning of a log line: one word (RFC 3339) or three (BSD)."""
    return line.split(b" ", 1)[0] if line[:4].isdigit() else line[:15]


def micros(line: bytes) -> bytes:
    """The fraction of the second, to order files that begin in the same one."""
    return line.split(b" ", 1)[0][19:26]


def network_of(address: str) -> str:
    """The /24 or /48 that an address is in."""
    if ":" not in address:
        return address[: address.rindex(".")] + ".0/24"
    return str(ipaddress.ip_network((address, 48), strict=False))


def free_bytes(path: str) -> int:
    info = os.statvfs(os.path.dirname(path))
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
