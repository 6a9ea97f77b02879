"""From the event to the browser: Kibana, the user that its visitors are, and the objects that it shows."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import elasticsearch
from elastic import complaint, touched, unknown
from elasticsearch import Unreachable, call, secret
from look import ABSENT, Link, Target, bad, ok, running_for, text_of, unit, warn
from web import Answer, ask

UNIT, BASE = "kibana.service", "/kibana"
LOG = "/var/log/kibana/kibana.log"
OBJECTS = "/usr/local/lib/knockmap/kibana/objects.ndjson"
VIEWER = "knockmap_viewer"
REPAIR, WORDS = "{fab} kibana", "{ssh} journalctl -u kibana -n 30"
START_SECONDS, PATIENCE = 600, 5.0


def local(path: str, body: Any = None, authorization: str = "") -> Answer:
    """Kibana's answer on loopback, without Apache. Raises OSError."""
    headers = {"kbn-xsrf": "true", "Content-Type": "application/json"} if body else {}
    if authorization:
        headers["Authorization"] = authorization
    data = json.dumps(body).encode() if body else None
    return ask(http.client.HTTPConnection("127.0.0.1", 5601, timeout=20), BASE + path, headers, data)


def level() -> str:
    """What Kibana says of itself. Raises OSError."""
    answer = local("/api/status")
    try:
        return str(json.loads(answer.body)["status"]["overall"]["level"])
    except (ValueError, KeyError, TypeError):
        return f"not ready (it answers {answer.status})"


def service(target: Target) -> Link:
    if "kibana" not in target.tasks:
        return ABSENT
    if gone := target.gone("kibana"):
        return bad(f"{gone} is gone", REPAIR)
    found, edited = unit(UNIT), target.edited("kibana")
    state = found.get("ActiveState", "unknown")
    if state == "inactive":
        return bad("Kibana is stopped, so there is nothing to show", REPAIR)
    if state != "active" or (found.get("NRestarts", "0") != "0" and not listens()):
        return ends(edited)
    if trouble := not_available(found, edited):
        return trouble
    if found.get("UnitFileState") != "enabled":
        return warn("Kibana runs and is not enabled, so it will not after a reboot", REPAIR)
    if edited:
        return warn(f"{edited} was edited since it was deployed", REPAIR)
    return ok("available on 127.0.0.1:5601")


def listens() -> bool:
    try:
        level()
    except OSError:
        return False
    return True


def ends(edited: str) -> Link:
    again = REPAIR if edited else WORDS
    return bad(f"Kibana does not stay up{touched(edited)}{complaint(UNIT, LOG)}", again)


def not_available(found: dict[str, str], edited: str) -> Link | None:
    """Patiently, since a Kibana that was just started, or whose Elasticsearch was, takes a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            said = level()
        except OSError as error:
            said = f"not ready ({error})"
        if said == "available":
            return None
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    now = unit(UNIT)  # it may have ended meanwhile, or been started anew
    starts, before = (int(one.get("NRestarts") or 0) for one in (now, found))
    if now.get("ActiveState") != "active" or starts > before:
        return ends(edited)
    seconds = running_for(now)
    since_start = complaint(f"_SYSTEMD_INVOCATION_ID={now.get('InvocationID')}")
    if seconds < START_SECONDS and not since_start:
        return warn(f"Kibana was started {seconds:.0f} s ago and is {said}", "{fab} doctor")
    return bad(f"Kibana runs and is {said}{since_start}", WORDS, symptom=True)


# --- the visitors' user -----------------------------------------------------------------------------------------


def viewer(target: Target) -> Link:
    """Whoever is behind Apache's login looks on as one user; without it Kibana asks for a second login, or refuses."""
    if "kibana" not in target.tasks:
        return ABSENT
    if not secret("kibana_viewer_password"):
        return bad("the password of Kibana's visitors is gone", REPAIR)
    header = elasticsearch.basic(VIEWER, secret("kibana_viewer_password"))
    try:
        status, who = call("GET", "/_security/_authenticate", auth=header, timeout=10)
        if status == 401:
            return bad(f"Elasticsearch does not let {VIEWER} in, so Kibana shows nobody anything", REPAIR)
        if status != 200:
            return unknown(OSError(f"Elasticsearch answers {status}"))
        if VIEWER not in who.get("roles", []):
            return bad(f"{VIEWER} does not have its role, so it sees nothing", REPAIR)
        page = local("/app/home")
    except (OSError, Unreachable) as error:
        return unknown(error)
    if page.status >= 500:
        return unknown(OSError(f"Kibana answers {page.status}"))
    if page.status != 200:
        what = "asks for a second login" if page.status == 302 else f"answers {page.status}"
        return bad(f"Kibana {what} to a visitor: its anonymous login does not work", REPAIR, symptom=True)
    return ok(f"visitors come in as {VIEWER}, by Apache's login alone")


# --- saved objects ----------------------------------------------------------------------------------------------


def objects(target: Target) -> Link:
    """Everything of ours is there, and what it refers to."""
    if "kibana" not in target.tasks:
        return ABSENT
    wanted = [
        {"type": item["type"], "id": item["id"]} for item in map(json.loads, text_of(OBJECTS).splitlines())
    ]
    header = elasticsearch.basic(VIEWER, secret("kibana_viewer_password"))
    body = {"objects": wanted, "includeReferencesDeep": True}
    try:
        answer = local("/api/saved_objects/_export", body, header)
    except OSError as error:
        return unknown(error)
    return complete(answer.status, answer.body.decode(errors="replace"), len(wanted))


def complete(status: int, text: str, count: int) -> Link:
    """What Kibana's answer to an export says: the last line counts, or names are told that it does not have."""
    if status == 400 and (missing := missing_of(text)):
        return bad(f"Kibana has lost {' and '.join(missing)}", REPAIR)
    if status != 200:
        return unknown(OSError(f"Kibana answers {status} to an export"))
    details = json.loads(text.strip().splitlines()[-1])
    if details.get("missingRefCount"):
        lost = [f"{item['type']} {item['id']}" for item in details["missingReferences"]]
        return bad(f"the dashboard refers to what Kibana does not have: {', '.join(lost)}", REPAIR)
    return ok(f"all {count} are there, with what they refer to")


def missing_of(text: str) -> list[str]:
    try:
        failed = json.loads(text)["attributes"]["objects"]
    except (ValueError, KeyError, TypeError):
        return []
    return [f"{item['type']} {item['id']}" for item in failed]
