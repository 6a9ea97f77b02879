#!/usr/bin/python3 -Bs
"""On the target: a template is for new indices only, so the data stream gets a new one when its fields have changed.

check     succeed if there is no data stream yet, or the index that it writes to has the template's fields
roll      begin a new index; the former ones stay as they are
"""

from __future__ import annotations

import sys
from typing import Any

from elasticsearch import DATA_STREAM, Unreachable, call, reason


def written_to() -> Any:
    """The fields of the newest index; None where there is none."""
    status, answer = call("GET", f"/{DATA_STREAM}/_mapping")
    if status != 200 or not answer:
        return None
    return answer[max(answer)]["mappings"].get("properties")  # the names end in a date and a number


def wanted() -> Any:
    status, answer = call("POST", f"/_index_template/_simulate_index/{DATA_STREAM}")
    if status != 200:
        raise SystemExit(f"the template cannot be looked at ({status}): {reason(answer)}")
    return answer["template"]["mappings"].get("properties")


def roll() -> None:
    status, answer = call("POST", f"/{DATA_STREAM}/_rollover")
    if status != 200:
        raise SystemExit(f"{DATA_STREAM} was not rolled over ({status}): {reason(answer)}")


def main() -> None:
    try:
        if sys.argv[1] == "roll":
            roll()
        else:
            fields = written_to()
            sys.exit(fields is not None and fields != wanted())
    except Unreachable as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
