#!/usr/bin/python3 -Bs
"""On the target: our saved objects in Kibana. What somebody edited there is never overwritten.

    objects.py check     exit 0 if nothing is to be done; says what was edited ("note: …")
    objects.py import    bring in what is missing or has become new

After an import Kibana is asked what it stored, since it brings objects to its own version. The hash of that is kept:
an object that differs from it, and was saved since, was edited. (An upgrade of Kibana changes objects, too, but not
the time at which they were saved.) A new version of an edited object comes beside it, with `-new` behind its id.
There is nothing to undo: objects are data of Elasticsearch's, and go with them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from typing import Any

import kibana_api
import readiness
from kibana_api import Refused

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "objects.ndjson")
STATE = "/var/lib/knockmap/kibana/objects.json"
DASHBOARD = {"type": "dashboard", "id": "knockmap-dashboard"}
Object = dict[str, Any]
Key = str  # "type:id"


def key(item: Object) -> Key:
    return f"{item['type']}:{item['id']}"


def fingerprint(item: Object) -> str:
    """Of what a person sees: not of versions and times."""
    references = sorted(item["references"], key=lambda reference: sorted(reference.items()))
    seen = json.dumps([item["attributes"], references], sort_keys=True)
    return hashlib.sha256(seen.encode()).hexdigest()


def ours() -> list[Object]:
    with open(FILE, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def beside(item: Object) -> Object:
    """The new version of an object that somebody edited."""
    title = item["attributes"]["title"] + (" (new)" if item["type"] != "index-pattern" else "")
    return {**item, "id": f"{item['id']}-new", "attributes": {**item["attributes"], "title": title}}


def remembered() -> dict[Key, dict[str, str]]:
    try:
        with open(STATE, encoding="utf-8") as file:
            return json.load(file)  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):
        return {}


def remember(state: dict[Key, dict[str, str]]) -> None:
    os.makedirs(os.path.dirname(STATE), 0o700, exist_ok=True)
    with open(f"{STATE}.new", "w", encoding="utf-8") as file:
        json.dump(state, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{STATE}.new", STATE)


def stored(items: list[Object]) -> dict[Key, Object]:
    """Those of these objects that Kibana has, as it has them."""
    names = [{"type": item["type"], "id": item["id"]} for item in items]
    while names:
        body = json.dumps({"objects": names, "excludeExportDetails": True}).encode()
        status, text = kibana_api.call(
            "POST", "/api/saved_objects/_export", body, authorization=kibana_api.viewer()
        )
        if status == 200:
            found = [json.loads(line) for line in text.splitlines() if line]
            return {key(item): item for item in found}
        missing = missing_ones(status, text)
        names = [name for name in names if key(name) not in missing]
    return {}


def missing_ones(status: int, text: str) -> set[Key]:
    """Kibana exports all or nothing, and names those that it does not have."""
    failed = kibana_api.document(text).get("attributes", {}).get("objects", [])
    missing = {key(item) for item in failed if item.get("error", {}).get("statusCode") == 404}
    if status != 400 or not missing:
        raise Refused(f"Kibana does not export our objects: {status} {text[:300]}")
    return missing


def edited(item: Object | None, known: dict[str, str] | None) -> bool:
    if item is None:
        return False
    if known is None:  # not brought by us, or we do not know any more
        return item.get("updated_at") != item.get("created_at")
    return fingerprint(item) != known["stored"] and item.get("updated_at", "") != known["updated_at"]


def to_import() -> tuple[list[Object], list[str]]:
    """(what is to be brought in, what the operator shall know of what he edited)."""
    state, wanted = remembered(), ours()
    found = stored([*wanted, *map(beside, wanted)])
    missing, notes = [], []
    for item in wanted:
        now, known = found.get(key(item)), state.get(key(item))
        new = known is None or known["ours"] != fingerprint(item)
        if edited(now, known):
            copy = beside(item)
            there = f"; our new version is beside it as {key(copy)}" if key(copy) in found else ""
            notes.append(f"{key(item)} in Kibana was edited there and stays as it is{there}")
            # A copy that he removed was seen, and is not brought again.
            if new and state.get(key(copy), {}).get("ours") != fingerprint(copy):
                missing.append(copy)
        elif now is None or new:
            missing.append(item)
    return missing, notes


def check() -> int:
    missing, notes = to_import()
    for text in notes:
        print(f"note: {text}")
    return 1 if missing else 0


def multipart(text: str) -> tuple[bytes, str]:
    """One file in a form, as a browser sends it."""
    boundary = uuid.uuid4().hex
    head = 'Content-Disposition: form-data; name="file"; filename="knockmap.ndjson"\r\nContent-Type: application/ndjson'
    body = f"--{boundary}\r\n{head}\r\n\r\n{text}\r\n--{boundary}--\r\n"
    return body.encode(), f"multipart/form-data; boundary={boundary}"


def bring_in(items: list[Object], authorization: str) -> None:
    """Import, and see that every reference of the dashboard resolves. Raises Refused."""
    body, kind = multipart("".join(json.dumps(item) + "\n" for item in items))
    status, text = kibana_api.call(
        "POST", "/api/saved_objects/_import?overwrite=true", body, authorization=authorization, kind=kind
    )
    answer = kibana_api.document(text)
    if status != 200 or not answer.get("success"):
        errors = [f"{key(error)}: {error.get('error')}" for error in answer.get("errors", [])]
        raise Refused(f"Kibana did not take our objects: {status} {'; '.join(errors) or text[:300]}")
    body = json.dumps({"objects": [DASHBOARD], "includeReferencesDeep": True}).encode()
    status, text = kibana_api.call("POST", "/api/saved_objects/_export", body, authorization=authorization)
    details = kibana_api.document(text.strip().splitlines()[-1]) if status == 200 else {}
    if details.get("missingRefCount") != 0:
        raise Refused(f"the dashboard refers to what is not there: {status} {text[-300:]}")


def bring() -> None:
    readiness.wait()  # after a reboot it takes its time
    items, _ = to_import()
    if not items:
        return
    with kibana_api.importer() as authorization:
        bring_in(items, authorization)
    now, state = stored(items), remembered()
    for item in items:
        mine = now[key(item)]
        state[key(item)] = {
            "ours": fingerprint(item),
            "stored": fingerprint(mine),
            "updated_at": mine.get("updated_at", ""),
        }
    remember(state)


if __name__ == "__main__":
    sys.exit(kibana_api.run("objects.py", {"check": check, "import": bring}))
