"""How the chain before the page is: what the log still holds, a pause, what the flood limit kept out of the log."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from datetime import datetime
from typing import Any

MOST_IDENTITY = 4096  # as in collector/log_files.py


def chain(db: sqlite3.Connection, log: str, counts: str) -> dict[str, Any]:
    """{"unread" (bytes of the log not stored yet, null: no log), "waiting" (seconds for which the first of them is there),
    "paused" (epoch or null), "unparsed",
    "geo": {"built", "kinds"}, "limit": {"at", "seen", "over_limit"} or null}."""
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    return {
        **unread(db, log),
        "paused": meta.get("paused"),
        "unparsed": meta.get("unparsed", 0),
        "geo": {"built": meta.get("geo_built"), "kinds": meta.get("geo_kinds", "")},
        "limit": limit(counts),
    }


def unread(db: sqlite3.Connection, log: str) -> dict[str, Any]:
    try:
        with open(log, "rb") as file:
            info, first = os.fstat(file.fileno()), file.readline(MOST_IDENTITY)
            row = db.execute("SELECT max(offset) FROM position WHERE first = ?", (first,)).fetchone()
            offset = min(row[0] or 0, info.st_size)
            file.seek(offset)
            line = file.readline(MOST_IDENTITY)
    except OSError as error:
        return {"unread": None, "waiting": 0, "log_error": error.strerror}
    since = stamp(line) or info.st_mtime
    return {"unread": info.st_size - offset, "waiting": max(0, int(time.time() - since)) if line else 0}


def stamp(line: bytes) -> float:
    """Epoch of a line's RFC 3339 stamp; 0 if it has none."""
    try:
        return datetime.fromisoformat(
            line.split(b" ", 1)[0].decode("ascii").replace("Z", "+00:00")
        ).timestamp()
    except ValueError:
        return 0.0


def limit(counts: str) -> dict[str, Any] | None:
    """SYNs since the rules were loaded, and how many of them were over the limit; noted every five minutes."""
    try:
        with open(counts) as file:
            families = [family for family in json.load(file).values() if family]
            at = int(os.fstat(file.fileno()).st_mtime)
    except (OSError, ValueError):
        return None
    sums = {name: sum(family[name] for family in families) for name in ("seen", "over_limit")}
    return {"at": at, **sums}
