"""What doctor says of the Elastic stack: verdicts on what programs and servers answered, and the last hop through Kibana.

Kibana's upstream in the last tests is a double: an HTTPS server in this process that wants what Kibana wants.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fabfile import collector, elastic_pipeline, proof_packet
from fabfile import doctor as task
from fabfile.proof_packet import Course, Packet, Proof
from tests.unit import mmdb
from tests.unit.tls import certificate

# Last: the target's modules import their neighbours by bare name.
sys.path += [path for path in (str(task.FOLDER), str(task.OTHERS["mmdb"].parent)) if path not in sys.path]

import doctor
import elastic
import elasticsearch
import kibana
import packet
import pipeline
import storage

DAY = 86400


def target(*tasks: str, files: tuple[str, ...] = ()) -> Any:
    """What the journal would say of a box with these tasks."""
    known = {"install_elk", "kibana"} & set(tasks)
    return SimpleNamespace(
        tasks=set(tasks), elastic=bool(known), files=lambda task: {path: {} for path in files}
    )


# --- which links there are ------------------------------------------------------------------------------------------


def test_the_embedded_stack_has_its_links_and_no_others() -> None:
    names = "disk sshd rule counter log syslog rotation collector GeoIP database dashboard Apache certificate login"
    for tasks in (("collector", "dashboard"), ("harden_ssh",), ()):
        assert [name for name, _ in doctor.chain(target(*tasks))] == names.split()


def test_the_elastic_stack_stands_in_its_place_and_elasticsearch_before_what_lives_by_it() -> None:
    names = [name for name, _ in doctor.chain(target("install_elk", "kibana"))]
    assert "collector" not in names and names[:7] == [name for name, _ in doctor.SENSOR]
    assert (
        names.index("Elasticsearch") < names.index("keys") < names.index("Logstash") < names.index("Kibana")
    )


def test_while_one_stack_takes_the_others_place_both_are_looked_at() -> None:
    names = [name for name, _ in doctor.chain(target("collector", "install_elk"))]
    assert "collector" in names and "Elasticsearch" in names and len(names) == len(set(names))


def test_where_events_go_elsewhere_there_is_no_elasticsearch_to_look_at() -> None:
    away = target("install_elk", files=("/etc/logstash/conf.d/knockmap-2-output.conf",))
    links = (elastic.versions, elastic.tls, elastic.node, elastic.keys, elastic.health, elastic.events)
    assert {look(away).state for look in links} == {"absent"}
    watch: Any = SimpleNamespace(counter=None, log_line=None)
    assert [name for name, *_ in packet.stages(away, watch, 3)] == ["counter", "log line"]


# --- versions and ports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "state", "words"),
    [
        (
            (
                "elasticsearch 9.5.2 hold installed",
                "kibana 9.5.2 hold installed",
                "logstash 1:9.5.2-1 hold installed",
            ),
            "ok",
            "9.5.2 of all 3",
        ),
        (
            (
                "elasticsearch 9.5.2 hold installed",
                "kibana 9.5.3 hold installed",
                "logstash 1:9.5.2-1 hold installed",
            ),
            "bad",
            "kibana 9.5.3",
        ),
        (
            (
                "elasticsearch 9.5.2 hold installed",
                "kibana 9.5.2 install installed",
                "logstash 1:9.5.2-1 hold installed",
            ),
            "warn",
            "kibana: not held",
        ),
        (
            ("elasticsearch 9.5.2 hold installed", "logstash 1:9.5.2-1 deinstall config-files"),
            "bad",
            "logstash and kibana: not installed",
        ),
    ],
)
def test_versions_are_compared_without_epoch_and_revision(
    monkeypatch: pytest.MonkeyPatch, rows: tuple[str, ...], state: str, words: str
) -> None:
    monkeypatch.setattr(elastic, "run", lambda *argv: SimpleNamespace(stdout="\n".join(rows)))
    here = target("install_elk", "kibana", files=("/etc/elasticsearch/elasticsearch.yml",))
    link = elastic.versions(here)
    assert link.state == state and words in link.cause


LISTEN = "LISTEN 0 4096 %s *:*\n"


@pytest.mark.parametrize(
    ("addresses", "state"),
    [
        (("[::ffff:127.0.0.1]:9200", "[::1]:9300", "127.0.0.1:5601", "0.0.0.0:443"), "ok"),
        (("*:9200", "127.0.0.1:5601"), "bad"),
        (("[::ffff:127.0.0.1]:9200", "0.0.0.0:9200"), "bad"),
        (("*:9200", "[::1]:9200"), "bad"),
        (("127.0.0.1:9200", "192.0.2.7:5601"), "bad"),
        (("[::]:9600",), "bad"),
        ((), "ok"),
    ],
)
def test_a_port_is_on_loopback_only_or_it_is_open(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...], state: str
) -> None:
    text = "".join(LISTEN % address for address in addresses)
    monkeypatch.setattr(elastic, "run", lambda *argv: SimpleNamespace(stdout=text))
    assert elastic.ports(target("install_elk")).state == state


# --- certificates, errors, events -----------------------------------------------------------------------------------


def test_an_ended_certificate_is_bad_and_one_that_ends_soon_is_told() -> None:
    now = time.time()
    assert elastic.end_of({"a": now + 5 * DAY, "b": now - DAY}, "bad").cause.startswith(  # type: ignore[union-attr]
        "Elasticsearch's b has expired"
    )
    assert elastic.end_of({"a": now + 5 * DAY}, "bad") is None
    assert "in 5 days" in elastic.end_of({"a": now + 5.01 * DAY}, "warn").cause  # type: ignore[union-attr]
    assert elastic.end_of({"a": now + 60 * DAY}, "warn") is None


KEYS = ("writer_key", "reader_key", "keeper_key")


@pytest.mark.parametrize("refused", ["", "elastic_password", *KEYS, "kibana_token"])
def test_every_kept_secret_is_tried_and_the_refused_one_named(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    headers = {
        "elastic_password": elasticsearch.basic("elastic", "elastic_password"),
        "kibana_token": elasticsearch.bearer("kibana_token"),
        **{name: elasticsearch.api_key(name) for name in KEYS},
    }
    monkeypatch.setattr(elasticsearch, "secret", lambda name: name)
    monkeypatch.setattr(elastic, "secret", lambda name: name)

    def call(method: str, path: str, **given: Any) -> tuple[int, Any]:
        name = next(name for name, header in headers.items() if header == given["auth"])
        return (401 if name == refused else 200), {}

    monkeypatch.setattr(elastic, "call", call)
    link = elastic.keys(target("install_elk", "kibana", files=("/etc/elasticsearch/elasticsearch.yml",)))
    assert link.state == ("bad" if refused else "ok")
    assert f"refuses the {refused} " in link.cause or not refused


def test_of_a_programs_last_words_the_cause_is_told_and_not_its_consequence() -> None:
    lines = [
        "[ERROR][logstash.agent] Failed to execute action: Expected one of [ \\t\\r\\n]",
        "[FATAL][org.logstash.Logstash] Logstash stopped processing because of an error: (SystemExit) exit",
        "[INFO ][logstash.runner] no error",
    ]
    assert elastic.last_error(lines).startswith(" ([ERROR][logstash.agent] Failed")
    assert elastic.last_error(lines[2:]) == ""
    registered = "[ERROR][logstash.javapipeline][main] Pipeline error {:exception=>#<Grok::PatternError: pattern %{A} not defined>"
    failed = '[ERROR][logstash.agent] Failed to execute action {:message=>"Could not execute action: PipelineAction::Create<main>, action_result: false"'
    assert elastic.last_error([registered, failed, lines[1]]) == f" ({registered})"
    boot = ["[ERROR][o.e.b.Elasticsearch] [box] fatal exception while booting Elasticsearch"]
    thrown = "java.lang.IllegalArgumentException: unknown setting [zen.nonsense]"
    assert elastic.last_error([*boot, thrown, "\tat org.elasticsearch"]) == f" ({thrown})"


@pytest.mark.parametrize(
    ("all", "failed", "elsewhere", "state"),
    [
        (0, 0, 0, "ok"),
        (1000, 0, 100, "ok"),
        (1000, 0, 900, "warn"),
        (1000, 3, 0, "warn"),
        (1000, 60, 0, "warn"),
        (5, 5, 0, "warn"),
        (100, 40, 0, "bad"),
    ],
)
def test_lines_that_fit_no_pattern_are_bad_when_they_are_many(
    all: int, failed: int, elsewhere: int, state: str
) -> None:
    assert elastic.parsed(all, failed, elsewhere).state == state


# --- Logstash -------------------------------------------------------------------------------------------------------


def logstashs(monkeypatch: pytest.MonkeyPatch, state: str, *units: dict[str, str]) -> Any:
    """Logstash's link where its API tells this state, its unit shows these one after another, and its log has a complaint."""
    looks = iter(units)
    monkeypatch.setattr(
        pipeline, "unit", lambda name: {"ActiveState": "active", "UnitFileState": "enabled", **next(looks)}
    )
    known = {"main": {"details": {"status": {"state": state}}}} if state else {}
    report = {"indicators": {"pipelines": {"indicators": known}}}
    monkeypatch.setattr(pipeline, "api", lambda path: report if path == "/_health_report" else {})
    monkeypatch.setattr(pipeline, "PATIENCE", 0.0)
    monkeypatch.setattr(pipeline, "complaint", lambda name: " (FATAL it says why)")
    here = target("install_elk")
    here.edited = lambda task, under: ""
    return pipeline.logstash(here)


@pytest.mark.parametrize("state", ["", "UNKNOWN", "LOADING", "TERMINATED"])
def test_a_pipeline_that_logstash_knows_does_not_run_yet(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    young = logstashs(monkeypatch, state, started(9))
    assert young.state == "warn" and f"its pipeline does not ({state or 'missing'})" in young.cause
    assert logstashs(monkeypatch, state, started(900)).state == "bad"
    looping = logstashs(monkeypatch, state, {"NRestarts": "3", **started(9)})
    assert (looping.state, looping.cause) == ("bad", "Logstash ends again and again (FATAL it says why)")


def test_what_a_starting_logstash_lacks_is_told_before_that_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "may_not_read", lambda pid: "it may not read the log")
    link = logstashs(monkeypatch, "LOADING", started(2))
    assert (link.state, link.cause) == ("bad", "it may not read the log")


def test_a_logstash_that_runs_is_not_well_when_it_ended_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an event does to it is seen when that is read, which is after the pipeline runs."""
    ended = {"NRestarts": "3", **started(9)}
    link = logstashs(monkeypatch, "RUNNING", ended, ended)
    assert link.state == "warn" and "started it again 9 s ago (FATAL it says why)" in link.cause
    between = {"ActiveState": "activating", **ended}
    assert logstashs(monkeypatch, "RUNNING", ended, between).state == "bad"


def test_a_logstash_that_ended_long_ago_and_runs_since_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {"NRestarts": "1", **started(900)}
    assert logstashs(monkeypatch, "RUNNING", ended, ended).state == "ok"
    assert logstashs(monkeypatch, "RUNNING", started(9), started(9)).state == "ok"


def test_the_position_in_the_log_is_that_of_its_inode() -> None:
    sincedb = "4107031 0 65024 249 1795546920.638535 /var/log/iptables.log\n77 0 65024 9000 1795546000.0\n"
    assert pipeline.read_up_to(sincedb, 4107031) == 249
    assert pipeline.read_up_to(sincedb, 77) == 9000
    assert pipeline.read_up_to(sincedb, 1) == 0 and pipeline.read_up_to("", 1) == 0


def test_a_process_reads_by_the_groups_of_its_start(tmp_path: Path) -> None:
    status = "Name:\tjava\nUid:\t999\t999\t999\t999\nGid:\t998\t998\t998\t998\nGroups:\t995 998 \n"
    assert pipeline.credentials(status) == (999, {995, 998})
    log = tmp_path / "log"
    log.touch()
    for mode, readable in ((0o640, False), (0o604, True)):
        log.chmod(mode)
        info = log.stat()
        assert pipeline.readable(info, info.st_uid + 1, {info.st_gid + 1}) == readable
    assert pipeline.readable(info, info.st_uid, set())
    log.chmod(0o640)
    assert pipeline.readable(log.stat(), info.st_uid + 1, {info.st_gid})


RUBY = b'\x00\x01c\x00Could not index event to Elasticsearch. status: 400, response: {"create"=>{"error"=>{"type"=>"document_parsing_exception", "reason"=>"failed to parse field [message] of type [long]"}}}'
JSON = json.dumps(
    {"reason": json.dumps({"status": 400, "error": {"reason": "failed to parse field [message]"}})}
)


@pytest.mark.parametrize("letter", [RUBY, JSON.encode()])
def test_a_dead_letter_says_why_in_either_form(tmp_path: Path, letter: bytes) -> None:
    path = tmp_path / "1.log"
    path.write_bytes(letter)
    assert "failed to parse field [message]" in pipeline.last_reason(str(path))
    path.write_bytes(b"1")
    assert pipeline.last_reason(str(path)) == ""


def test_the_day_of_a_geoip_database_is_read_without_a_library(tmp_path: Path) -> None:
    built = int(time.time()) - 40 * DAY
    mmdb.write(tmp_path / "a.mmdb", {"10.0.0.0/8": {"country_code": "DE"}}, built=built)
    assert pipeline.metadata(str(tmp_path / "a.mmdb"))[0] == built
    (tmp_path / "b.mmdb").write_bytes(os.urandom(1000))
    assert pipeline.metadata(str(tmp_path / "b.mmdb")) == (0, "")


def test_geoip_data_are_looked_for_where_they_are_put() -> None:
    assert (pipeline.GEO, storage.GEO) == (elastic_pipeline.GEO, collector.GEO)


# --- Kibana ---------------------------------------------------------------------------------------------------------


def shown(monkeypatch: pytest.MonkeyPatch, *units: dict[str, str]) -> Any:
    """Kibana's link where its port is closed, its unit shows these one after another, and its log has a complaint."""
    looks = iter(units)
    monkeypatch.setattr(
        kibana, "unit", lambda name: {"ActiveState": "active", "UnitFileState": "enabled", **next(looks)}
    )
    monkeypatch.setattr(kibana, "PATIENCE", 0.0)
    monkeypatch.setattr(kibana.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(kibana, "complaint", lambda name, path="": " (FATAL it says why)" if path else "")

    def closed() -> str:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(kibana, "level", closed)
    here = target("kibana")
    here.gone = here.edited = lambda task: ""
    return kibana.service(here)


def started(seconds_ago: float) -> dict[str, str]:
    since = time.monotonic() - seconds_ago
    return {"ExecMainStartTimestampMonotonic": str(int(since * 1e6)), "MainPID": "0"}


@pytest.mark.parametrize(
    "later", [{"ActiveState": "failed"}, {"ActiveState": "activating"}, {"NRestarts": "1", **started(1)}]
)
def test_a_kibana_that_ended_while_it_was_waited_for_does_not_stay_up(
    monkeypatch: pytest.MonkeyPatch, later: dict[str, str]
) -> None:
    link = shown(monkeypatch, started(4), later)
    assert link.state == "bad" and link.cause == "Kibana does not stay up (FATAL it says why)"


def test_how_long_kibana_has_run_is_that_of_the_process_that_runs_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = shown(monkeypatch, started(5000), started(7))  # restarted by hand meanwhile
    assert link.state == "warn" and "started 7 s ago" in link.cause
    assert shown(monkeypatch, started(5000), started(5000)).state == "bad"


def test_lost_objects_are_named() -> None:
    absent = {"attributes": {"objects": [{"type": "map", "id": "m"}, {"type": "lens", "id": "p"}]}}
    assert "map m and lens p" in kibana.complete(400, json.dumps(absent), 5).cause
    missing = {"missingRefCount": 1, "missingReferences": [{"type": "lens", "id": "p"}]}
    assert kibana.complete(200, '{"id": "d"}\n' + json.dumps(missing), 5).state == "bad"
    whole = {"missingRefCount": 0, "missingReferences": []}
    assert kibana.complete(200, '{"id": "d"}\n' + json.dumps(whole) + "\n", 5).state == "ok"
    assert kibana.complete(503, "Kibana server is not ready yet", 5).state == "warn"


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """A double of Apache and Kibana: (port, SHA-256 of its certificate). A session begins with a page; one document."""
    der, pem = certificate(datetime.now(timezone.utc) + timedelta(days=9))
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(pem)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/kibana/app/home" else 404)
            self.send_header("Set-Cookie", "sid=abc; Path=/kibana; Secure; HttpOnly")
            self.end_headers()

        def do_POST(self) -> None:
            wanted = {"kbn-xsrf", "x-elastic-internal-origin", "elastic-api-version"}
            good = wanted <= {name.lower() for name in self.headers} and self.headers["Cookie"] == "sid=abc"
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids = asked["params"]["body"]["query"]["ids"]["values"]
            body = {"rawResponse": {"hits": {"hits": [{"_id": "known"}] if ids == ["known"] else []}}}
            self.send_response(200 if good else 400)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_address[1], hashlib.sha256(der).hexdigest()
    server.shutdown()


@pytest.fixture
def course(double: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Course]:
    """A packet that has come to its document, on the port of the double."""
    real = proof_packet.request
    monkeypatch.setattr(proof_packet, "request", lambda *given: real(*given, port=double[0]))
    monkeypatch.setattr(proof_packet, "JSON_SECONDS", 0.5)
    made = Course(
        SimpleNamespace(host="127.0.0.1", gateway=None), [Packet(4, "127.0.0.1", "")], [], lambda c: c
    )
    made.way_in = {"certificate": double[1], "name": "vps.example", "user": "knockmap", "password": "right"}
    made.way_in["kibana"] = True
    made.proofs.append(Proof(4, "127.0.0.1"))
    made.sent = time.monotonic()
    yield made
    made.packets[0].close()


def test_a_document_is_found_by_a_visitors_session(course: Course) -> None:
    course.take({"event": "stored", "address": "192.0.2.1", "port": 5, "at": 0, "id": "known"})
    assert [hop["name"] for hop in course.proofs[0].hops] == [proof_packet.KIBANA]
    assert course.proofs[0].state == "ok"


def test_a_document_that_kibana_does_not_show_stops_the_packet_there(course: Course) -> None:
    course.take({"event": "stored", "address": "192.0.2.1", "port": 5, "at": 0, "id": "other"})
    proof = course.proofs[0]
    assert proof.state == "bad" and proof.stopped == proof_packet.KIBANA
    assert "not among the answers" in proof.cause and "kibana" in proof.next


@pytest.mark.parametrize("name", [proof_packet.DOCUMENT, proof_packet.KIBANA])
def test_every_stop_has_a_cause_and_a_next_command(course: Course, name: str) -> None:
    course.take({"event": "stopped", "name": name, "over_limit": False})
    assert course.proofs[0].state == "bad" and course.proofs[0].cause and course.proofs[0].next
