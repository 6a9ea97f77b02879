"""Replay what the embedded stack stored: its raw log lines go through Logstash once more, and each is looked for after.

    migrate.py [--db PATH]     one JSON object per line on stdout: {"progress": text} …, and at last
                               {"lines": looked at, "new": of them not there before, "lacking": still not there}

Logstash reads the folder REPLAY beside the log, by the same pipeline. An event's _id is the SHA-256 of its raw line, so
what Elasticsearch lacks can be named, and only that is replayed: in another of its indices, it would not refuse what it
has already. Nothing of the embedded stack is changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any

from documents import SearchError, search
from elasticsearch import Unreachable

DATABASE = "/var/lib/knockmap/collector/knockmap.db"
REPLAY = "/var/lib/knockmap/replay"
ROOM = 256 << 20  # bytes that must stay free
SINCEDB = "/var/lib/logstash/knockmap.sincedb"
IDS = 5_000  # in one question; Elasticsearch gives no more than twice as many, and has each once, or twice at most
BATCH = 50_000  # lines
PATIENCE = 30  # seconds for an answer
STALLED, SETTLED = 180, 30  # seconds without a first event, and without one more


def stored(db: sqlite3.Connection) -> Iterator[bytes]:
    """Every raw line, in the order in which they came; then those that were no packets.

    In pages: a question that stays open for hours would keep the collector's write-ahead log from being emptied.
    """
    for question in (
        "SELECT first, text FROM line WHERE first > ? ORDER BY first LIMIT 100",
        "SELECT id, line FROM unparsed WHERE id > ? ORDER BY id LIMIT 1000",
    ):
        last = -1
        while page := db.execute(question, (last,)).fetchall():
            last = page[-1][0]
            for _, text in page:
                yield from zlib.decompress(text).split(b"\n") if "text" in question else (bytes(text),)


def missing(ids: Iterable[str]) -> list[str]:
    """Those that Elasticsearch does not have yet."""
    lacking: list[str] = []
    rest = iter(ids)
    while some := list(islice(rest, IDS)):
        question = {"size": 2 * IDS, "_source": False, "query": {"ids": {"values": some}}}
        found = {hit["_id"] for hit in patiently(question)["hits"]["hits"]}
        lacking += [id for id in some if id not in found]
    return lacking


def patiently(question: dict[str, Any]) -> dict[str, Any]:
    """The answer, also of an index that is just being made. Raises SearchError."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return search(question)
        except SearchError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def wait(ids: list[str]) -> list[str]:
    """Until Elasticsearch has them all, or no more come; gives those that it lacks."""
    lacking, since = ids, time.monotonic()
    while lacking := missing(rest := lacking):
        if len(lacking) < len(rest):
            since = time.monotonic()
        # Logstash reads in order: once it is at it, what does not come is not far behind the others.
        if time.monotonic() - since > (STALLED if len(lacking) == len(ids) else SETTLED):
            break
        time.sleep(1)
    return lacking


class Replay:
    """The file that Logstash reads, once there is something to write to it."""

    def __init__(self) -> None:
        self.path = f"{REPLAY}/{int(time.time())}.log"
        self.file: IO[bytes] | None = None

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *error: object) -> None:
        if self.file:
            self.file.close()
            os.unlink(self.path)

    def write(self, lines: Iterable[bytes]) -> None:
        if not self.file:
            self.file = unread(self.path)
        self.file.write(b"".join(line + b"\n" for line in lines))
        self.file.flush()


def unread(path: str) -> IO[bytes]:
    """A new file that Logstash takes for new: it knows files by their inodes, and those of removed files come again."""
    known = {line.split()[0] for line in text_of(SINCEDB).splitlines() if line.strip()}
    others: list[IO[bytes]] = []
    try:
        while True:
            file = open(f"{path}.{len(others)}", "xb")  # noqa: SIM115 - it stays open until all is there
            shutil.chown(file.name, "root", "logstash")
            os.chmod(file.name, 0o640)
            if inode(file) not in known:
                os.rename(file.name, path)
                return file
            others.append(file)
    finally:
        for other in others:
            other.close()
            os.unlink(other.name)


def inode(file: IO[bytes]) -> str:
    return str(os.fstat(file.fileno()).st_ino)


def text_of(path: str) -> str:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""


def bring(lines: Iterator[bytes]) -> None:
    """Some at a time: what Elasticsearch lacks is written, and has to come there before the next."""
    count = new = lacking = 0
    with Replay() as replay:
        while batch := list(islice(lines, BATCH)):
            by_id = {hashlib.sha256(line).hexdigest(): line for line in batch}
            if absent := missing(by_id):
                replay.write(by_id[id] for id in absent)
            count, new = count + len(batch), new + len(absent)
            say(progress=f"{count} lines looked at, {new} of them on their way through Logstash")
            left = wait(absent)
            lacking += len(left)
            if absent and len(left) == len(absent):
                break  # nothing comes at all
    say(lines=count, new=new, lacking=lacking)


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--db", default=DATABASE)
    path = parser.parse_args().db
    if not os.path.exists(path):
        sys.exit(f"{path} is not there: the embedded stack has stored nothing on this host")
    free = shutil.disk_usage(REPLAY).free - 6 * os.path.getsize(
        path
    )  # raw lines are five times their database
    if free < ROOM:
        sys.exit(
            f"the disk of {REPLAY} has {-(free - ROOM) >> 20} MiB too little for the lines; make room first"
        )
    try:
        bring(stored(sqlite3.connect(f"file:{path}?mode=ro", uri=True)))
    except (SearchError, Unreachable, sqlite3.DatabaseError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
