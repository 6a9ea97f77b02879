"""Every event of a span on stdout, as CSV or NDJSON: what `fab export` runs."""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time

import database
from events import Export
from query import BadRequest, query


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default=database.PATH)
    parser.add_argument("--seconds", type=int, default=86400)
    parser.add_argument("--format", choices=sorted(Export.KINDS), default="csv")
    parser.add_argument(
        "--where", action="append", default=[], help="a filter, such as country:CN; see query.py"
    )
    given = parser.parse_args()
    until = int(time.time()) + 1
    try:
        db = database.reader(given.db)
        asked = query(str(until - given.seconds), str(until), given.where)
        for part in Export(lambda work: work(db), asked, given.format).parts():
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
    except BadRequest as error:
        sys.exit(str(error))
    except sqlite3.DatabaseError as error:
        sys.exit(f"{given.db} cannot be read: {error}")


if __name__ == "__main__":
    main()
