"""The collector's SQLite database: its tables, the path that all programs here use, and exact counts of any span.

place    where sources are, as the GeoIP databases say
source   an address with its network (/24 or /48), when it was first seen, its place, and by which GeoIP data (`geo`):
         when those are replaced, a source is located anew as soon as it is seen again
event    a packet (protocol NULL is TCP); `place` is that of its source at the time, so that sums never change afterwards;
         kept in order of time, so that a span is read as one piece; `id` counts up and leads to the text
line     the raw text of events `first`..`first + count - 1`, newline-separated, zlib
hour     the number of events for each hour and country       } exact, kept in the same transaction as `event`;
day      … for each day (UTC), source and place               } keys are the epoch at which the span begins
month    … for each month (UTC), source and place             }
unparsed the newest lines that are no events, with the reason; meta "unparsed" counts all of them
position how far each log file was read: by its first line and the bytes before the offset
"""

from __future__ import annotations

import sqlite3
from datetime import datetime, timezone

PATH = "/var/lib/knockmap/collector/knockmap.db"
VERSION = 2
DAY = 86400

SCHEMA = """
CREATE TABLE place(id INTEGER PRIMARY KEY, country TEXT NOT NULL, city TEXT NOT NULL, latitude REAL, longitude REAL);
CREATE UNIQUE INDEX place_is ON place(country, city, ifnull(latitude, 999), ifnull(longitude, 999));
CREATE TABLE source(id INTEGER PRIMARY KEY, address TEXT NOT NULL UNIQUE, network TEXT NOT NULL, place INTEGER NOT NULL,
  first_seen INTEGER NOT NULL, geo INTEGER NOT NULL);
CREATE TABLE event(ts INTEGER NOT NULL, id INTEGER NOT NULL, place INTEGER NOT NULL, source INTEGER NOT NULL, protocol TEXT,
  source_port INTEGER, target_port INTEGER, window INTEGER, ttl INTEGER, PRIMARY KEY(ts, id)) WITHOUT ROWID;
CREATE TABLE line(first INTEGER PRIMARY KEY, count INTEGER NOT NULL, text BLOB NOT NULL);
CREATE TABLE hour(hour INTEGER, country TEXT, events INTEGER NOT NULL, PRIMARY KEY(hour, country)) WITHOUT ROWID;
CREATE TABLE day(day INTEGER, source INTEGER, place INTEGER, events INTEGER NOT NULL, PRIMARY KEY(day, source, place)) WITHOUT ROWID;
CREATE TABLE month(month INTEGER, source INTEGER, place INTEGER, events INTEGER NOT NULL, PRIMARY KEY(month, source, place)) WITHOUT ROWID;
CREATE TABLE unparsed(id INTEGER PRIMARY KEY, ts INTEGER NOT NULL, reason TEXT NOT NULL, line BLOB NOT NULL);
CREATE TABLE position(id INTEGER PRIMARY KEY, first BLOB NOT NULL, offset INTEGER NOT NULL, tail BLOB NOT NULL);
CREATE TABLE meta(key TEXT PRIMARY KEY, value);
"""


def writer(path: str) -> sqlite3.Connection:
    """The one connection that writes; makes the database if it is new.

    WAL, synchronous NORMAL: a power cut may take the newest transactions, but rows and position together, so they
    are read from the log again.
    """
    db = sqlite3.connect(path, isolation_level=None)
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        db.execute("PRAGMA page_size = 8192")  # less to write than with 4096
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise SystemExit(
            f"{path} is of version {version}, this program knows {VERSION}: deploy the same release everywhere"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA cache_size = -8000")  # a transaction's pages are written once
    db.execute("PRAGMA journal_size_limit = 16777216")  # what a long reader made of the WAL is given back
    db.execute("PRAGMA wal_autocheckpoint = 2000")
    return db


def reader(path: str, any_thread: bool = False) -> sqlite3.Connection:
    """A connection that only reads. `any_thread`: whoever uses it sees to it that one does at a time."""
    # Without isolation_level, filling a temporary table would begin a transaction, and so hold what is read for ever.
    return sqlite3.connect(
        f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=not any_thread
    )


def month_of(ts: int) -> int:
    """Epoch of the beginning of the month (UTC) that `ts` is in."""
    moment = datetime.fromtimestamp(ts, timezone.utc)
    return int(datetime(moment.year, moment.month, 1, tzinfo=timezone.utc).timestamp())


def month_after(ts: int) -> int:
    """Epoch of the beginning of the month after the one that `ts` is in."""
    return month_of(month_of(ts) + 32 * DAY)


def tally(db: sqlite3.Connection, since: int, until: int) -> None:
    """Fill the temporary table `tally(source, place, events)` for since <= ts < until: exact, at any length of span.

    Whole months and days come from their sums, only the ends from events.
    """
    db.execute("DROP TABLE IF EXISTS temp.tally")
    db.execute("CREATE TEMP TABLE tally(source INTEGER, place INTEGER, events INTEGER)")
    parts = [
        f"SELECT source, place, {count} AS events FROM {table} WHERE {at} >= {start} AND {at} < {end}"
        for table, at, count, start, end in spans(since, until)
        if start < end
    ]
    union = " UNION ALL ".join(parts) or "SELECT 0, 0, 0 WHERE 0"
    db.execute(f"INSERT INTO tally SELECT source, place, sum(events) FROM ({union}) GROUP BY source, place")


def spans(since: int, until: int) -> list[tuple[str, str, str, int, int]]:
    """(table, its column of time, its count, start, end) of the parts that make up since..until."""
    first_day, last_day = -(-since // DAY) * DAY, until // DAY * DAY
    if first_day >= last_day:
        return [("event", "ts", "1", since, until)]
    first_month, last_month = month_after(first_day - 1), month_of(last_day)
    days = [("day", "day", "events", first_day, last_day)]
    if first_month < last_month:
        days = [
            ("day", "day", "events", first_day, first_month),
            ("month", "month", "events", first_month, last_month),
            ("day", "day", "events", last_month, last_day),
        ]
    return [("event", "ts", "1", since, first_day), *days, ("event", "ts", "1", last_day, until)]
