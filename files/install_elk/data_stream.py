#!/usr/bin/python3 -Bs
"""On the target: a template is for what comes new, so a data stream that is there gets its fields and its retention by us.

check     succeed if our template rules the data stream, and one that is there has the template's fields (in the index that
          it writes to) and retention
follow    make it so: a new index where the fields differ, the retention where that does
roll      begin a new index; the former ones stay as they are
trim MB   keep it within that size: delete the oldest index, and begin a new one in time. By age, Elasticsearch itself deletes.
          The timer's part: by a key that can do no more than that.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from typing import Any

from elasticsearch import DATA_STREAM, Unreachable, call, reason

TEMPLATE = "knockmap"


def written_to() -> Any:
    """The fields of the newest index of the data stream that is there."""
    status, answer = call("GET", f"/{DATA_STREAM}/_mapping")
    if status != 200:
        raise SystemExit(f"the fields of {DATA_STREAM} cannot be looked at ({status}): {reason(answer)}")
    return answer[max(answer)]["mappings"].get("properties")  # the names end in a date and a number


def wanted() -> Any:
    status, answer = call("POST", f"/_index_template/_simulate_index/{DATA_STREAM}")
    if status != 200:
        raise SystemExit(f"the template cannot be looked at ({status}): {reason(answer)}")
    return answer["template"]["mappings"].get("properties")


def stream(auth: str = "elastic") -> Any:
    """What Elasticsearch says of the data stream; {} where there is none yet."""
    status, answer = call("GET", f"/_data_stream/{DATA_STREAM}", auth=auth)
    if status not in (200, 404):
        raise SystemExit(f"{DATA_STREAM} cannot be looked at ({status}): {reason(answer)}")
    return answer["data_streams"][0] if status == 200 and answer["data_streams"] else {}


def ruling(here: Any) -> str:
    """The index template by which the next index begins, also the first one; "" where none fits."""
    if here:
        return str(here.get("template", ""))
    status, answer = call("GET", "/_index_template")
    if status != 200:
        raise SystemExit(f"the index templates cannot be looked at ({status}): {reason(answer)}")
    return first_of(answer["index_templates"])


def first_of(templates: list[Any]) -> str:
    """Which of the index templates Elasticsearch takes for the data stream: of those that fit, the highest priority."""
    fitting = {
        found["name"]: found["index_template"].get("priority", 0)
        for found in templates
        if any(fnmatchcase(DATA_STREAM, pattern) for pattern in found["index_template"]["index_patterns"])
    }
    return max(fitting, key=lambda name: fitting[name], default="")


def retention() -> Any:
    """What the template wants."""
    status, answer = call("GET", f"/_index_template/{TEMPLATE}")
    if status != 200:
        raise SystemExit(f"the template cannot be looked at ({status}): {reason(answer)}")
    return (
        answer["index_templates"][0]["index_template"]["template"].get("lifecycle", {}).get("data_retention")
    )


def follows(here: Any) -> bool:
    if ruling(here) != TEMPLATE:
        return False
    if not here:
        return True
    have = here.get("lifecycle", {}).get("data_retention")
    return bool(written_to() == wanted() and have == retention())


def follow() -> None:
    here = stream()
    if not (rules := ruling(here)):
        raise SystemExit(f"no index template is there for {DATA_STREAM}, not even ours: deploy again")
    if rules != TEMPLATE:
        raise SystemExit(
            f"the index template {rules} outranks ours for {DATA_STREAM}, so new events would get its fields: "
            "remove it, or its pattern, and deploy again"
        )
    if not here:
        return
    if written_to() != wanted():
        roll()
    if here.get("lifecycle", {}).get("data_retention") != (want := retention()):
        status, answer = call("PUT", f"/_data_stream/{DATA_STREAM}/_lifecycle", {"data_retention": want})
        if status != 200:
            raise SystemExit(f"the retention of {DATA_STREAM} was not set ({status}): {reason(answer)}")


def roll(auth: str = "elastic") -> None:
    status, answer = call("POST", f"/{DATA_STREAM}/_rollover", auth=auth)
    if status != 200:
        raise SystemExit(f"{DATA_STREAM} was not rolled over ({status}): {reason(answer)}")


def sizes() -> list[tuple[str, int]]:
    """The indices of the data stream with their bytes, oldest first; none where there is no data stream yet."""
    names = [index["index_name"] for index in stream("keeper").get("indices", [])]
    if not names:
        return []
    status, answer = call("GET", f"/{DATA_STREAM}/_stats/store", auth="keeper")
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
        status, answer = call("DELETE", f"/{name}", auth="keeper")
        if status != 200:
            raise SystemExit(f"{name} was not deleted ({status}): {reason(answer)}")
        print(f"{name} was deleted: the events took more than {limit >> 20} MB")
    # What can be deleted is a whole index, so none may grow beyond a quarter.
    if indices and indices[-1][1] > limit // 4:
        roll("keeper")


def main() -> None:
    try:
        if sys.argv[1] == "trim":
            trim(int(sys.argv[2]) << 20)
        elif sys.argv[1] in ("roll", "follow"):
            {"roll": roll, "follow": follow}[sys.argv[1]]()
        else:
            sys.exit(not follows(stream()))
    except Unreachable as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
