"""The store of the Elastic stack: versions, ports, TLS, Elasticsearch and what it says of itself.

Everything is asked of Elasticsearch by the reader's key; what that key may not see is not looked at.
"""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import elasticsearch
from elasticsearch import DATA_STREAM, DATA_STREAMS, Unreachable, call, reason, secret
from look import ABSENT, Link, Target, bad, ok, run, text_of, unit, warn
from web import DAY, not_after

UNIT = "elasticsearch.service"
ETC, LOG = "/etc/elasticsearch", "/var/log/elasticsearch/knockmap.log"
TEMPLATE = "knockmap"
AGAIN = "{fab} install-elk"
PORTS = {9200: "Elasticsearch", 9300: "Elasticsearch's transport", 9600: "Logstash", 5601: "Kibana"}
TYPES = {"@timestamp": "date", "source.ip": "ip", "source.geo.location": "geo_point"}
WRONG = re.compile(r"\b(?:ERROR|FATAL)\b|[Ff]atal exception")
# Of what was said before.
CONSEQUENCE = re.compile(r"stopped processing|did not exit normally|action_result: false")
THROWN = re.compile(r"[\w.$]+(?:Exception|Error): ")
MANY_FAILURES, MUCH_OF_ALL = 20, 0.1  # more lines than these that no pattern fits are a flood of them


class Refused(Exception):
    """Elasticsearch answered something that is no answer to the question."""


def here(target: Target) -> bool:
    """Whether Elasticsearch is on this box: events may be shipped to a cluster elsewhere."""
    return "install_elk" in target.tasks and f"{ETC}/elasticsearch.yml" in target.files("install_elk")


def asked(path: str, body: Any = None, *fine: int) -> Any:
    """The answer to the reader. Raises Unreachable or Refused."""
    status, answer = call("POST" if body else "GET", path, body, auth="reader", timeout=10)
    if status == 200 or status in fine:
        return answer
    raise Refused(f"it answers {status} to {path}: {reason(answer)}")


def unknown(error: Exception) -> Link:
    """For what cannot be looked at since something before it is broken, which is told there."""
    return warn(f"not known: {error}", "{fab} doctor")


def complaint(name: str, path: str = "") -> str:
    """The last error that a unit (or what else journalctl selects by) told its journal, else its own log."""
    chosen = (name,) if "=" in name else ("-u", name)
    said = run("journalctl", "-q", *chosen, "-n", "60", "-o", "cat", "--no-pager").stdout.splitlines()
    if path:
        said = [*run("tail", "-n", "400", path).stdout.splitlines(), *said]
    return last_error(said)


def last_error(lines: Sequence[str]) -> str:
    """In brackets; "" if there is none. Java says what happened in the line behind its complaint."""
    found = ""
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if WRONG.search(line) and not CONSEQUENCE.search(line):
            found = (after if THROWN.match(after) else line).strip()
    return f" ({found[:300]})" if found else ""


# --- packages ---------------------------------------------------------------------------------------------------


def versions(target: Target) -> Link:
    """One version of all three, held: Kibana and Logstash do not work with an older Elasticsearch."""
    if not here(target):
        return ABSENT
    wanted = ("elasticsearch", "logstash", *(("kibana",) if "kibana" in target.tasks else ()))
    found = installed(wanted)
    if missing := [name for name in wanted if name not in found]:
        return bad(f"{' and '.join(missing)}: not installed", "{fab} deploy")
    text = ", ".join(f"{name} {version}" for name, (version, _) in found.items())
    if len({version for version, _ in found.values()}) > 1:
        return bad(f"the versions differ: {text}", "{fab} deploy")
    if free := [name for name, (_, held) in found.items() if not held]:
        return warn(f"{' and '.join(free)}: not held, so apt may move it to a version of its own", AGAIN)
    return ok(f"{found['elasticsearch'][0]} of all {len(found)}, held")


def installed(names: tuple[str, ...]) -> dict[str, tuple[str, bool]]:
    """Upstream version of each package that is installed, and whether it is held."""
    form = "${Package} ${Version} ${db:Status-Want} ${db:Status-Status}\n"
    rows = (line.split() for line in run("dpkg-query", "-W", "-f", form, *names).stdout.splitlines())
    return {
        row[0]: (re.sub(r"^\d+:|-[^-]*$", "", row[1]), row[2] == "hold")
        for row in rows
        if len(row) == 4 and row[3] == "installed"
    }


# --- ports ------------------------------------------------------------------------------------------------------


def ports(target: Target) -> Link:
    """Whether one of them is open to others; who does not listen at all is told by its own link."""
    if "install_elk" not in target.tasks:
        return ABSENT
    found = dict(listeners(run("ss", "-Hltn").stdout))
    for port, address in found.items():
        if not loopback(address):
            task = "{fab} kibana" if port == 5601 else AGAIN
            whose = f"port {port} of {PORTS[port]}"
            where = "all addresses" if address in ("*", "0.0.0.0", "[::]") else address  # noqa: S104 - it is looked for
            return bad(f"{whose} is open on {where}, and is to be on loopback only", task)
    return ok(f"{', '.join(map(str, sorted(found))) or 'none'} on loopback only")


def listeners(text: str) -> Iterator[tuple[int, str]]:
    """Port and address of each listener on one of ours, those on loopback first."""
    rows = [line.split()[3].rpartition(":") for line in text.splitlines() if len(line.split()) > 3]
    ours = [(int(port), address) for address, _, port in rows if port.isdigit() and int(port) in PORTS]
    yield from sorted(ours, key=lambda one: not loopback(one[1]))


def loopback(address: str) -> bool:
    return address.startswith(("127.", "[::1]", "[::ffff:127."))


# --- TLS --------------------------------------------------------------------------------------------------------


def tls(target: Target) -> Link:
    """The HTTP certificate and its authority, and whether the others trust that very one."""
    if not here(target):
        return ABSENT
    copies = {"logstash": "install_elk", "kibana": "kibana"}
    paths = [f"/etc/{name}/certs/http_ca.crt" for name, task in copies.items() if task in target.tasks]
    for path in (elasticsearch.CA, *paths):
        if not os.path.exists(path):
            return bad(f"{path}, the certificate authority of Elasticsearch, is gone", "{fab} deploy")
        if text_of(path).split() != text_of(elasticsearch.CA).split():
            return bad(f"{path} is not the certificate authority of Elasticsearch", "{fab} deploy")
    ends = {"HTTP certificate authority": not_after(ssl.PEM_cert_to_DER_cert(text_of(elasticsearch.CA)))}
    try:
        address = (elasticsearch.HOST, elasticsearch.PORT)
        shown = ssl.get_server_certificate(address, timeout=5)  # whoever signed it
        ends["HTTP certificate"] = not_after(ssl.PEM_cert_to_DER_cert(shown))
    except OSError as error:
        return end_of(ends, "bad") or unknown(error)
    return end_of(ends, "bad") or distrust() or end_of(ends, "warn") or good_for(ends)


def end_of(ends: dict[str, float], state: str) -> Link | None:
    """What there is to say of a certificate that has ended (bad), or ends within 30 days (warn)."""
    renew = "{ssh} /usr/share/elasticsearch/bin/elasticsearch-certutil http"
    for name, until in ends.items():
        days, day = (until - time.time()) / DAY, f"{datetime.fromtimestamp(until, timezone.utc):%Y-%m-%d}"
        if state == "bad" and days < 0:
            return bad(f"Elasticsearch's {name} has expired on {day}, so nobody talks to it any more", renew)
        if state == "warn" and days < 30:
            return warn(f"Elasticsearch's {name} ends on {day}, in {days:.0f} days", renew)
    return None


def distrust() -> Link | None:
    try:
        call("GET", "/", auth="none", timeout=5)
    except Unreachable as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return bad(f"Elasticsearch's HTTP certificate is not trusted: {error}", AGAIN)
    return None


def good_for(ends: dict[str, float]) -> Link:
    days = {name: (until - time.time()) / DAY for name, until in ends.items()}
    return ok(", ".join(f"{name}: {left:.0f} days left" for name, left in days.items()))


# --- Elasticsearch itself ---------------------------------------------------------------------------------------


def node(target: Target) -> Link:
    if not here(target):
        return ABSENT
    if gone := target.gone("install_elk", ETC):
        return bad(f"{gone} is gone", AGAIN)
    found = unit(UNIT)
    state, words = found.get("ActiveState", "unknown"), "{ssh} journalctl -u elasticsearch -n 30"
    edited = target.edited("install_elk", ETC)
    if state == "inactive":
        return bad("Elasticsearch is stopped, so nothing is stored or shown", AGAIN)
    if state != "active":
        why = f"{touched(edited)}{complaint(UNIT, LOG)}"
        return bad(f"Elasticsearch does not come up ({state}){why}", AGAIN if edited else words)
    try:
        status, answer = call("GET", "/", auth="none", timeout=10)
    except Unreachable as error:
        return bad(f"Elasticsearch's service runs, and {error}", words)
    if status != 401:
        return bad(f"Elasticsearch answers {status} to somebody without a key: {reason(answer)}", AGAIN)
    if found.get("UnitFileState") != "enabled":
        return warn("Elasticsearch runs and is not enabled, so it will not after a reboot", AGAIN)
    if edited:
        return warn(f"{edited} was edited since it was deployed", AGAIN)
    return ok("runs, and wants a key")


def touched(edited: str) -> str:
    return f"; {edited} was edited since it was deployed" if edited else ""


# --- keys -------------------------------------------------------------------------------------------------------


HEADERS = {
    "elastic_password": lambda password: elasticsearch.basic("elastic", password),
    "kibana_token": elasticsearch.bearer,
}


def keys(target: Target) -> Link:
    """Who may do what; each is tried. What follows is asked by the reader's key."""
    if not here(target):
        return ABSENT
    tried = {
        "reader_key": "doctor, scanners and export",
        "writer_key": "Logstash",
        "keeper_key": "the watch on the size of the events",
        "elastic_password": "a deploy",
    }
    if "kibana" in target.tasks:
        tried |= {"kibana_token": "Kibana"}
    for name, whose in tried.items():
        header = HEADERS.get(name, elasticsearch.api_key)(secret(name))
        again = "{fab} kibana" if name == "kibana_token" else AGAIN
        if not secret(name):
            return bad(f"{elasticsearch.secret_path(name)} is gone", again)
        try:
            status, answer = call("GET", "/_security/_authenticate", auth=header, timeout=10)
        except Unreachable as error:
            return unknown(error)
        if status == 401:
            return bad(
                f"Elasticsearch refuses the {name} (revoked or changed?), so {whose} can do nothing", again
            )
        if status != 200:
            return bad(f"Elasticsearch answers {status} to the {name}: {reason(answer)}", again, symptom=True)
    return ok("Elasticsearch takes them all")


# --- disk and health --------------------------------------------------------------------------------------------


def watermarks(target: Target) -> Link:
    """How full the disk is by Elasticsearch's own measure, and whether it has stopped writing for that."""
    if not here(target):
        return ABSENT
    room = "{ssh} du -xh --max-depth=2 /var | sort -h | tail"
    try:
        if closed := read_only():
            return bad(
                f"Elasticsearch takes nothing for {closed}: read-only, as it makes it where the disk is too full",
                room,
            )
        told = asked("/_nodes/stats/fs?filter_path=nodes.*.fs.data")
        disk = next(iter(told["nodes"].values()))["fs"]["data"][0]
    except (Unreachable, Refused) as error:
        return unknown(error)
    free, marks = disk["available_in_bytes"], {name: disk[key] for name, key in MARKS.items() if key in disk}
    passed = [name for name, needed in marks.items() if free < needed]
    text = f"{free / (1 << 30):.1f} GiB free in {disk['path']}"
    if not passed:
        return ok(text)
    told_as = f"{text}, which is beyond the {passed[-1]} watermark"
    if passed == ["low"]:
        return warn(f"{told_as}: Elasticsearch will soon stop writing", room)
    return bad(f"{told_as}: Elasticsearch has no place for a new index, and soon stops writing", room)


MARKS = {
    "low": "low_watermark_free_space_in_bytes",
    "high": "high_watermark_free_space_in_bytes",
    "flood-stage": "flood_stage_free_space_in_bytes",
}


def read_only() -> str:
    """The first of our indices that nothing can be written to; "" if there is none."""
    path = f"/{DATA_STREAMS}/_settings/index.blocks.*?flat_settings=true&expand_wildcards=all"
    for index, found in asked(path).items():
        if any(str(value) == "true" for value in found["settings"].values()):
            return str(index)
    return ""


def health(target: Target) -> Link:
    """Red is bad, whose index ever it is; yellow counts where it is ours."""
    if not here(target):
        return ABSENT
    try:
        told = asked("/_cluster/health?level=indices&timeout=2s", None, 408)
        ours = [index["status"] for name, index in told["indices"].items() if DATA_STREAM in name]
        if told["status"] == "red":
            return bad(f"the cluster is red: {why_unassigned()}", AGAIN)
        if "yellow" in ours:
            return warn(f"our data are yellow: {why_unassigned()}", AGAIN)
    except (Unreachable, Refused) as error:
        return unknown(error)
    others = f", the whole cluster {told['status']}" if told["status"] != "green" else ""
    return ok(f"green{others}; {len(ours)} indices of ours")


def why_unassigned() -> str:
    """The first reason why Elasticsearch leaves a shard without a node, in its own words."""
    told = asked("/_cluster/allocation/explain?filter_path=-node_allocation_decisions.deciders.settings")
    deciders = [
        decider["explanation"]
        for node in told.get("node_allocation_decisions", [])
        for decider in node.get("deciders", [])
        if decider.get("decision") == "NO"
    ]
    kind = "the copy" if not told.get("primary") else "the shard"
    why = deciders[0] if deciders else told.get("allocate_explanation", "no reason given")
    return f"{kind} of {told.get('index')} has no place ({str(why).split(' [')[0][:200]})"


# --- template and events ----------------------------------------------------------------------------------------


def template(target: Target) -> Link:
    """Ours rules the data stream, and the index that is written to has its fields."""
    if not here(target):
        return ABSENT
    try:
        if "error" in asked(f"/_index_template/{TEMPLATE}", None, 404):
            return bad(
                f"the index template {TEMPLATE} is gone, so the next index knows neither addresses nor places",
                AGAIN,
            )
        streams = asked(f"/_data_stream/{DATA_STREAM}", None, 404).get("data_streams", [])
        if not streams:
            return ok("is there; no event was stored yet")
        rules, index = streams[0].get("template"), streams[0]["indices"][-1]["index_name"]
        if rules != TEMPLATE:
            return bad(
                f"the index template {rules} outranks ours, so events may be refused", outranked(rules)
            )
        if wrong := wrong_fields(index):
            return bad(f"in {index}, {wrong}: it began without the template", AGAIN)
    except (Unreachable, Refused) as error:
        return unknown(error)
    return ok(f"rules the data stream and its {len(streams[0]['indices'])} indices")


def outranked(name: str) -> str:
    return f"remove the index template {name}, or its pattern; then {AGAIN}"


def wrong_fields(index: str) -> str:
    """Which fields have another type than ours; without theirs there is no map."""
    told = asked(f"/{index}/_mapping/field/{','.join(TYPES)}")
    fields = told.get(index, {}).get("mappings", {})
    have = {
        name: next(iter(field["mapping"].values()))["type"]
        for name, field in fields.items()
        if field.get("mapping")
    }
    return ", ".join(f"{name} is {have.get(name)}" for name, type in TYPES.items() if have.get(name) != type)


def events(target: Target) -> Link:
    """How many of the last hour's lines no pattern fits."""
    if not here(target):
        return ABSENT
    search = {
        "size": 0,
        "track_total_hits": True,
        "query": {"range": {"@timestamp": {"gte": "now-1h"}}},
        "aggs": {
            "failed": {"filter": {"terms": {"tags": ["_grokparsefailure", "_dateparsefailure"]}}},
            "elsewhere": {"filter": {"term": {"tags": "_geoip_lookup_failure"}}},
        },
    }
    try:
        told = asked(f"/{DATA_STREAMS}/_search", search)
    except (Unreachable, Refused) as error:
        return unknown(error)
    sums = told.get("aggregations", {})  # there are none where there is no index yet
    counts = {name: sums.get(name, {}).get("doc_count", 0) for name in ("failed", "elsewhere")}
    return parsed(told["hits"]["total"]["value"], **counts)


def parsed(all: int, failed: int, elsewhere: int) -> Link:
    """A verdict on the last hour. That an address is in no database says something only if most are not."""
    again = "{fab} pipeline-debug"
    text = f"{failed} of {all} lines of the last hour fit no pattern"
    if failed > MANY_FAILURES and failed > MUCH_OF_ALL * all:
        return bad(f"{text} (tag _grokparsefailure), so they are not on the map", again)
    if failed:
        return warn(f"{text} (tag _grokparsefailure)", again)
    if elsewhere > MANY_FAILURES and elsewhere > all / 2:
        return warn(f"{elsewhere} of {all} addresses of the last hour are in no GeoIP database", again)
    return ok(f"{all} in the last hour, all understood")


# --- of the proof packet ----------------------------------------------------------------------------------------


def document_of(address: str, port: int, since: int) -> str:
    """The id of the event with this source and port since then; "" while there is none."""
    told_by = [
        {"term": {"source.ip": address}},
        {"term": {"source.port": port}},
        {"range": {"@timestamp": {"gte": since, "format": "epoch_second"}}},
    ]
    try:
        told = asked(f"/{DATA_STREAMS}/_search", {"size": 1, "query": {"bool": {"filter": told_by}}})
    except (Unreachable, Refused):
        return ""
    return str(told["hits"]["hits"][0]["_id"]) if told["hits"]["hits"] else ""
