"""From the line to the row: disk, collector, GeoIP data, database."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from look import ABSENT, LOG, Link, Target, as_reader, bad, last_words, ok, settled, sha256, unit, warn

DB = "/var/lib/knockmap/collector/knockmap.db"
GEO = "/var/lib/knockmap/geo"
COLLECTOR = "knockmap-collector.service"
ELASTIC_DATA = ("/var/lib/elasticsearch", "/var/lib/logstash")
MIB = 1 << 20
PAUSE = 128 * MIB  # the collector pauses while less is free
LOCK_SECONDS, CHECK_SECONDS, START_SECONDS = 1.5, 1.0, 3.0
OLD_DAYS, USELESS_DAYS = 365, 730
DAY = 86400


# --- disk -------------------------------------------------------------------------------------------------------


def disk(target: Target) -> Link:
    """The places that we write to; the database's is the one that is to have room left."""
    free = {}
    for path in (os.path.dirname(DB), *ELASTIC_DATA, os.path.dirname(LOG), "/"):
        if os.path.isdir(path):
            info = os.statvfs(path)
            free[path] = info.f_bavail * info.f_frsize
            if info.f_flag & os.ST_RDONLY:
                return bad(f"{path} is mounted read-only", "{ssh} dmesg | tail -n 20")
            if info.f_files and not info.f_favail:
                return bad(f"there is no room for another file in {path} (inodes)", "{ssh} df -i " + path)
    path = min(free, key=lambda one: free[one])
    room = f"{free[path] / MIB:.0f} MiB are free in {path}"
    look = "{ssh} du -xh --max-depth=2 " + path + " | sort -h | tail"
    stops = "the collector pauses" if "collector" in target.tasks else "nothing more is stored"
    if free[path] < PAUSE:
        return bad(f"only {room}; below {PAUSE // MIB} MiB {stops}, and then lines are lost", look)
    if free[path] < 2 * PAUSE:
        return warn(f"only {room}; {stops} below {PAUSE // MIB}", look)
    if since := paused():
        return warn(f"the collector has noted that the disk was too full {age(since)} ago; {room}", look)
    return ok(f"{free[path] / (1 << 30):.1f} GiB free")


def paused() -> int:
    """Since when the collector pauses, by its own note; 0 if it does not, or if nothing can be read."""
    with contextlib.suppress(sqlite3.Error, OSError, KeyError), reading() as db:
        return int(one(db, "SELECT value FROM meta WHERE key = 'paused'") or 0)
    return 0


def age(since: float) -> str:
    seconds = max(0, round(time.time() - since))
    for unit_seconds, name in ((DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_seconds:
            return f"{seconds // unit_seconds} {name}"
    return f"{seconds} s"


# --- collector --------------------------------------------------------------------------------------------------


def collector(target: Target) -> Link:
    if "collector" not in target.tasks:
        return ABSENT
    again, words = "{fab} collector", "{ssh} journalctl -u knockmap-collector -n 20"
    if gone := next(
        (p for p in target.files("collector") if not p.startswith(f"{GEO}/") and not os.path.exists(p)), ""
    ):
        return bad(f"{gone} is gone", again)
    found = settled(COLLECTOR)
    state, sub = found.get("ActiveState", "unknown"), found.get("SubState", "")
    if state == "inactive":
        return bad("the collector is stopped, so nothing becomes a row", again)
    if state != "active":
        return bad(f"the collector ends again and again ({sub}){last_words(COLLECTOR)}", words, symptom=True)
    seconds, size = lag()
    behind = f"{seconds:.0f} s and {size / 1000:.0f} kB of log behind"
    if seconds > 60:
        return bad(f"the collector runs and is {behind}", words, symptom=True)
    if found.get("UnitFileState") != "enabled":
        return warn("the collector runs and is not enabled, so it will not after a reboot", again)
    if seconds > 10:
        return warn(f"the collector runs and is {behind}", words)
    if edited := target.edited("collector"):
        return warn(f"{edited} was edited since it was deployed", again)
    return ok(f"runs, {behind}" if size else "runs, has read all of the log")


def lag() -> tuple[float, int]:
    """How old the first unread line of the log is, in seconds, and how many bytes are unread."""
    with contextlib.suppress(sqlite3.Error, OSError, KeyError), open(LOG, "rb") as log:
        first = log.readline(4096)
        with reading() as db:
            offset = int(one(db, "SELECT max(offset) FROM position WHERE first = ?", first) or 0)
        size = os.fstat(log.fileno()).st_size
        log.seek(offset)
        line = log.readline()
        if line.endswith(b"\n"):
            return max(0.0, time.time() - stamp(line)), size - offset
    return 0.0, 0


def stamp(line: bytes) -> float:
    """Epoch of a line's RFC 3339 stamp; now, if it has none."""
    try:
        text = line.split(b" ", 1)[0].decode("ascii").replace("Z", "+00:00")
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()


# --- GeoIP ------------------------------------------------------------------------------------------------------


def geoip(target: Target) -> Link:
    """Read as the collector reads them, and compared with what was deployed."""
    if "collector" not in target.tasks:
        return ABSENT
    deployed = {p: after for p, after in target.files("collector").items() if p.startswith(f"{GEO}/")}
    if not deployed:
        return ABSENT._replace(cause="not deployed (geo_source = none)")
    again = "{fab} collector"
    if gone := next((path for path in deployed if not os.path.exists(path)), ""):
        return bad(f"the GeoIP database {gone} is missing, so places are unknown", again)
    try:
        with as_reader():
            built = min(read_database(path) for path in deployed)
    except Exception as error:  # maxminddb has errors of its own
        return bad(
            f"a GeoIP database cannot be read by the collector: {type(error).__name__}: {error}", again
        )
    days = (time.time() - built) / DAY
    newer = "take newer data by the setting geo_databases, then {fab} collector"
    if days > USELESS_DAYS:
        return bad(f"the GeoIP data are {days:.0f} days old, too old to say where a source is", newer)
    if damaged := next((path for path in deployed if sha256(path) != deployed[path].get("sha256")), ""):
        return bad(f"the GeoIP database {damaged} is not what was deployed: damaged, or replaced", again)
    if days > OLD_DAYS:
        return warn(f"the GeoIP data are {days:.0f} days old", newer)
    return ok(f"{len(deployed)} readable, {days:.0f} days old")


def read_database(path: str) -> int:
    """When a database was built; looks some addresses up, since a damaged tree shows only there."""
    packages = "/usr/lib/python3/dist-packages"
    if packages not in sys.path:
        sys.path.append(packages)
    import maxminddb

    with maxminddb.open_database(path) as reader:
        about: Any = reader.metadata()
        for number in range(1, 224, 3):
            reader.get(f"{number}.{number}.{number}.1")
        if about.ip_version == 6:
            for number in range(0x2000, 0x3000, 61):
                reader.get(f"{number:x}:db8::1")
        return int(about.build_epoch)


# --- database ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading() -> Iterator[sqlite3.Connection]:
    with as_reader():
        db = sqlite3.connect(f"file:{DB}?mode=ro", uri=True, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            yield db
        finally:
            db.close()


def one(db: sqlite3.Connection, sql: str, *values: object) -> Any:
    row = db.execute(sql, values).fetchone()
    return row[0] if row else None


def database(target: Target) -> Link:
    if "collector" not in target.tasks:
        return ABSENT
    words = "{ssh} journalctl -u knockmap-collector -n 20"
    if not eventually(lambda: os.path.exists(DB)):
        return bad(f"there is no database {DB}", "{ssh} systemctl restart knockmap-collector")
    try:
        if problem := locked():
            return bad(problem, words)
        with reading() as db:
            return content(db)
    except sqlite3.DatabaseError as error:
        away = f"{{ssh}} 'systemctl stop knockmap-collector; mv {DB} {DB}.damaged; rm -f {DB}-wal {DB}-shm; systemctl start knockmap-collector'"
        if "malformed" in str(error) or "not a database" in str(error):
            return bad(
                f"the database {DB} is damaged: {error}; a new one begins with what the log holds", away
            )
        return bad(f"the database {DB} cannot be read: {error}", words)


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds, at once or soon: a service that was just started may still be at it."""
    deadline = time.monotonic() + START_SECONDS
    while not holds() and time.monotonic() < deadline and unit(COLLECTOR).get("ActiveState") == "active":
        time.sleep(0.1)
    return holds()


def locked() -> str:
    """Whether nobody can write: the collector's own transactions are much shorter than we wait."""
    with as_reader():
        db = sqlite3.connect(f"file:{DB}?mode=rw", uri=True, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        else:
            return ""
        finally:
            db.close()
    return f"the database is locked for more than {LOCK_SECONDS} s{holder()}, so the collector waits"


def holder() -> str:
    """Who else has the database open, by /proc: the collector is not meant."""
    mine = {os.getpid(), int(unit(COLLECTOR).get("MainPID") or 0)}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            folder = f"/proc/{pid}/fd"
            if int(pid) not in mine and any(os.readlink(f"{folder}/{fd}") == DB for fd in os.listdir(folder)):
                with open(f"/proc/{pid}/comm", encoding="ascii", errors="replace") as comm:
                    return f" by process {pid} ({comm.read().strip()})"
    return ""


def content(db: sqlite3.Connection) -> Link:
    """A check of its pages that ends after a second, and what it says of lines that were not understood."""
    deadline = time.monotonic() + CHECK_SECONDS
    db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    checked = "checked"
    try:
        found = one(db, "PRAGMA quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed ({found.splitlines()[-1]})")
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        checked = f"{CHECK_SECONDS:.0f} s checked"
    db.set_progress_handler(None, 0)
    rows = one(db, "SELECT sum(events) FROM month") or 0
    text = f"{rows} events, {os.path.getsize(DB) / 1e6:.1f} MB, {checked}"
    return unparsed(db) or ok(text)


def unparsed(db: sqlite3.Connection) -> Link | None:
    """Only new ones: what was once not understood stays counted for ever."""
    recent = one(db, "SELECT count(*) FROM unparsed WHERE ts > ?", int(time.time()) - 3600)
    if not recent:
        return None
    reason = one(db, "SELECT reason FROM unparsed ORDER BY id DESC LIMIT 1")
    return warn(
        f"{recent} lines of the last hour were no packets that we understand ({reason})",
        "{fab} scanners",
    )


# --- of the proof packet ----------------------------------------------------------------------------------------


def row_of(address: str, port: int, since: int) -> int:
    """The id of the event with this source and port since then; 0 if there is none."""
    with contextlib.suppress(sqlite3.Error, OSError, KeyError), reading() as db:
        return int(
            one(
                db,
                "SELECT e.id FROM event e JOIN source s ON s.id = e.source"
                " WHERE e.ts >= ? AND s.address = ? AND e.source_port = ? ORDER BY e.id DESC LIMIT 1",
                *(since, address, port),
            )
            or 0
        )
    return 0
