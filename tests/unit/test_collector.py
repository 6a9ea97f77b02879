"""The collector on real log files and a real database: nothing lost, nothing doubled."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, Options
from database import DAY, tally
from geoip import NOWHERE, Place, place_of

from tests.bench import log
from tests.unit import mmdb

PROGRAM = Path(__file__).parents[2] / "files" / "collector" / "collector.py"


def made(count: int, seed: int = 1, start: int = 1_790_000_000) -> list[bytes]:
    return list(log.lines(count, sources=20, start=start, step=3.0, seed=seed))


class Bench:
    """A log folder and the collector that follows it."""

    def __init__(self, folder: Path) -> None:
        self.log, self.db = folder / "iptables.log", folder / "knockmap.db"
        self.options = Options(log=str(self.log), db=str(self.db), geo=str(folder / "geo"), free_bytes=0)
        self.collector = Collector(self.options)

    def again(self, **changes: Any) -> None:
        """As after a stop and a start."""
        self.collector.db.close()
        self.options = Options(**{**vars(self.options), **changes})
        self.collector = Collector(self.options)

    def write(self, lines: list[bytes], name: str = "iptables.log") -> None:
        with (self.log.parent / name).open("ab") as file:
            file.writelines(lines)

    def one(self, sql: str) -> Any:
        return self.collector.db.execute(sql).fetchone()[0]

    def texts(self) -> list[bytes]:
        """The raw text of every event, in order of their ids."""
        rows = self.collector.db.execute("SELECT count, text FROM line ORDER BY first").fetchall()
        lines = [line for _, text in rows for line in zlib.decompress(text).split(b"\n")]
        assert len(lines) == sum(count for count, _ in rows)
        return [line + b"\n" for line in lines]

    def whole(self, lines: list[bytes]) -> None:
        """The database holds these lines, once each, and its sums agree with its rows."""
        assert self.one("SELECT count(*) FROM event") == len(lines)
        assert Counter(self.texts()) == Counter(lines)
        self.sums()

    def sums(self) -> None:
        """The sums of hours, days and months are those of the rows."""
        for table, counted in {
            "SELECT hour, country, events FROM hour": "ts - ts % 3600, country",
            "SELECT day, source, place, events FROM day": "ts - ts % 86400, source, event.place",
            "SELECT month, source, place, events FROM month": "unixepoch(ts, 'unixepoch', 'start of month'), source, event.place",
        }.items():
            columns = counted.count(",") + 1 - 2 * counted.count("'unixepoch'")
            keys = ", ".join(str(n + 1) for n in range(columns))
            rows = (
                f"SELECT {counted}, count(*) FROM event JOIN place ON place.id = event.place GROUP BY {keys}"
            )
            assert sorted(self.collector.db.execute(table)) == sorted(self.collector.db.execute(rows))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_takes_lines_as_they_come_and_keeps_their_text(bench: Bench) -> None:
    lines = made(30)
    for line in lines:
        bench.write([line])
        assert bench.collector.step() == 1
    bench.whole(lines)
    assert bench.one("SELECT count(*) FROM line") == 1
    assert bench.collector.step() == 0


def test_an_unfinished_line_waits_for_its_end(bench: Bench) -> None:
    first, second = made(2)
    bench.write([first, second[:50]])
    assert bench.collector.step() == 1
    bench.write([second[50:]])
    assert bench.collector.step() == 1
    bench.whole([first, second])


@pytest.mark.parametrize("stopped", [False, True])
def test_rotation_by_renaming_loses_nothing(bench: Bench, stopped: bool) -> None:
    lines = made(60)
    bench.write(lines[:20])
    bench.collector.step()
    bench.write(lines[20:40])
    if not stopped:
        bench.collector.step()
    bench.log.rename(bench.log.with_suffix(".log.1"))
    bench.write(lines[40:])
    if stopped:
        bench.again()
    bench.collector.step()
    bench.whole(lines)


def test_two_rotations_with_compression_while_stopped(bench: Bench) -> None:
    lines = made(90)
    bench.write(lines[:10])
    bench.collector.step()
    bench.write(lines[10:30])
    with gzip.open(f"{bench.log}.2.gz", "wb") as file:
        file.write(bench.log.read_bytes())
    bench.log.unlink()
    bench.write(lines[30:60], "iptables.log.1")
    bench.write(lines[60:])
    bench.again()
    bench.collector.step()
    bench.whole(lines)


def test_rotated_names_with_a_date_are_read_as_well(bench: Bench) -> None:
    lines = made(30)
    bench.write(lines[:10], "iptables.log-20261123-1700000000")
    bench.write(lines[10:20], "iptables.log-20261124-1700000100")
    bench.write(lines[20:])
    bench.collector.step()
    bench.whole(lines)


def test_copytruncate_neither_loses_nor_doubles(bench: Bench) -> None:
    lines = made(60)
    bench.write(lines[:30])
    bench.collector.step()
    shutil.copy(bench.log, f"{bench.log}.1")
    bench.collector.step()  # both begin alike now
    os.truncate(bench.log, 0)
    bench.collector.step()
    bench.write(lines[30:])
    bench.collector.step()
    bench.whole(lines)


def test_copytruncate_while_stopped_leaves_the_rest_in_the_copy(bench: Bench) -> None:
    lines = made(60)
    bench.write(lines[:20])
    bench.collector.step()
    bench.write(lines[20:40])
    shutil.copy(bench.log, f"{bench.log}.1")
    os.truncate(bench.log, 0)
    bench.write(lines[40:])
    bench.again()
    bench.collector.step()
    bench.whole(lines)


def test_a_new_file_with_the_old_inode_is_new(bench: Bench) -> None:
    lines = made(40)
    bench.write(lines[:20])
    bench.collector.step()
    content = bench.log.read_bytes()
    bench.log.write_bytes(b"")
    bench.write(lines[20:])
    assert content != bench.log.read_bytes()
    bench.collector.step()
    bench.whole(lines)


def test_files_that_begin_in_the_same_second_stay_in_order(bench: Bench) -> None:
    lines = sorted(log.lines(40, sources=5, start=1_790_000_000, step=0.02, seed=3))
    bench.write(lines[:20], "iptables.log.1")
    bench.write(lines[20:])
    bench.collector.step()
    bench.again()
    bench.collector.step()
    bench.whole(lines)


def test_two_files_with_the_same_first_line_are_two(bench: Bench) -> None:
    lines = made(60)
    bench.write([lines[0], *lines[1:30]])
    bench.collector.step()
    bench.log.rename(f"{bench.log}.1")
    bench.write([lines[0], *lines[30:]])
    bench.collector.step()
    bench.again()
    bench.collector.step()
    bench.whole([lines[0], *lines])


def test_a_clock_that_was_ahead_stops_nothing(bench: Bench) -> None:
    future, present = made(20, seed=1, start=1_890_000_000), made(40, seed=2)
    bench.write(future)
    bench.collector.step()
    bench.log.rename(f"{bench.log}.1")
    bench.write(present[:20])
    bench.collector.step()
    bench.log.rename(f"{bench.log}.2")
    bench.write(present[20:])
    bench.again()
    bench.collector.step()
    bench.whole([*future, *present])


def test_bsd_stamps_without_a_year_are_followed_over_rotations(bench: Bench) -> None:
    lines = [b"Nov 24 03:50:22" + line[32:] for line in made(40)]
    bench.write(lines[:20])
    bench.collector.step()
    bench.log.rename(f"{bench.log}.1")
    bench.write(lines[20:])
    bench.again()
    bench.collector.step()
    bench.whole(lines)


def test_a_gz_that_is_still_being_written_is_neither_lost_nor_doubled(bench: Bench) -> None:
    lines = made(40)
    packed = gzip.compress(b"".join(lines[:20]))
    bench.log.with_suffix(".log.2.gz").write_bytes(packed[: len(packed) // 2])
    bench.write(lines[20:])
    bench.collector.step()
    bench.log.with_suffix(".log.2.gz").write_bytes(packed)
    bench.collector.step()
    bench.again()
    assert bench.collector.step() == 0
    bench.whole(lines)


def test_counts_of_any_span_are_those_of_its_rows(bench: Bench) -> None:
    lines = list(log.lines(3000, sources=20, start=1_780_000_000, step=3600.0, seed=4))
    bench.write(lines)
    bench.collector.step()
    first, last = bench.collector.db.execute("SELECT min(ts), max(ts) FROM event").fetchone()
    rng = random.Random(6)
    for _ in range(40):
        since = rng.randrange(first - DAY, last)
        until = since + rng.choice((60, 3600, DAY, 40 * DAY, 100 * DAY))
        tally(bench.collector.db, since, until)
        raw = f"SELECT source, place, count(*) FROM event WHERE ts >= {since} AND ts < {until} GROUP BY 1, 2"
        assert sorted(bench.collector.db.execute("SELECT * FROM tally")) == sorted(
            bench.collector.db.execute(raw)
        )


def test_what_is_no_packet_is_kept_with_its_reason(bench: Bench) -> None:
    lines = made(3)
    bench.write([lines[0], b"garbage\n", lines[1], b"\xff\x00\n", lines[2]])
    assert bench.collector.step() == 5
    bench.whole(lines)
    kept = bench.collector.db.execute("SELECT reason, line FROM unparsed ORDER BY id").fetchall()
    assert kept == [("no packet in it", b"garbage"), ("no packet in it", b"\xff\x00")]
    assert bench.one("SELECT value FROM meta WHERE key = 'unparsed'") == 2


def test_folded_lines_are_rows_of_their_own(bench: Bench) -> None:
    (line,) = made(1)
    bench.write([line.replace(b"kernel: ", b"kernel: message repeated 4 times: [ ").replace(b"\n", b"]\n")])
    bench.collector.step()
    assert bench.one("SELECT count(*) FROM event") == 4 == len(bench.texts())
    assert bench.one("SELECT sum(events) FROM hour") == 4


def test_kill_9_in_the_middle_of_bulk_loses_and_doubles_nothing(tmp_path: Path) -> None:
    lines = list(log.lines(12_000, sources=1000, step=2.0))
    for number in range(12):  # each file is a transaction
        part = lines[number * 1000 : (number + 1) * 1000]
        (tmp_path / f"iptables.log-{number:02}").write_bytes(b"".join(part))
    path, db = tmp_path / "iptables.log", tmp_path / "knockmap.db"
    argv = [sys.executable, str(PROGRAM), "--log", str(path), "--db", str(db)]
    argv += ["--geo", str(tmp_path), "--free-bytes", "0"]
    rng, killed_at = random.Random(5), []
    for _ in range(3):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        wait_for_more(db, killed_at[-1] if killed_at else 0)
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(stored(db))
    assert killed_at[0] < len(lines)
    subprocess.run([*argv, "--once"], stdout=subprocess.DEVNULL, check=True)
    Bench(tmp_path).whole(lines)


def stored(db: Path) -> int:
    """How many events a database holds, also one that is not made yet."""
    with contextlib.closing(sqlite3.connect(db)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM event").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def wait_for_more(db: Path, before: int) -> None:
    deadline = time.monotonic() + 10
    while (
        not (Path(f"{db}-wal").exists() and stored(db) > before)
        and before < 12_000
        and time.monotonic() < deadline
    ):
        time.sleep(0.002)


def test_forgets_by_age_and_keeps_the_sums_exact(bench: Bench) -> None:
    day = 86400
    old, new = (
        made(50, seed=1, start=int(time.time()) - 10 * day),
        made(50, seed=2, start=int(time.time()) - day),
    )
    bench.write([*old, *new])
    bench.collector.step()
    bench.again(retention_days=5)
    bench.collector.retain()
    assert bench.one("SELECT count(*) FROM event") == 50
    assert set(bench.texts()) >= set(new)
    bench.sums()
    more = made(5, seed=3, start=int(time.time()) - 100)
    bench.write(more)
    bench.collector.step()
    assert bench.texts()[-5:] == more
    bench.sums()


def test_forgets_the_oldest_days_when_it_grows_too_large(bench: Bench) -> None:
    now = int(time.time())
    for age in range(20, 0, -1):
        bench.write(made(300, seed=age, start=now - age * 86400))
    bench.collector.step()
    limit = bench.collector.used_bytes() // 2
    bench.again(retention_bytes=limit)
    bench.collector.retain()
    assert bench.collector.used_bytes() <= limit
    assert bench.one("SELECT count(*) FROM event") >= 300
    assert bench.one("SELECT max(ts) FROM event") > now - 2 * 86400
    bench.sums()


def test_pauses_before_the_disk_is_full_and_goes_on_by_itself(bench: Bench) -> None:
    bench.write(made(10))
    bench.collector.db.close()
    taken: list[int] = []
    collectors: list[Collector] = []

    def work() -> None:
        """SQLite wants its connection used by the thread that made it."""
        collectors.append(Collector(Options(**{**vars(bench.options), "free_bytes": 1 << 60})))
        taken.append(collectors[0].step())

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    with contextlib.closing(sqlite3.connect(bench.db)) as db:
        while not db.execute("SELECT 1 FROM meta WHERE key = 'paused'").fetchone():
            time.sleep(0.01)
    assert worker.is_alive() and not taken
    collectors[0].options = bench.options  # there is room again
    worker.join(5)
    assert taken == [10]


def test_a_pause_that_a_former_collector_noted_ends_with_its_cause(bench: Bench) -> None:
    bench.collector.note("paused", 1)
    bench.again(free_bytes=0)
    bench.collector.step()
    assert bench.one("SELECT count(*) FROM meta WHERE key = 'paused'") == 0


def test_what_is_forgotten_is_given_back_to_the_disk(bench: Bench) -> None:
    for age in range(10, 0, -1):
        bench.write(made(2000, seed=age, start=int(time.time()) - age * 86400))
    bench.collector.step()
    bench.again(retention_days=2)
    bench.collector.retain()
    free, pages = (bench.one(f"PRAGMA {name}") for name in ("freelist_count", "page_count"))
    assert free == 0 and pages < 200


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (
            {"country_code": "SG", "city": "Singapore", "latitude": 1.2897, "longitude": 103.8501},
            Place("SG", "Singapore", 1.29, 103.85),
        ),
        (
            {
                "country": {"iso_code": "IS"},
                "city": {"names": {"en": "Reykjavik"}},
                "location": {"latitude": 64.1, "longitude": -21.9},
            },
            Place("IS", "Reykjavik", 64.1, -21.9),
        ),
        (
            {"country": "DE", "city": "Berlin", "lat": "52.5", "lng": "13.4"},
            Place("DE", "Berlin", 52.5, 13.4),
        ),
        ({"country_code": "DE", "country": "Germany"}, Place("DE", "", None, None)),
        ({"latitude": "nonsense", "longitude": 1}, NOWHERE),
        ({}, NOWHERE),
    ],
)
def test_reads_every_layout_of_geoip_records(record: dict[str, Any], place: Place) -> None:
    assert place_of(record) == place


def test_a_locked_database_loses_no_line(bench: Bench) -> None:
    lines = made(30)
    bench.write(lines[:10])
    bench.collector.step()
    bench.collector.db.execute("PRAGMA busy_timeout = 50")
    bench.write(lines[10:])
    other = sqlite3.connect(bench.db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        bench.collector.step()
    other.execute("ROLLBACK")
    other.close()
    bench.collector.step()
    bench.whole(lines)


def test_a_full_disk_at_the_end_of_a_file_loses_no_line(bench: Bench) -> None:
    lines = made(2000)
    bench.write(lines)
    bench.collector.db.execute(f"PRAGMA max_page_count = {bench.one('PRAGMA page_count')}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        bench.collector.step()
    bench.collector.db.execute("PRAGMA max_page_count = 100000")
    assert bench.collector.step() == 2000
    bench.whole(lines)


def test_numbers_that_cannot_be_are_left_out_also_of_known_sources(bench: Bench) -> None:
    (line,) = made(1)
    bench.write(
        [line, re.sub(rb"SPT=\d+", b"SPT=70000", line), re.sub(rb"WINDOW=\d+", b"WINDOW=99999", line)]
    )
    bench.write([re.sub(rb"(TTL|HOPLIMIT)=\d+", rb"\1=999", line)])
    bench.collector.step()
    assert bench.one("SELECT count(*) FROM event") == 4
    assert (
        bench.one("SELECT max(source_port) FROM event") < 65536 > bench.one("SELECT max(window) FROM event")
    )
    assert bench.one("SELECT max(ttl) FROM event") < 256


def test_lines_out_of_order_and_in_other_zones_are_added_up_right(bench: Bench) -> None:
    lines = made(40, start=1_790_000_000) + made(40, seed=2, start=1_780_000_000) + made(40, seed=3)
    random.Random(1).shuffle(lines)
    bench.write([*lines, *(line.replace(b"+00:00", b"+05:30") for line in lines)])
    bench.collector.step()
    assert bench.one("SELECT count(*) FROM event") == 240
    bench.sums()


def test_a_rotation_between_looking_and_opening_loses_no_line(bench: Bench) -> None:
    lines = made(30)
    bench.write(lines[:10])
    bench.collector.step()
    bench.write(lines[10:20])
    for path in bench.collector.files.unread():
        bench.log.rename(f"{bench.log}.1")
        bench.write(lines[20:])
        for part, position in bench.collector.files.chunks(path):
            bench.collector.store([(part, position)])
    bench.collector.step()
    bench.whole(lines)


def test_a_clock_that_is_set_back_over_a_rotation_loses_no_line(bench: Bench) -> None:
    before, after = made(10, start=1_790_000_000), made(10, seed=2, start=1_789_990_000)
    bench.write(before)
    bench.collector.step()
    bench.log.rename(f"{bench.log}.1")
    bench.write(after)
    bench.collector.step()
    bench.again()
    bench.collector.step()
    bench.whole([*before, *after])


def test_a_damaged_archive_costs_only_what_is_damaged(bench: Bench) -> None:
    lines = made(4000)
    packed = gzip.compress(b"".join(lines[:3000]))
    Path(f"{bench.log}.2.gz").write_bytes(packed[: len(packed) // 2])
    bench.write(lines[3000:3500], "iptables.log.1")
    bench.write(lines[3500:])
    bench.collector.step()
    taken = bench.texts()
    assert taken[-1000:] == lines[3000:] and len(taken) > 1000 and taken[:-1000] == lines[: len(taken) - 1000]
    assert bench.collector.step() == 0


def test_an_archive_that_is_still_being_written_is_read_from_its_original(bench: Bench) -> None:
    lines = made(3000)
    bench.write(lines[:2000], "iptables.log.1")
    bench.write(lines[2000:])
    packed = gzip.compress(b"".join(lines[:2000]))
    Path(f"{bench.log}.1.gz").write_bytes(packed[: len(packed) // 2])
    bench.collector.step()
    bench.whole(lines)


def test_a_first_line_of_any_length_does_not_hide_the_rest(bench: Bench) -> None:
    lines = made(3)
    bench.write([b"x" * 9000 + b"\n", *lines])
    bench.collector.step()
    bench.write(more := made(2, seed=2))
    bench.collector.step()
    bench.whole([*lines, *more])


def test_a_pause_that_cannot_even_be_noted_loses_no_line(bench: Bench) -> None:
    lines = made(20)
    bench.write(lines)
    bench.again(free_bytes=1 << 60)
    bench.collector.db.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(bench.db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        bench.collector.step()
    other.execute("ROLLBACK")
    other.close()
    bench.collector.options = Options(**{**vars(bench.options), "free_bytes": 0})
    bench.collector.step()
    bench.whole(lines)


def test_after_everything_was_forgotten_texts_are_those_of_the_new_lines(bench: Bench) -> None:
    bench.write(made(4000, start=int(time.time()) - 10 * 86400))
    bench.collector.step()
    bench.again(retention_days=1)
    bench.collector.retain()
    new = made(10, seed=2, start=int(time.time()) - 60)
    bench.write(new)
    bench.collector.step()
    bench.whole(new)


def test_a_flood_of_one_day_leaves_its_newest_hours(bench: Bench) -> None:
    start = int(time.time()) // 86400 * 86400 - 86400
    for hour in range(20):
        bench.write(made(300, seed=hour, start=start + hour * 3600))
    bench.collector.step()
    bench.again(retention_bytes=bench.collector.used_bytes() // 2)
    bench.collector.retain()
    assert bench.collector.used_bytes() <= bench.options.retention_bytes
    assert bench.one("SELECT count(*) FROM event") >= 300
    bench.sums()


def test_a_geoip_database_that_comes_later_locates_old_sources_too(bench: Bench) -> None:
    lines = made(40)
    bench.write(lines[:20])
    bench.collector.step()
    assert bench.collector.db.execute("SELECT DISTINCT country FROM place").fetchall() == [("",)]
    (bench.log.parent / "geo").mkdir()
    flat = {"country_code": "IS", "city": "Reykjavik", "latitude": 64.1, "longitude": -21.9}
    mmdb.write(
        bench.log.parent / "geo" / "test.mmdb", {"0.0.0.0/1": flat, "128.0.0.0/1": flat, "2000::/3": flat}
    )
    bench.write(lines[20:])
    bench.collector.step()
    bench.whole(lines)
    where = "SELECT count(*) FROM event JOIN place ON place.id = event.place WHERE country = "
    assert (bench.one(f"{where} ''"), bench.one(f"{where} 'IS'")) == (20, 20)
    assert bench.one("SELECT value FROM meta WHERE key = 'geo_kinds'") == "Test-City"


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_writing_rotating_and_reading_loses_and_doubles_nothing(bench: Bench, seed: int) -> None:
    """As logrotate may do it: by renaming or copying, compressed later, with a collector that looks at any moment."""
    rng = random.Random(seed)
    step = rng.choice([0.001, 3.0, 500.0])
    lines = list(log.lines(120, sources=9, start=1_790_000_000, step=step, seed=seed))
    lines = lines[60:] + lines[:60] if seed % 3 == 0 else lines  # the clock is set back
    left, rotations = list(lines), 0
    while left:
        chosen = rng.choice(["write", "write", "read", "restart", "rename", "copy", "compress"])
        rotated = bench.log.with_name(f"iptables.log-{rotations:03}")
        if chosen == "write":
            bench.write([left.pop(0) for _ in range(min(len(left), rng.randrange(1, 12)))])
        elif chosen == "read":
            bench.collector.step()
        elif chosen == "restart":
            bench.again()
        elif chosen == "compress":
            compress_one(bench, rng)
        elif bench.log.exists():
            rotations += 1
            rotate(bench, rotated, chosen, rng)
    bench.collector.step()
    bench.again()
    assert bench.collector.step() == 0
    bench.whole(lines)


def rotate(bench: Bench, rotated: Path, way: str, rng: random.Random) -> None:
    if way == "rename":
        bench.log.rename(rotated)
        return
    content = bench.log.read_bytes()
    for size in (rng.randrange(len(content) + 1), len(content)):
        rotated.write_bytes(content[:size])
        if rng.random() < 0.5:
            bench.collector.step()
    os.truncate(bench.log, 0)


def compress_one(bench: Bench, rng: random.Random) -> None:
    plain = sorted(path for path in bench.log.parent.glob("iptables.log-*") if path.suffix != ".gz")
    if not plain:
        return
    path = rng.choice(plain)
    packed = gzip.compress(path.read_bytes())
    for size in (rng.randrange(len(packed)), len(packed)):
        Path(f"{path}.gz").write_bytes(packed[:size])
        if rng.random() < 0.5:
            bench.collector.step()
    path.unlink()
