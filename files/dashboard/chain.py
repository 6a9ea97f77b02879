"""How the chain before the page is: what the log still holds, a pause, what the flood limit kept out of the log."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import Any

MOST_IDENTITY = 4096  # as in collector/log_files.py


def chain(db: sqlite3.Connection, log: str, counts: str) -> dict[str, Any]:
    """{"unread" (bytes of the log not stored yet, null: no log), "log_changed" (epoch), "paused" (epoch or null), "unparsed",
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
    except OSError as error:
        return {"unread": None, "log_changed": None, "log_error": error.strerror}
    row = db.execute("SELECT max(offset) FROM position WHERE first = ?", (first,)).fetchone()
    return {"unread": info.st_size - min(row[0] or 0, info.st_size), "log_changed": int(info.st_mtime)}


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
