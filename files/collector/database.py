"""The collector's SQLite database: its tables, and the path that all programs here use.

place    where sources are, as the GeoIP databases said when the source was first seen
source   an address with its network (/24 or /48), its place and when it was first seen
event    a packet (protocol NULL is TCP); `place` is that of its source at the time, so that sums never change afterwards
line     the raw text of events `first`..`first + count - 1`, newline-separated, zlib
hour     the number of events for each hour and place: exact, kept in the same transaction as `event`
unparsed the newest lines that are no events, with the reason; meta "unparsed" counts all of them
position the log file we are in (by its first line) and the offset behind the last line that is in here
"""

from __future__ import annotations

import sqlite3

PATH = "/var/lib/knockmap/collector/knockmap.db"
VERSION = 1

SCHEMA = """
CREATE TABLE place(id INTEGER PRIMARY KEY, country TEXT NOT NULL, city TEXT NOT NULL, latitude REAL, longitude REAL);
CREATE UNIQUE INDEX place_is ON place(country, city, ifnull(latitude, 999), ifnull(longitude, 999));
CREATE TABLE source(id INTEGER PRIMARY KEY, address TEXT NOT NULL UNIQUE, network TEXT NOT NULL, place INTEGER NOT NULL, first_seen INTEGER NOT NULL);
CREATE TABLE event(id INTEGER PRIMARY KEY, ts INTEGER NOT NULL, place INTEGER NOT NULL, source INTEGER NOT NULL,
  protocol TEXT, source_port INTEGER, target_port INTEGER, ttl INTEGER, window INTEGER);
CREATE INDEX event_at ON event(ts, place, source);
CREATE TABLE line(first INTEGER PRIMARY KEY, count INTEGER NOT NULL, text BLOB NOT NULL);
CREATE TABLE hour(hour INTEGER, place INTEGER, events INTEGER NOT NULL, PRIMARY KEY(hour, place)) WITHOUT ROWID;
CREATE TABLE unparsed(id INTEGER PRIMARY KEY, ts INTEGER NOT NULL, reason TEXT NOT NULL, line BLOB NOT NULL);
CREATE TABLE position(id INTEGER PRIMARY KEY CHECK (id = 1), first BLOB NOT NULL, offset INTEGER NOT NULL);
CREATE TABLE meta(key TEXT PRIMARY KEY, value);
"""


def writer(path: str) -> sqlite3.Connection:
    """The one connection that writes; makes the database if it is new.

    WAL, synchronous NORMAL: a power cut may take the newest transactions, but rows and position together, so they
    are read from the log again.
    """
    db = sqlite3.connect(path, isolation_level=None)
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
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
    db.execute("PRAGMA wal_autocheckpoint = 4000")
    return db


def reader(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)
