"""Replay what the embedded stack stored: its raw log lines go through Logstash once more, and each is looked for after.

    migrate.py [--db PATH]     one JSON object per line on stdout: {"progress": text} …, and at last
                               {"lines": stored, "distinct": of them, "found": in Elasticsearch}

Logstash reads the folder REPLAY beside the log, by the same pipeline. An event's _id is the SHA-256 of its raw line, so
what Elasticsearch has already is not doubled, and what it lacks can be named. Nothing of the embedded stack is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterator
from itertools import islice

from documents import SearchError, search
from elasticsearch import Unreachable

DATABASE = "/var/lib/knockmap/collector/knockmap.db"
REPLAY = "/var/lib/knockmap/replay"
ROOM = 256 << 20  # bytes that must stay free
IDS = 10_000  # in one question
STALLED = 180  # seconds without one more event


def stored(db: sqlite3.Connection) -> Iterator[bytes]:
    """Every raw line, in the order in which they came; then those that were no packets."""
    for (text,) in db.execute("SELECT text FROM line ORDER BY first"):
        yield from zlib.decompress(text).split(b"\n")
    for (line,) in db.execute("SELECT line FROM unparsed ORDER BY id"):
        yield bytes(line)


def write(lines: Iterator[bytes], path: str) -> tuple[int, list[str]]:
    """The lines as a file for Logstash; gives their number and the ids that their events will have, each once."""
    count, ids = 0, dict[str, None]()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "wb") as file:
        shutil.chown(path, "root", "logstash")
        for line in lines:
            count += 1
            id = hashlib.sha256(line).hexdigest()
            if id not in ids:
                ids[id] = None
                file.write(line + b"\n")
    return count, list(ids)


def missing(ids: list[str]) -> list[str]:
    """Those that Elasticsearch does not have yet."""
    lacking: list[str] = []
    rest = iter(ids)
    while some := list(islice(rest, IDS)):
        question = {"size": IDS, "_source": False, "query": {"ids": {"values": some}}}
        found = {hit["_id"] for hit in search(question)["hits"]["hits"]}
        lacking += [id for id in some if id not in found]
    return lacking


def wait(ids: list[str]) -> list[str]:
    """Until Elasticsearch has them all, or no more come; gives those that it lacks."""
    lacking, since = ids, time.monotonic()
    while lacking := missing(rest := lacking):
        if len(lacking) < len(rest):
            since = time.monotonic()
        if time.monotonic() - since > STALLED:
            break
        say(progress=f"{len(ids) - len(lacking)} of {len(ids)} lines are in Elasticsearch")
        time.sleep(2)
    return lacking


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
    replayed = f"{REPLAY}/{int(time.time())}.log"
    try:
        count, ids = write(stored(sqlite3.connect(f"file:{path}?mode=ro", uri=True)), replayed)
        say(progress=f"{count} lines are on their way through Logstash")
        lacking = wait(ids)
    except (SearchError, Unreachable, sqlite3.DatabaseError) as error:
        sys.exit(str(error))
    finally:
        if os.path.exists(replayed):
            os.unlink(replayed)
    say(lines=count, distinct=len(ids), found=len(ids) - len(lacking))


if __name__ == "__main__":
    main()
