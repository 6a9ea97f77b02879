"""The dashboard: a page and read-only JSON about the collector's database, for Apache in front, on loopback only.

GET {base}/                    the page; its files are in static/
GET {base}/api/view            sums of a span, see view.py                     since, until, where
GET {base}/api/lines           log lines, the newest first, in pages           … and before (of the page), q (a search)
GET {base}/api/unparsed        lines that were no packets                      since, until
GET {base}/api/live            new events and how the chain is                 after (an event's id)
GET {base}/api/export          every event, as CSV or NDJSON                   since, until, where, format
{base} is /map, and /public if that is on: the same without addresses, lines and export.

No SQL comes from outside. An answer is worked on for 2 s and with 32 MB at most, or it is an error that says what to ask instead.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import ipaddress
import itertools
import json
import os
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import database
from chain import chain
from events import Export, lines, live, unparsed
from query import BadRequest, Query, query, search
from view import TooMuch, View

SECONDS = 2.0  # for one answer
MEMORY = 32 << 20  # for all of SQLite in this process
AT_ONCE = 2  # answers that are worked on; one of them at most for the public page
FRESH = 0.5  # seconds for which an answer does, while events pour in
FAILED = 5.0  # … and for which a question that failed is not tried again
CACHED = 64  # answers
PUBLIC_RATE, PUBLIC_BURST = 4.0, 40.0  # requests of one address to /public/api, per second and at once

# Nothing but our own files and answers; no inline script or style, no frames.
HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
]
Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class Busy(Exception):
    """Too many requests of one address, or of all."""


@dataclass(frozen=True)
class Options:
    db: str = database.PATH
    log: str = "/var/log/iptables.log"
    counts: str = "/run/knockmap/counts"
    port: int = 8722
    public: bool = False


@dataclass(frozen=True)
class Body:
    """An answer as it is sent: its bytes, plain and packed, and what names this version of them."""

    kind: str
    packed: bytes
    etag: str
    caching: str = "no-cache"

    @classmethod
    def of(cls, kind: str, data: bytes, level: int = 4, caching: str = "no-cache") -> Body:
        etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
        return cls(kind, gzip.compress(data, level, mtime=0), etag, caching)


@dataclass
class Cached:
    lock: threading.Lock
    body: Body | None = None
    error: Exception | None = None
    stamp: tuple[int, int] = (0, 0)
    at: float = 0.0


class Answers:
    """Answers to equal questions are worked out once: while nothing new is stored, or for FRESH seconds.

    Whoever waits does so for SECONDS at most, so that a heavy question never holds all threads.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.cached: dict[Any, Cached] = {}
        self.lock = threading.Lock()
        self.watch: Connected | None = None
        # Connections, or None for one that is not made yet: whoever has one works.
        self.idle: queue.Queue[Connected | None] = queue.Queue()
        for _ in range(AT_ONCE):
            self.idle.put(None)

    def stamp(self) -> tuple[int, int]:
        """Changes when the collector has stored something, or has another file."""
        with self.lock:
            self.watch = connected(self.path, self.watch)
            return self.watch.inode, self.watch.db.execute("PRAGMA data_version").fetchone()[0]

    def ask(self, work: Callable[[sqlite3.Connection], Any], wait: float | None = None) -> Any:
        """Run queries within the limits of time and memory; `wait` seconds for a turn at most (default SECONDS).

        Raises BadRequest, TooMuch, Busy, sqlite3.Error."""
        try:
            link = self.idle.get(timeout=SECONDS if wait is None else wait)
        except queue.Empty:
            raise Busy from None
        try:
            link = connected(self.path, link)
            stop = time.monotonic() + SECONDS
            link.db.set_progress_handler(lambda: time.monotonic() > stop, 10_000)
            return work(link.db)
        except MemoryError:
            raise TooMuch(
                "that takes more memory than this small machine gives; choose a shorter span"
            ) from None
        finally:
            if link:
                link.db.execute("PRAGMA shrink_memory")
            self.idle.put(link)

    def entry(self, key: Any) -> Cached:
        with self.lock:
            while len(self.cached) >= CACHED and key not in self.cached:
                self.cached.pop(next(iter(self.cached)))
            return self.cached.setdefault(key, Cached(threading.Lock()))

    def answer(self, key: Any, work: Callable[[sqlite3.Connection], Any], rows_only: bool = True) -> Body:
        """`rows_only`: nothing but the database is asked. What failed is not tried again for a moment."""
        entry = self.entry(key)
        if not entry.lock.acquire(timeout=SECONDS):
            raise Busy
        try:
            age = time.monotonic() - entry.at
            if entry.error and age < FAILED:
                raise type(entry.error)(*entry.error.args)
            stamp = self.stamp()
            if entry.body and ((rows_only and entry.stamp == stamp) or age < FRESH):
                return entry.body
            entry.error = None
            entry.body = as_json(self.ask(work))
            entry.stamp, entry.at = stamp, time.monotonic()
            return entry.body
        except (TooMuch, sqlite3.OperationalError) as error:
            # Only what was too heavy: a database that was not there may be there again at once.
            heavy = isinstance(error, TooMuch) or "interrupted" in str(error)
            entry.body, entry.error = None, error if heavy else None
            entry.at = entry.at if age < FAILED else time.monotonic()
            raise
        finally:
            entry.lock.release()


@dataclass(frozen=True)
class Connected:
    db: sqlite3.Connection
    inode: int


def connected(path: str, link: Connected | None) -> Connected:
    """This connection, or a new one where the file at `path` is another by now: doctor has a damaged one moved away."""
    try:
        inode = os.stat(path).st_ino
    except OSError:
        inode = 0
    if link and link.inode == inode:
        return link
    if link and not inode:
        return link  # moved away for a moment, or not made again yet
    fresh = Connected(connect(path), inode)
    if link:
        link.db.close()
    return fresh


def connect(path: str) -> sqlite3.Connection:
    db = database.reader(path, any_thread=True)
    db.execute(f"PRAGMA hard_heap_limit = {MEMORY}")
    db.execute("PRAGMA cache_size = -4000")
    db.execute("PRAGMA temp.cache_size = -4000")
    return db


def as_json(answer: Any) -> Body:
    return Body.of("application/json", json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode())


class Rate:
    """At most so many requests of one address: a bucket that fills up again."""

    def __init__(self, per_second: float, burst: float) -> None:
        self.per_second, self.burst = per_second, burst
        self.buckets: dict[str, tuple[float, float]] = {}
        self.lock = threading.Lock()

    def take(self, address: str, now: float) -> None:
        """Raises Busy."""
        with self.lock:
            if len(self.buckets) > 10_000:
                self.buckets = {k: v for k, v in self.buckets.items() if now - v[1] < 60}
            left, at = self.buckets.get(address, (self.burst, now))
            left = min(self.burst, left + (now - at) * self.per_second)
            if left < 1:
                raise Busy
            self.buckets[address] = (left - 1, now)


STATIC = Path(__file__).parent / "static"


FILES = frozenset(str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file())
KINDS = {
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".css": "text/css",
    ".html": "text/html",
}


@lru_cache
def static_file(name: str) -> Body:
    """One of FILES, packed when first asked for. What has its version in its name never changes; the rest is asked for
    again, and then is a 304."""
    path = STATIC / name
    caching = "max-age=31536000, immutable" if name.startswith("vendor/") else "no-cache"
    return Body.of(KINDS.get(path.suffix, "text/plain"), path.read_bytes(), 9, caching)


class Dashboard:
    """The WSGI application."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.answers = Answers(options.db)
        self.rate = Rate(PUBLIC_RATE, PUBLIC_BURST)
        self.public_turn = threading.Semaphore(1)
        self.exporting = threading.Semaphore(AT_ONCE)

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        answer = self.answered(environ, start)
        return [b""] if environ["REQUEST_METHOD"] == "HEAD" and isinstance(answer, list) else answer

    def answered(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        """What can go wrong becomes a status and a sentence."""
        try:
            return self.respond(environ, start)
        except BadRequest as error:
            return refuse(start, "400 Bad Request", str(error))
        except TooMuch as error:
            return refuse(start, "422 Unprocessable Content", str(error))
        except Busy as error:
            return refuse(
                start, "429 Too Many Requests", str(error) or "too many requests at once; wait a few seconds"
            )
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                reason = (
                    f"the answer takes longer than {SECONDS:.0f} s; choose a shorter span or fewer filters"
                )
                return refuse(start, "422 Unprocessable Content", reason)
            return refuse(start, "503 Service Unavailable", why(error))
        except sqlite3.DatabaseError as error:
            return refuse(
                start, "503 Service Unavailable", f"the database is damaged ({error}): `fab -H … doctor`"
            )

    def respond(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return refuse(start, "405 Method Not Allowed", "this page can only be read")
        base, _, rest = environ["PATH_INFO"].lstrip("/").partition("/")
        public = base == "public" and self.options.public
        if base != "map" and not public:
            return refuse(start, "404 Not Found", "there is nothing here; the page is at /map/")
        if rest.startswith("api/"):
            answer = self.public_api if public else self.api
            return answer(rest[4:], environ, start)
        name = rest or "index.html"
        if name not in FILES:
            return refuse(start, "404 Not Found", f"there is no {name[:100]}")
        return send(environ, start, static_file(name))

    def public_api(self, name: str, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        """One at a time, and only so often for each address: who has a login comes first."""
        self.rate.take(neighbourhood(client(environ)), time.monotonic())
        if not self.public_turn.acquire(timeout=0.5):
            raise Busy
        try:
            return self.api(name, environ, start, public=True)
        finally:
            self.public_turn.release()

    def api(self, name: str, environ: Environ, start: StartResponse, public: bool = False) -> Iterable[bytes]:
        asked = Asked(environ["QUERY_STRING"])
        if name == "live":
            return send(environ, start, self.live(asked, public))
        if name == "view":
            question = asked.query(public)
            work = self.public_view if public else self.view
            return send(
                environ, start, self.answers.answer((public, question), lambda db: work(db, question))
            )
        if public:
            return refuse(start, "404 Not Found", "the public page has sums only")
        if name == "export":
            return self.export(asked, start)
        if name == "lines":
            question, before = asked.query(), asked.before()
            found = self.answers.ask(lambda db: lines(View(db, question), before))
            return send(environ, start, as_json(found))
        if name == "unparsed":
            question = asked.query()
            found = self.answers.ask(lambda db: unparsed(db, question.since, question.until))
            return send(environ, start, as_json(found))
        return refuse(start, "404 Not Found", "there are view, lines, unparsed, live and export")

    def view(self, db: sqlite3.Connection, question: Query) -> dict[str, Any]:
        return View(db, question).answer()

    def public_view(self, db: sqlite3.Connection, question: Query) -> dict[str, Any]:
        """Without addresses: what remains are networks of 256 or more. Nor fingerprints, which cost too much for all."""
        return View(db, question).answer(packets=False) | {"addresses": []}

    def live(self, asked: Asked, public: bool) -> Body:
        after = asked.number("after", 0)

        def work(db: sqlite3.Connection) -> dict[str, Any]:
            return {**live(db, after, public), "chain": chain(db, self.options.log, self.options.counts)}

        return self.answers.answer((public, "live", after), work, rows_only=False)

    def export(self, asked: Asked, start: StartResponse) -> Iterable[bytes]:
        """Streamed, page by page: each page within the limits, and one export at a time."""
        form, question = asked.one("format", "csv"), asked.query()
        if form not in Export.KINDS:
            raise BadRequest("format must be csv or ndjson")
        if not self.exporting.acquire(blocking=False):
            raise Busy("other exports are being downloaded; one must end first")
        try:
            parts = Export(lambda work: self.answers.ask(work, wait=30), question, form).parts()
            first = list(
                itertools.islice(parts, 2)
            )  # what cannot be answered fails here, before it is called well
        except BaseException:
            self.exporting.release()
            raise
        name = f"ssh-scans-{time.strftime('%Y-%m-%d', time.gmtime(question.since))}.{form}"
        headers = [
            *HEADERS,
            ("Content-Type", Export.KINDS[form]),
            ("Content-Disposition", f'attachment; filename="{name}"'),
            ("Cache-Control", "no-store"),
        ]
        return Streamed(itertools.chain(first, parts), self.exporting, lambda: start("200 OK", headers))


class Streamed:
    """The parts of an export. Whoever ends it, the next one may begin."""

    def __init__(self, parts: Iterator[bytes], turn: threading.Semaphore, begin: Callable[[], Any]) -> None:
        self.parts, self.turn, self.closed = parts, turn, False
        begin()

    def __iter__(self) -> Iterator[bytes]:
        return self.parts

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.turn.release()


class Asked:
    """The parameters of a request. Raises BadRequest for one that cannot be."""

    NAMES = frozenset(("since", "until", "where", "before", "after", "q", "format"))

    def __init__(self, text: str) -> None:
        try:
            self.given = parse_qs(
                text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=16, errors="strict"
            )
        except ValueError:
            raise BadRequest("the question is not of the form name=value&…, at most 16 of them") from None
        if unknown := set(self.given) - self.NAMES:
            raise BadRequest(
                f"{min(unknown)[:20]!r} is no parameter; there are {', '.join(sorted(self.NAMES))}"
            )

    def one(self, name: str, default: str = "") -> str:
        values = self.given.get(name, [default])
        if len(values) != 1:
            raise BadRequest(f"{name} is there twice")
        return values[0]

    def number(self, name: str, default: int) -> int:
        text = self.one(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise BadRequest(f"{name} must be a number")
        return int(text)

    def query(self, public: bool = False) -> Query:
        where = self.given.get("where", [])
        if text := self.one("q"):
            where = [*where, search(text)]
        if public and any(item.startswith(("address:", "ttl:", "window:", "port:")) for item in where):
            raise BadRequest(
                "the public page knows no addresses and no single packets; ask for a network or a country"
            )
        return query(self.one("since"), self.one("until"), where)

    def before(self) -> tuple[int, int] | None:
        """The event that ended the page before: `ts.id`."""
        if not (text := self.one("before")):
            return None
        ts, _, id = text.partition(".")
        if not all(part.isascii() and part.isdigit() and len(part) < 16 for part in (ts, id)):
            raise BadRequest("before must be as `next` of the page before gives it")
        return int(ts), int(id)


def client(environ: Environ) -> str:
    """Who asks: the last address that Apache has noted."""
    return str(environ.get("HTTP_X_FORWARDED_FOR", environ.get("REMOTE_ADDR", ""))).rpartition(",")[2].strip()


def neighbourhood(address: str) -> str:
    """An IPv4 address, or the /64 that one customer has."""
    try:
        return str(ipaddress.ip_network((address, 64), strict=False)) if ":" in address else address
    except ValueError:
        return address[:45]


def send(environ: Environ, start: StartResponse, body: Body) -> list[bytes]:
    headers = [
        *HEADERS,
        (
            "Content-Type",
            body.kind if "charset" in body.kind or "image" in body.kind else f"{body.kind}; charset=utf-8",
        ),
        ("Cache-Control", body.caching),
        ("ETag", body.etag),
        ("Vary", "Accept-Encoding"),
    ]
    if body.etag in environ.get("HTTP_IF_NONE_MATCH", ""):
        start("304 Not Modified", headers)
        return []
    data = body.packed
    if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        headers.append(("Content-Encoding", "gzip"))
    else:
        data = gzip.decompress(data)
    start("200 OK", [*headers, ("Content-Length", str(len(data)))])
    return [data]


def refuse(start: StartResponse, status: str, reason: str) -> list[bytes]:
    data = json.dumps({"error": reason}, ensure_ascii=False).encode()
    headers = [*HEADERS, ("Content-Type", "application/json; charset=utf-8"), ("Cache-Control", "no-store")]
    start(status, [*headers, ("Content-Length", str(len(data)))])
    return [data]


def why(error: sqlite3.OperationalError) -> str:
    if "unable to open" in str(error):
        return "the collector has no database yet: is it running? `fab -H … doctor` tells"
    return f"the database does not answer ({error}): `fab -H … doctor` tells why"


def options(argv: list[str]) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("db", "log", "counts"):
        parser.add_argument(f"--{name}", default=getattr(Options, name))
    parser.add_argument("--port", type=int, default=Options.port)
    parser.add_argument("--public", action="store_true")
    return Options(**vars(parser.parse_args(argv)))


def main() -> None:
    import waitress  # in Debian and Ubuntu: python3-waitress

    given = options(sys.argv[1:])
    print(f"the page is at http://127.0.0.1:{given.port}/map/", flush=True)
    waitress.serve(
        Dashboard(given),
        host="127.0.0.1",
        port=given.port,
        threads=10,
        connection_limit=200,
        channel_timeout=30,
        max_request_header_size=16384,
        max_request_body_size=1024,
        ident=None,
        # Apache is the only one who can reach us.
        trusted_proxy="127.0.0.1",
        trusted_proxy_headers={"x-forwarded-for"},
        clear_untrusted_proxy_headers=True,
    )


if __name__ == "__main__":
    main()
