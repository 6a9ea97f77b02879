"""Looks at every link of the chain on the target, once, as root; writes nothing.

Arrives on stdin like the engine's agent, with its job behind it, and answers one JSON object per line:
{"event": "hello", "now"}, {"event": "link", "name", "state", "cause", "next"}…, then, if asked for, the proof packets:
{"event": "ready", "to"}, {"event": "hop", "name", "ms"}…, {"event": "stopped" | "passed" | "stored"}, {"event": "end"}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import elastic
import kibana
import packet
import pipeline
import sensor
import storage
import web
from look import Link, Target, bad

Links = tuple[tuple[str, Callable[[Target], Link]], ...]
# What all stands on comes first, so that the first that is bad is the cause of what is bad behind it.
SENSOR: Links = (
    ("disk", storage.disk),
    ("sshd", sensor.sshd),
    ("rule", sensor.rule),
    ("counter", sensor.counter),
    ("log", sensor.log),
    ("syslog", sensor.syslog),
    ("rotation", sensor.rotation),
)
EMBEDDED: Links = (
    ("collector", storage.collector),
    ("GeoIP", storage.geoip),
    ("database", storage.database),
    ("dashboard", web.dashboard),
)
# Logstash and Kibana live by Elasticsearch, so it stands before them.
ELASTIC: Links = (
    ("versions", elastic.versions),
    ("ports", elastic.ports),
    ("TLS", elastic.tls),
    ("Elasticsearch", elastic.node),
    ("keys", elastic.keys),
    ("watermarks", elastic.watermarks),
    ("health", elastic.health),
    ("template", elastic.template),
    ("pipeline", pipeline.files),
    ("Logstash", pipeline.logstash),
    ("queue", pipeline.queue),
    ("events", elastic.events),
    ("geo data", pipeline.geo_data),
    ("Kibana", kibana.service),
    ("visitors", kibana.viewer),
    ("objects", kibana.objects),
)
BROWSER: Links = (("Apache", web.apache), ("certificate", web.certificate), ("login", web.login))
LINKS = (*SENSOR, *EMBEDDED, *ELASTIC, *BROWSER)
PATIENCE, IMPATIENCE = 3.0, 0.7  # seconds for each hop; little where something is known to be bad


def emit(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def examine(target: Target) -> dict[str, Link]:
    """Every link. `rule` answers for a host on which nothing of ours is."""
    if not target.tasks:
        return {"rule": bad("nothing of knockmap is deployed on this host", "{fab} deploy")}
    if "iptables_log" in target.tasks:
        target.job["counts"] = attempt(sensor.counts)
    together = at_once(target) if target.elastic else {}
    found = {name: together.get(name) or looked_at(look, target) for name, look in chain(target)}
    return told_as_causes(found)


def chain(target: Target) -> Links:
    """The links of the stack that is there; of both while one takes the other's place."""
    embedded = () if target.elastic and "collector" not in target.tasks else EMBEDDED
    return (*SENSOR, *embedded, *(ELASTIC if target.elastic else ()), *BROWSER)


def at_once(target: Target) -> dict[str, Link]:
    """Those that mostly wait for an answer. The others take another user's rights meanwhile, which is for a whole process."""
    with ThreadPoolExecutor(len(ELASTIC)) as pool:
        links = pool.map(lambda one: looked_at(one[1], target), ELASTIC)
        return {name: link for (name, _), link in zip(ELASTIC, links, strict=True)}


def attempt(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except (OSError, ValueError):
        return None


def looked_at(look: Callable[[Target], Link], target: Target) -> Link:
    try:
        return look(target)
    except Exception as error:  # one link that cannot be looked at must not hide the others
        return bad(f"it cannot be looked at: {type(error).__name__}: {error}", "{fab} deploy")


def told_as_causes(found: dict[str, Link]) -> dict[str, Link]:
    """A symptom whose cause stands further down becomes a warning that names it."""
    causes = [name for name in ("GeoIP", "database") if name in found and found[name].state == "bad"]
    if not causes:
        return found
    told = {
        name: link._replace(state="warn", cause=f"{link.cause}; see {causes[0]}")
        for name, link in found.items()
    }
    return {name: told[name] if link.symptom else link for name, link in found.items()}


def main() -> None:
    stream = sys.stdin.buffer
    job: dict[str, Any] = json.loads(stream.read(int(stream.readline())))
    emit("hello", now=time.time())
    target = Target(job)
    found = examine(target)
    for name, link in found.items():
        emit("link", name=name, state=link.state, cause=link.cause, next=link.next)
    ill = any(link.state == "bad" for link in found.values())
    if job["packets"]:
        emit("way in", **web.way_in(target, found))
    for one in job["packets"] if target.tasks else ():
        packet.follow(target, one, emit, IMPATIENCE if ill else PATIENCE)
    emit("end")
