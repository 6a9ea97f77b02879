"""The page under load: fifty users for thirty seconds, through Apache with TLS and login, while the collector takes lines.

`python -m tests.bench.load` makes a box, and writes tests/bench/load.md: how long answers took, how much the collector was
slowed, and what collector and dashboard take while nobody looks.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import platform
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from box import Box, down, history, state, up

from tests.bench import log

RESULTS = Path(__file__).parent / "load.md"
USERS, SECONDS = 50, 30
LOOK = 1.5  # seconds between looks of a page for new events, as page.js does
PAST, CATCH_UP = 100_000, 200_000  # lines before, and lines that the collector's speed is measured on
LARGE = 5_000_000
NAME = "bench-load"


@dataclass
class User:
    """One browser: looks for new events, and asks for the view of 24 hours when there are some."""

    address: str
    login: str
    took: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def run(self, until: float) -> None:
        context = ssl._create_unverified_context()  # the certificate is the box's own
        connection = http.client.HTTPSConnection(self.address, context=context, timeout=30)
        last = -1
        while time.monotonic() < until:
            began = time.monotonic()
            now = int(time.time()) + 1
            found = self.ask(connection, f"live?after={max(last, 0)}")
            if found and found["last"] != last:
                last = found["last"]
                asked = time.monotonic()
                if self.ask(connection, f"view?since={now - 86400}&until={now}"):
                    self.took.append(time.monotonic() - asked)
            time.sleep(max(0.0, LOOK - (time.monotonic() - began)))

    def ask(self, connection: http.client.HTTPSConnection, what: str) -> Any:
        try:
            connection.request(
                "GET", f"/map/api/{what}", headers={"Authorization": self.login, "Accept-Encoding": "gzip"}
            )
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                return json.loads(gzip.decompress(body)) if what.startswith("live") else True
            self.errors.append(f"{answer.status} {body[:80]!r}")
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(repr(error))
            connection.close()
        return None


def fab(*words: str) -> str:
    environment = {**os.environ, "KNOCKMAP_STACK": "embedded"}
    command = [str(Path(sys.executable).parent / "fab"), "-S", str(state.SSH_CONFIG), "-H", NAME, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def stored(box: Box) -> int:
    program = "import sqlite3; print(sqlite3.connect('file:/var/lib/knockmap/collector/knockmap.db?mode=ro', uri=True).execute('SELECT count(*) FROM event').fetchone()[0])"
    return int(box.run(["python3", "-c", program])[1])


def cpu_seconds(box: Box, unit: str) -> float:
    return int(box.run(["systemctl", "show", "-P", "CPUUsageNSec", unit])[1]) / 1e9


WAIT = """
import sqlite3, sys, time
db = sqlite3.connect("file:/var/lib/knockmap/collector/knockmap.db?mode=ro", uri=True)
until = time.time() + 60
while time.time() < until and db.execute("SELECT max(first + count) FROM line").fetchone()[0] <= int(sys.argv[1]):
    time.sleep(0.05)
print(time.time())
"""


def catch_up(box: Box, name: str, seed: int) -> float:
    """Seconds until the collector has stored CATCH_UP lines that appear all at once."""
    now = int(time.time())
    lines = list(history.lines(now - 60 * 86400, now - 30 * 86400, CATCH_UP, seed=seed))  # not of the view
    wanted = stored(box) + CATCH_UP
    box.add_log(name, lines)
    began = time.time()
    return float(box.run(["python3", "-c", WAIT, str(wanted)])[1]) - began


def with_users(site: dict[str, Any], box: Box) -> tuple[list[User], float]:
    """Fifty users for thirty seconds; meanwhile the collector catches up once."""
    user = site["users"][0]
    login = "Basic " + base64.b64encode(f"{user['user']}:{user['password']}".encode()).decode()
    users = [User(urlsplit(site["url"]).hostname or "", login) for _ in range(USERS)]
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=one.run, args=(until,)) for one in users]
    for thread in threads:
        thread.start()
        time.sleep(LOOK / USERS)  # people do not look at the same instant
    time.sleep(3)
    seconds = statistics.median(
        catch_up(box, f"iptables.log.busy{number}", 20 + number) for number in range(3)
    )
    while time.monotonic() < until:  # and events go on
        now = int(time.time())
        box.add_log(f"iptables.log.live{now}", list(history.lines(now - 1, now, 20, seed=now)))
        time.sleep(1)
    for thread in threads:
        thread.join()
    return users, seconds


def idle(box: Box, unit: str, seconds: float = 20) -> float:
    """Percent of one core."""
    before = cpu_seconds(box, unit)
    time.sleep(seconds)
    return 100 * (cpu_seconds(box, unit) - before) / seconds


def resident(box: Box) -> str:
    """Of collector and dashboard together: MB of their own, and of files that they have mapped (GeoIP data, mostly)."""
    script = "for pid in $(pgrep -u knockmap); do grep -E 'RssAnon|RssFile' /proc/$pid/status; done"
    rows = [line.split() for line in box.run(["sh", "-c", script])[1].splitlines()]
    own, mapped = (
        sum(int(row[1]) for row in rows if row[0] == name) / 1024 for name in ("RssAnon:", "RssFile:")
    )
    return f"{own:.0f} MB, {mapped:.0f} MB"


def answers_of_a_large_database(folder: Path) -> dict[int, float]:
    """Days → seconds of the first answer at the API, over 5 million events of a year."""
    sys.path[:0] = [str(state.ROOT / "files" / name) for name in ("collector", "dashboard")]
    from dashboard import Dashboard, Options  # type: ignore[import-not-found]

    now = int(time.time())
    path, db = folder / "iptables.log", folder / "knockmap.db"
    with path.open("wb") as file:
        file.writelines(log.lines(LARGE, start=now - 365 * 86400 + 60, step=365 * 86400 / LARGE))
    program = state.ROOT / "files" / "collector" / "collector.py"
    argv = [
        sys.executable,
        str(program),
        "--once",
        "--log",
        str(path),
        "--db",
        str(db),
        "--geo",
        str(folder),
        "--retention-bytes",
        str(4 << 30),
    ]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    app = Dashboard(Options(db=str(db), log=str(path)))
    took = {}
    for days in (1, 30, 365):
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/map/api/view",
            "QUERY_STRING": f"since={now - days * 86400}&until={now}",
        }
        began = time.monotonic()
        status: list[str] = []
        app(environ, lambda said, _headers, status=status: status.append(said))
        took[days] = time.monotonic() - began
        if status != ["200 OK"]:
            raise SystemExit(f"the view of {days} days: {status}")
    return took


def measure() -> str:
    with tempfile.TemporaryDirectory() as folder:
        large = answers_of_a_large_database(Path(folder))
    down(NAME)
    box = up(NAME, "trixie")
    try:
        fab("deploy")
        site = json.loads(fab("credentials", "--json"))
        now = int(time.time())
        box.add_log("iptables.log.past", list(history.lines(now - 7 * 86400, now, PAST)))  # 14,000 of 24 h
        while stored(box) < PAST:
            time.sleep(0.2)
        memory = resident(box)
        alone = statistics.median(
            catch_up(box, f"iptables.log.alone{number}", 10 + number) for number in range(3)
        )
        users, busy = with_users(site, box)
        resting = {unit: idle(box, unit) for unit in ("knockmap-collector", "knockmap-dashboard")}
        after = resident(box)
    finally:
        down(NAME)
    took = sorted(seconds for user in users for seconds in user.took)
    errors = [error for user in users for error in user.errors]
    p50, p95 = took[len(took) // 2], took[int(len(took) * 0.95)]
    return f"""\
Measured on {date.today()} by `python -m tests.bench.load`: {os.cpu_count()} cores, {platform.machine()}, with users, Apache, dashboard and collector all on them.

| {USERS} users for {SECONDS} s, 24 h view, {PAST + 6 * CATCH_UP:,} events, TLS and login | |
|---|---:|
| answers, errors | {len(took)}, {len(errors)} |
| median, 95th percentile | {p50 * 1000:.0f} ms, {p95 * 1000:.0f} ms |
| {CATCH_UP:,} lines at once: collector alone, beside these users | {alone:.1f} s, {busy:.1f} s ({busy / alone:.2f}×) |
| memory of collector and dashboard, own and mapped files: after {PAST:,} lines, after all | {memory}; {after} |
| first answer over {LARGE:,} events of a year: 24 h, 30 d, 365 d | {", ".join(f"{seconds * 1000:.0f} ms" for seconds in large.values())} |
| idle: collector, dashboard, of one core | {resting["knockmap-collector"]:.2f} %, {resting["knockmap-dashboard"]:.2f} % |
"""


if __name__ == "__main__":
    text = measure()
    RESULTS.write_text(text)
    print(text)
