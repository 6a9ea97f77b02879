"""The dashboard: a page and read-only JSON about the collector's database, for Apache in front, on loopback only.

GET {base}/                    the page; its files are in static/
GET {base}/api/view            sums of a span, see view.py                     since, until, where
GET {base}/api/lines           log lines, the newest first, in pages           … and before (of the page), q (a search)
GET {base}/api/unparsed        lines that were no packets                      since, until
GET {base}/api/live            new events and how the chain is                 after (an event's id)
GET {base}/api/export          every event, as CSV or NDJSON                   since, until, where, format
{base} is /map, and /public if that is on: the same without addresses, lines and export.

No SQL comes from outside. An answer takes 2 s and 32 MB at most, or it is an error that says what to ask instead.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import queue
import re
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
AT_ONCE = 2  # answers that are worked on
FRESH = 0.5  # seconds for which an answer does, while events pour in
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
    stamp: int = -1
    at: float = 0.0


class Answers:
    """Answers to equal questions are worked out once: while nothing new is stored, or for FRESH seconds."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.cached: dict[Any, Cached] = {}
        self.lock = threading.Lock()
        self.watch: sqlite3.Connection | None = None
        # Connections, or None for one that is not made yet: whoever has one works.
        self.idle: queue.Queue[sqlite3.Connection | None] = queue.Queue()
        for _ in range(AT_ONCE):
            self.idle.put(None)

    def stamp(self) -> int:
        """A number that changes when the collector has stored something."""
        with self.lock:
            if self.watch is None:
                self.watch = database.reader(self.path, any_thread=True)
            return int(self.watch.execute("PRAGMA data_version").fetchone()[0])

    def ask(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run queries within the limits of time and memory. Raises BadRequest, TooMuch, Busy, sqlite3.Error."""
        try:
            db = self.idle.get(timeout=SECONDS)
        except queue.Empty:
            raise Busy from None
        try:
            db = db or connect(self.path)
            stop = time.monotonic() + SECONDS
            db.set_progress_handler(lambda: time.monotonic() > stop, 10_000)
            return work(db)
        except MemoryError:
            raise TooMuch(
                "that takes more memory than this small machine gives; choose a shorter span"
            ) from None
        finally:
            if db:
                db.execute("PRAGMA shrink_memory")
            self.idle.put(db)

    def answer(self, key: Any, work: Callable[[sqlite3.Connection], Any], rows_only: bool = True) -> Body:
        """`rows_only`: nothing but the database is asked."""
        with self.lock:
            while len(self.cached) >= CACHED and key not in self.cached:
                self.cached.pop(next(iter(self.cached)))
            entry = self.cached.setdefault(key, Cached(threading.Lock()))
        with entry.lock:
            stamp = self.stamp()
            if entry.body and ((rows_only and entry.stamp == stamp) or time.monotonic() - entry.at < FRESH):
                return entry.body
            entry.body = as_json(self.ask(work))
            entry.stamp, entry.at = stamp, time.monotonic()
            return entry.body


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


@lru_cache(maxsize=64)
def static_file(name: str) -> Body | None:
    """Packed when first asked for. What has its version in its name never changes; the rest is asked for again, and then
    is a 304. None: there is no such file."""
    path = STATIC / name
    if not re.fullmatch(r"(vendor/)?[a-z][\w.-]*", name, re.ASCII) or not path.is_file():
        return None
    kinds = {
        ".js": "text/javascript",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".css": "text/css",
        ".html": "text/html",
    }
    caching = "max-age=31536000, immutable" if name.startswith("vendor/") else "no-cache"
    return Body.of(kinds.get(path.suffix, "text/plain"), path.read_bytes(), 9, caching)


class Dashboard:
    """The WSGI application."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.answers = Answers(options.db)
        self.rate = Rate(PUBLIC_RATE, PUBLIC_BURST)
        self.exporting = threading.Semaphore(1)

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        try:
            return self.respond(environ, start)
        except BadRequest as error:
            return refuse(start, "400 Bad Request", str(error))
        except TooMuch as error:
            return refuse(start, "422 Unprocessable Content", str(error))
        except Busy:
            return refuse(start, "429 Too Many Requests", "too many requests at once; wait a few seconds")
        except sqlite3.OperationalError as error:
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
            if public:
                self.rate.take(client(environ), time.monotonic())
            return self.api(rest[4:], environ, start, public)
        file = static_file(rest or "index.html")
        return (
            send(environ, start, file)
            if file
            else refuse(start, "404 Not Found", f"there is no {rest[:100]}")
        )

    def api(self, name: str, environ: Environ, start: StartResponse, public: bool) -> Iterable[bytes]:
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
        """Without addresses: what remains are networks of 256 or more."""
        return {**View(db, question).answer(), "addresses": []}

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
            raise Busy
        name = f"ssh-scans-{time.strftime('%Y-%m-%d', time.gmtime(question.since))}.{form}"
        headers = [
            *HEADERS,
            ("Content-Type", Export.KINDS[form]),
            ("Content-Disposition", f'attachment; filename="{name}"'),
            ("Cache-Control", "no-store"),
        ]
        parts = Export(self.answers.ask, question, form).parts()
        return Streamed(parts, self.exporting, lambda: start("200 OK", headers))


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
        if public and any(item.startswith("address:") for item in where):
            raise BadRequest("the public page knows no addresses; ask for a network")
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
    return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [data]


def refuse(start: StartResponse, status: str, reason: str) -> list[bytes]:
    data = json.dumps({"error": reason}, ensure_ascii=False).encode()
    headers = [*HEADERS, ("Content-Type", "application/json; charset=utf-8"), ("Cache-Control", "no-store")]
    start(status, [*headers, ("Content-Length", str(len(data)))])
    return [data]


def why(error: sqlite3.OperationalError) -> str:
    if "interrupted" in str(error):
        return f"the answer takes longer than {SECONDS:.0f} s; choose a shorter span or fewer filters"
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
        threads=6,
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
