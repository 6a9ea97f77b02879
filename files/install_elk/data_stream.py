#!/usr/bin/python3 -Bs
"""On the target: a template is for what comes new, so a data stream that is there gets its fields and its retention by us.

check     succeed if there is no data stream yet, or it has the template's fields (in the index that it writes to) and retention
follow    make it so: a new index where the fields differ, the retention where that does
roll      begin a new index; the former ones stay as they are
trim MB   keep it within that size: delete the oldest index, and begin a new one in time. By age, Elasticsearch itself deletes.
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


def retention() -> tuple[Any, Any]:
    """(what the data stream has, what the template wants); twice None where there is no data stream yet."""
    status, answer = call("GET", f"/_data_stream/{DATA_STREAM}")
    if status != 200 or not answer.get("data_streams"):
        return None, None
    have = answer["data_streams"][0].get("lifecycle", {}).get("data_retention")
    status, answer = call("GET", "/_index_template/knockmap")
    if status != 200:
        raise SystemExit(f"the template cannot be looked at ({status}): {reason(answer)}")
    template = answer["index_templates"][0]["index_template"]["template"]
    return have, template.get("lifecycle", {}).get("data_retention")


def follow() -> None:
    fields = written_to()
    if fields is not None and fields != wanted():
        roll()
    have, want = retention()
    if have != want:
        status, answer = call("PUT", f"/_data_stream/{DATA_STREAM}/_lifecycle", {"data_retention": want})
        if status != 200:
            raise SystemExit(f"the retention of {DATA_STREAM} was not set ({status}): {reason(answer)}")


def roll() -> None:
    status, answer = call("POST", f"/{DATA_STREAM}/_rollover")
    if status != 200:
        raise SystemExit(f"{DATA_STREAM} was not rolled over ({status}): {reason(answer)}")


def sizes() -> list[tuple[str, int]]:
    """The indices of the data stream with their bytes, oldest first; none where there is no data stream yet."""
    status, answer = call("GET", f"/_data_stream/{DATA_STREAM}")
    if status != 200:
        return []
    names = [index["index_name"] for index in answer["data_streams"][0]["indices"]]
    status, answer = call("GET", f"/{DATA_STREAM}/_stats/store")
    if status != 200:
        raise SystemExit(f"the size of {DATA_STREAM} cannot be looked at ({status}): {reason(answer)}")
    return [(name, answer["indices"][name]["total"]["store"]["size_in_bytes"]) for name in names]


def surplus(indices: list[tuple[str, int]], limit: int) -> list[str]:
    """Which of the oldest have to go so that the rest is within the limit; never the one that is written to."""
    gone = []
    total = sum(size for _, size in indices)
    for name, size in indices[:-1]:
        if total <= limit:
            break
        gone.append(name)
        total -= size
    return gone


def trim(limit: int) -> None:
    indices = sizes()
    for name in surplus(indices, limit):
        status, answer = call("DELETE", f"/{name}")
        if status != 200:
            raise SystemExit(f"{name} was not deleted ({status}): {reason(answer)}")
        print(f"{name} was deleted: the events took more than {limit >> 20} MB")
    # What can be deleted is a whole index, so none may grow beyond a quarter.
    if indices and indices[-1][1] > limit // 4:
        roll()


def main() -> None:
    try:
        if sys.argv[1] == "trim":
            trim(int(sys.argv[2]) << 20)
        elif sys.argv[1] in ("roll", "follow"):
            {"roll": roll, "follow": follow}[sys.argv[1]]()
        else:
            fields, (have, want) = written_to(), retention()
            sys.exit((fields is not None and fields != wanted()) or have != want)
    except Unreachable as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
