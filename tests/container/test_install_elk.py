"""Elasticsearch and Logstash on a real box: from the packages to documents, closed and held.

Which repository they come from, Elastic's or the doubles', is nothing that these tests know.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from box import Box, attack

from tests.container import elastic as packages
from tests.container.conftest import Fab, NewBox
from tests.doubles import repository
from tests.unit import mmdb

FabCommand = Callable[..., Fab]
SECRETS = "/var/lib/knockmap/secrets"
STREAM = "logs-iptables.ssh-default"
FOLDER = "/usr/local/lib/knockmap/install_elk"
CHAIN = ("iptables-log", "syslog-route", "install-elk")


@pytest.fixture(scope="module")
def box(elastic_box: Box) -> Box:
    return elastic_box


def shell(box: Box, script: str) -> str:
    """What a script prints on the box; it must go well."""
    status, out = box.run(["sh", "-c", script])
    assert status == 0, (script, out)
    return out


def python(box: Box, source: str) -> Any:
    """What a Python source puts into `answer`, with the client on the box as `es`."""
    program = f"import json,sys\nsys.path.insert(0,{FOLDER!r})\nimport elasticsearch as es\n{source}\nprint(json.dumps(answer))"
    status, out = box.run(["/usr/bin/python3", "-B", "-c", program])
    assert status == 0, out
    return json.loads(out)


def call(box: Box, method: str, path: str, body: Any = None, auth: str = "elastic") -> tuple[int, Any]:
    status, answer = python(box, f"answer = es.call({method!r}, {path!r}, {body!r}, auth={auth!r})")
    return status, answer


def bulk(box: Box, stream: str, auth: str) -> int:
    """The status with which a document was taken, or refused, by that key."""
    lines = f'{{"create": {{"_index": "{stream}"}}}}\n{{"@timestamp": "2026-11-24T10:00:00Z"}}\n'
    status, answer = call(box, "POST", "/_bulk", lines, auth)
    return status if status != 200 else int(answer["items"][0]["create"]["status"])


def count(box: Box, wanted: int) -> int:
    """How many scans are stored, as soon as there are `wanted`, or after 30 s."""
    # This machine's own logins come from Docker's network.
    scans = {
        "filter": {"term": {"event.action": "ssh-scan"}},
        "must_not": {"term": {"source.ip": "172.16.0.0/12"}},
    }
    query = {"query": {"bool": scans}}
    found = -1
    for _ in range(30):
        status, answer = call(box, "POST", f"/{STREAM}/_count?ignore_unavailable=true", query, "reader")
        found = answer["count"] if status == 200 else -1
        if found >= wanted:
            break
        time.sleep(1)
    return found


def secrets(box: Box) -> dict[str, str]:
    names = shell(box, f"ls {SECRETS}").split()
    found = {name: shell(box, f"cat {SECRETS}/{name}").strip() for name in names}
    return {name: value.rpartition(":")[2] for name, value in found.items()}


def test_a_foreign_listener_is_refused_before_anything_is_touched(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    box.run(
        [
            "systemd-run",
            "-q",
            "--unit=squatter",
            "python3",
            "-m",
            "http.server",
            "9200",
            "--bind",
            "127.0.0.1",
        ]
    )
    for _ in range(50):
        if "9200" in shell(box, "ss -Hltn"):
            break
        time.sleep(0.1)
    refused = fab(box, "install-elk", **elastic)
    shell(box, "systemctl stop squatter")
    assert refused.rc == 1 and "port 9200 is taken by python3" in refused.out
    assert box.run(["test", "-e", "/var/lib/knockmap"])[0] == 1


def test_too_little_memory_is_refused_with_numbers(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    heaps = {"KNOCKMAP_ELASTIC_HEAP": "31000", "KNOCKMAP_KIBANA_HEAP": "16384"}
    refused = fab(box, "install-elk", **{**elastic, **heaps})
    assert refused.rc == 1 and re.search(
        r"[\d.]+ GiB of memory, needs 4\d.\d: use `stack = embedded`", refused.out
    )


def way_out(refused: Fab) -> str:
    """The commands that a refusal says."""
    (commands,) = re.findall(r"`((?:dpkg|install) [^`]+)`", refused.out.replace("\n", " "))
    return str(commands)


def test_what_a_purge_left_is_refused_and_the_way_out_leads_out(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    shell(box, "mkdir /etc/elasticsearch; touch /etc/elasticsearch/elasticsearch.keystore")
    refused = fab(box, "install-elk", **elastic)
    assert refused.rc == 1 and "/etc/elasticsearch holds what is left of an Elasticsearch" in refused.out
    assert box.run(["test", "-e", "/var/lib/knockmap"])[0] == 1
    shell(box, way_out(refused))
    assert fab(box, "install-elk", "--check", **elastic).rc == 0


def test_check_on_a_pristine_box_writes_nothing(fab: FabCommand, box: Box, elastic: dict[str, str]) -> None:
    shell(box, "touch /root/before")
    checked = fab(box, "install-elk", "--check", "--diff", **elastic)
    assert checked.rc == 0 and "would change service:logstash.service" in checked.out, checked.out
    changed = shell(
        box,
        "find / -xdev -newer /root/before -type f -not -path '/proc/*' -not -path '/sys/*' -not -path '/run/*' "
        "-not -path '/var/log/*' -not -path '/root/before'",
    )
    assert changed == ""
    shell(box, "rm /root/before")


def test_brings_the_whole_chain_and_changes_nothing_the_second_time(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    done = fab(box, *CHAIN, **elastic)
    assert done.rc == 0, done.out
    again = fab(box, *CHAIN, **elastic)
    assert again.rc == 0 and ", 0 changed, 0 failed, 0 skipped" in again.last, again.out


def test_listens_on_loopback_only(box: Box) -> None:
    lines = [line.split()[3] for line in shell(box, "ss -Hltn").splitlines()]
    ours = [line for line in lines if line.rpartition(":")[2] in ("9200", "9300", "9600")]
    assert {line.rpartition(":")[2] for line in ours} == {"9200", "9300", "9600"}
    assert all(line.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:")) for line in ours)


def test_every_syn_becomes_a_document(box: Box) -> None:
    sent = attack(box, sources=20, count=200, rate=200)
    assert sent.leaked == 0
    assert count(box, sent.v4 + sent.v6) == sent.v4 + sent.v6
    _, answer = call(box, "GET", f"/{STREAM}/_search?size=1&q=source.port:*", auth="reader")
    event = answer["hits"]["hits"][0]["_source"]
    assert event["event"]["dataset"] == "iptables.ssh" and event["destination"]["port"] == 22
    assert "original" not in event["event"] and event["message"]


def test_kill_9_and_a_rotation_lose_nothing_and_double_nothing(box: Box) -> None:
    """While SYNs come in; Elasticsearch is away for a moment, too."""
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(attack, box, 20, 2000, 200)
        shell(box, "sleep 2; systemctl kill -s KILL logstash; sleep 4")
        shell(
            box, "logrotate -f -s /tmp/status /etc/knockmap/logrotate.conf; systemctl kill -s KILL logstash"
        )
        shell(box, "systemctl restart elasticsearch; systemctl kill -s KILL logstash")
        sending.result()
    lines = stored = 0
    for _ in range(60):
        lines = int(shell(box, "zcat -f /var/log/iptables.log* | sort -u | wc -l"))
        status, answer = call(box, "GET", f"/{STREAM}/_count", auth="reader")
        stored = answer["count"] if status == 200 else 0  # 503 until it is there again
        if stored >= lines:
            break
        time.sleep(2)
    assert lines > 2000 and stored == lines


def test_a_line_that_is_no_packet_is_kept_and_tagged(box: Box) -> None:
    shell(box, "echo '2026-11-24T10:00:14.000000+00:00 vps kernel: nonsense' >>/var/log/iptables.log")
    for _ in range(30):
        query = "q=tags:_grokparsefailure"
        _, answer = call(box, "GET", f"/{STREAM}/_search?{query}", auth="reader")
        if found := answer["hits"]["hits"]:
            break
        time.sleep(1)
    (event,) = [hit["_source"] for hit in found]
    assert event["event"]["original"] == event["message"] and event["message"].endswith("nonsense")
    assert event["@timestamp"] == "2026-11-24T10:00:14.000Z"


def test_the_health_is_green_and_the_stream_follows_our_template(box: Box) -> None:
    status, health = call(box, "GET", "/_cluster/health", auth="reader")
    assert (status, health["status"], health["cluster_name"]) == (200, "green", "knockmap")
    _, streams = call(box, "GET", f"/_data_stream/{STREAM}")
    assert streams["data_streams"][0]["template"] == "knockmap"
    _, fields = call(box, "GET", f"/{STREAM}/_mapping")
    properties = next(iter(fields.values()))["mappings"]["properties"]
    assert properties["source"]["properties"]["ip"]["type"] == "ip"
    assert properties["source"]["properties"]["geo"]["properties"]["location"]["type"] == "geo_point"


def test_the_writer_can_write_one_stream_and_nothing_else(box: Box) -> None:
    assert bulk(box, "logs-other.ssh-default", "writer") == 403
    assert bulk(box, "logs-iptables.ssh-other", "writer") == 403
    for method, path in (
        ("GET", f"/{STREAM}/_search"),
        ("DELETE", f"/_data_stream/{STREAM}"),
        ("POST", f"/{STREAM}/_rollover"),
        ("PUT", "/_index_template/own"),
        ("GET", "/_cluster/health"),
        ("GET", "/_security/user"),
        ("POST", "/_security/api_key"),
    ):
        body = {} if method in ("PUT", "POST") else None
        assert call(box, method, path, body, "writer")[0] in (400, 403), (method, path)
    assert call(box, "GET", f"/{STREAM}/_search", auth="writer")[0] == 403


def test_the_reader_can_read_and_nothing_else(box: Box) -> None:
    assert call(box, "GET", f"/{STREAM}/_count", auth="reader")[0] == 200
    assert bulk(box, STREAM, "reader") == 403
    for method, path in (
        ("GET", "/.security/_search"),
        ("DELETE", f"/_data_stream/{STREAM}"),
        ("GET", "/_security/user"),
    ):
        assert call(box, method, path, auth="reader")[0] == 403


def test_files_are_mapped_only_where_the_host_allows_it(box: Box) -> None:
    """A container's vm.max_map_count is its host's, and not ours to set."""
    allowed = int(shell(box, "cat /proc/sys/vm/max_map_count")) >= 262144
    (node,) = call(box, "GET", "/_nodes/_local/settings")[1]["nodes"].values()
    assert node["settings"]["node"].get("store", {}) == ({} if allowed else {"allow_mmap": "false"})


def test_the_keeper_can_make_room_and_sees_no_event(box: Box) -> None:
    """What it can do, the test of the oldest index shows."""
    assert call(box, "GET", f"/{STREAM}/_search", auth="keeper")[0] == 403
    assert bulk(box, STREAM, "keeper") == 403
    for method, path in (
        ("GET", "/.security/_search"),
        ("PUT", "/logs-other"),
        ("GET", "/_security/user"),
        ("PUT", "/_cluster/settings"),
    ):
        assert call(box, method, path, {}, auth="keeper")[0] in (400, 403), (method, path)


def test_without_a_login_nothing_is_answered(box: Box) -> None:
    assert call(box, "GET", "/", auth="none")[0] == 401
    assert box.run(["curl", "-s", "http://127.0.0.1:9200/"])[0] != 0


def test_secrets_stand_in_their_root_only_places_and_nowhere_else(box: Box) -> None:
    assert shell(box, f"stat -c '%U %a' {SECRETS}").split() == ["root", "700"]
    found = secrets(box)
    assert set(found) == {"elastic_password", "writer_key", "reader_key", "keeper_key"}
    assert set(shell(box, f"stat -c %a {SECRETS}/*").split()) == {"600"}
    assert shell(box, "stat -c '%U %a' /etc/logstash/knockmap.env").split() == ["root", "600"]
    for name, value in found.items():
        places = shell(
            box, f"grep -rlsF -e '{value}' / --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev || true"
        ).split()
        allowed = {f"{SECRETS}/{name}"}
        if name == "writer_key":
            journal = {path for path in places if path.startswith("/var/lib/knockmap/journal/objects/")}
            allowed |= {"/etc/logstash/knockmap.env", *journal}  # the journal is for root alone, too
        assert set(places) <= allowed, name
        listed = shell(
            box, f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -cF -e '{value}' || true"
        )
        assert int(listed) <= 2, name  # the two of this very search


def test_the_password_of_the_package_lets_nobody_in(box: Box) -> None:
    printed = shell(box, r"sed -n 's/.*superuser is : //p' /var/log/apt/term.log").strip()
    assert printed
    status = python(box, f"answer = es.call('GET', '/', auth=es.basic('elastic', {printed!r}))[0]")
    assert status == 401


def test_no_version_moves_by_itself(
    fab: FabCommand, box: Box, elastic_next: dict[str, str], elastic: dict[str, str]
) -> None:
    """Not even with a newer one in the archive and the hold released: apt prefers the version that is set."""
    assert set(shell(box, "apt-mark showhold").split()) >= {"elasticsearch", "logstash"}
    newer = {**elastic_next, "KNOCKMAP_ELASTIC_VERSION": elastic["KNOCKMAP_ELASTIC_VERSION"]}
    assert fab(box, "install-elk", **newer).rc == 0
    shell(box, "apt-mark unhold elasticsearch logstash && apt-get update -q")
    assert elastic_next["KNOCKMAP_ELASTIC_VERSION"] in shell(box, "apt-cache madison elasticsearch")
    assert not re.search(r"^Inst (elasticsearch|logstash)", shell(box, "apt-get -s dist-upgrade"), re.M)
    assert fab(box, "install-elk", **elastic).rc == 0


def test_drift_is_repaired(fab: FabCommand, box: Box, elastic: dict[str, str]) -> None:
    assert call(box, "PUT", "/_component_template/knockmap-settings", {"template": {}})[0] == 200
    key = shell(box, f"cat {SECRETS}/reader_key").partition(":")[0]
    assert call(box, "DELETE", "/_security/api_key", {"ids": [key]})[0] == 200
    shell(box, "systemctl disable -q --now logstash; chmod 644 /etc/logstash/knockmap.env")
    shell(
        box, "echo 'http.host: 0.0.0.0' >/etc/elasticsearch/elasticsearch.yml; apt-mark unhold elasticsearch"
    )
    repaired = fab(box, "install-elk", **elastic)
    assert repaired.rc == 0, repaired.out
    changed = re.findall(r"^changed +(\S+)", repaired.out, re.M)
    assert set(changed) >= {
        "package:elasticsearch",
        "file:/etc/elasticsearch/elasticsearch.yml",
        "service:elasticsearch.service",
        "rest:/_component_template/knockmap-settings",
        "file:/etc/logstash/knockmap.env",
        "service:logstash.service",
    }
    assert call(box, "GET", f"/{STREAM}/_count", auth="reader")[0] == 200
    assert ", 0 changed, 0 failed" in fab(box, "install-elk", **elastic).last


def test_a_pipeline_that_logstash_refuses_does_not_replace_the_one_that_runs(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    path = "/etc/logstash/conf.d/knockmap-1-pipeline.conf"
    before = shell(box, f"sha256sum {path}")
    shell(box, "echo 'output { no_such_plugin { } }' >/etc/logstash/conf.d/zz-operators.conf")
    shell(box, f"echo '# edited' >>{path}")
    edited = shell(box, f"sha256sum {path}")
    refused = fab(box, "install-elk", **elastic)
    assert refused.rc == 1 and f"{path} was refused by" in refused.out, refused.out
    assert "no_such_plugin" in refused.out  # so the one that runs was not in its way
    assert shell(box, f"sha256sum {path}") == edited
    shell(box, "rm /etc/logstash/conf.d/zz-operators.conf")
    assert fab(box, "install-elk", **elastic).rc == 0
    assert shell(box, f"sha256sum {path}") == before
    assert shell(box, "find /tmp /var/tmp -name 'knockmap-*'") == ""


def test_a_start_that_fails_when_plugins_register_is_no_success(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    """Logstash's own test finds nothing, and its API answers: the service is started again and again."""
    path, other = "/etc/logstash/conf.d/knockmap-1-pipeline.conf", "/etc/logstash/conf.d/zz-operators.conf"
    pattern = '{ "message" => "%{NO_SUCH}" }'
    shell(box, f"echo 'filter {{ grok {{ match => {pattern} }} }}' >{other}; echo '# edited' >>{path}")
    failed = fab(box, "install-elk", **elastic)
    assert failed.rc == 1 and "logstash.service is started again and again" in failed.out, failed.out
    assert "pattern %{NO_SUCH} not defined" in failed.out
    shell(box, f"rm {other}; systemctl restart logstash")
    mended = fab(box, "install-elk", **elastic)
    assert mended.rc == 0, mended.out


def test_new_fields_begin_a_new_index(fab: FabCommand, box: Box, elastic: dict[str, str]) -> None:
    _, before = call(box, "GET", f"/{STREAM}/_mapping")
    _, template = call(box, "GET", "/_component_template/knockmap-mappings")
    document = template["component_templates"][0]["component_template"]["template"]
    document["mappings"]["properties"]["former"] = {"type": "keyword"}
    body = {"template": document}
    assert call(box, "PUT", "/_component_template/knockmap-mappings", body)[0] == 200
    assert call(box, "POST", f"/{STREAM}/_rollover")[0] == 200
    repaired = fab(box, "install-elk", **elastic)
    assert repaired.rc == 0 and "the data stream follows its template" in repaired.out
    _, after = call(box, "GET", f"/{STREAM}/_mapping")
    assert len(after) == len(before) + 2
    assert "former" not in after[max(after)]["mappings"]["properties"]


def test_a_foreign_template_that_outranks_ours_is_named_and_nothing_begins_by_it(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    foreign = {"index_patterns": ["logs-iptables*"], "data_stream": {}, "priority": 900}
    indices = call(box, "GET", f"/{STREAM}/_mapping")[1].keys()
    assert call(box, "PUT", "/_index_template/foreign", foreign)[0] == 200
    refused = fab(box, "install-elk", **elastic)
    # By the list of templates, as it is told before there is a data stream.
    first = "import data_stream\nanswer = data_stream.ruling({})"
    assert python(box, first) == "foreign"
    assert call(box, "DELETE", "/_index_template/foreign")[0] == 200
    assert python(box, first) == "knockmap"
    assert refused.rc == 1 and "the index template foreign outranks ours" in refused.out
    assert call(box, "GET", f"/{STREAM}/_mapping")[1].keys() == indices
    assert fab(box, "install-elk", **elastic).last.endswith(", 0 changed, 0 failed, 0 skipped")


def test_another_retention_is_that_of_the_stream_that_is_there(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    def kept() -> str:
        (stream,) = call(box, "GET", f"/_data_stream/{STREAM}")[1]["data_streams"]
        return str(stream["lifecycle"]["data_retention"])

    assert kept() == "400d"
    shorter = {**elastic, "KNOCKMAP_ELASTIC_RETENTION_DAYS": "30"}
    done = fab(box, "install-elk", **shorter)
    assert done.rc == 0 and kept() == "30d", done.out
    assert ", 0 changed, 0 failed" in fab(box, "install-elk", **shorter).last
    assert fab(box, "install-elk", **elastic).rc == 0 and kept() == "400d"


def test_secrets_are_renewed_while_everything_runs(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    before, stored = secrets(box), count(box, 0)
    keys = ("writer_key", "reader_key", "keeper_key")
    former = {name: shell(box, f"cat {SECRETS}/{name}").strip() for name in keys}
    rotated = fab(box, "rotate-secrets", **elastic)
    assert rotated.rc == 0, rotated.out
    assert all(value != before[name] for name, value in secrets(box).items())
    for key in former.values():
        assert python(box, f"answer = es.call('GET', '/', auth=es.api_key({key!r}))[0]") == 401
    sent = attack(box, sources=5, count=20, rate=50)
    assert count(box, stored + sent.v4 + sent.v6) == stored + sent.v4 + sent.v6
    assert ", 0 changed, 0 failed" in fab(box, "install-elk", **elastic).last


def test_pipeline_debug_shows_events_and_stores_nothing(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    stored = count(box, 0)
    shown = fab(box, "pipeline-debug", "--lines", "2", **elastic)
    assert shown.rc == 0 and shown.out.count("ssh-scan") == 2, shown.out
    assert count(box, 0) == stored
    assert fab(box, "pipeline-debug", "--lines", "0", **elastic).rc == 2
    assert shell(box, "find /tmp /var/tmp -name 'knockmap-*'") == ""


def test_own_geoip_data_take_the_place_of_logstashs_and_go_with_the_setting(
    fab: FabCommand, box: Box, elastic: dict[str, str], tmp_path: Path
) -> None:
    # Logstash takes nothing from a record without coordinates.
    record = {
        "country": {"iso_code": "AQ", "names": {"en": "Antarctica"}},
        "location": {"latitude": -90.0, "longitude": 0.0},
    }
    mmdb.write(tmp_path / "own.mmdb", {"::/1": record}, kind="GeoLite2-City")
    own = {
        **elastic,
        "KNOCKMAP_LOGSTASH_GEOIP": "own",
        "KNOCKMAP_GEO_DATABASES": str(tmp_path / "own.mmdb"),
    }
    folder, stored = "/var/lib/knockmap/logstash-geo", count(box, 0)
    done = fab(box, "install-elk", **own)
    assert done.rc == 0 and "service:logstash.service" in done.out, done.out
    assert ", 0 changed, 0 failed" in fab(box, "install-elk", **own).last
    sent = attack(box, sources=5, count=20, rate=50)
    assert count(box, stored + sent.v4 + sent.v6) == stored + sent.v4 + sent.v6
    _, answer = call(
        box,
        "GET",
        f"/{STREAM}/_count?q=source.geo.country_name:Antarctica%20AND%20destination.port:22",
        auth="reader",
    )
    assert answer["count"] == sent.v4 + sent.v6
    assert fab(box, "install-elk", **elastic).rc == 0
    assert shell(box, f"ls {folder} 2>/dev/null || true") == ""


def test_ships_to_a_cluster_elsewhere_with_logstash_alone(
    fab: FabCommand, box: Box, elastic: dict[str, str], tmp_path: Path
) -> None:
    """The cluster is this box's own, as another one would be reached: by address, authority and key."""
    stored = count(box, 0)
    for name, source in (
        ("ca.pem", "/etc/elasticsearch/certs/http_ca.crt"),
        ("key", f"{SECRETS}/writer_key"),
    ):
        (tmp_path / name).write_text(shell(box, f"cat {source}"))
    there = {
        **elastic,
        "KNOCKMAP_ELASTIC_HOSTS": "https://127.0.0.1:9200",
        "KNOCKMAP_ELASTIC_CA": str(tmp_path / "ca.pem"),
        "KNOCKMAP_ELASTIC_API_KEY_FILE": str(tmp_path / "key"),
    }
    shipped = fab(box, "install-elk", "--verbose", **there)
    assert shipped.rc == 0 and "service:logstash.service" in shipped.out, shipped.out
    assert "service:elasticsearch.service" not in shipped.out
    sent = attack(box, sources=5, count=20, rate=50)
    assert count(box, stored + sent.v4 + sent.v6) == stored + sent.v4 + sent.v6
    wrong = tmp_path / "wrong"
    wrong.write_text("no key")
    refused = fab(box, "install-elk", **{**there, "KNOCKMAP_ELASTIC_API_KEY_FILE": str(wrong)})
    assert refused.rc == 2 and "id:key" in refused.out
    assert fab(box, "install-elk", **elastic).rc == 0


def test_the_oldest_index_goes_when_the_events_take_too_much(box: Box) -> None:
    stored, program = count(box, 0), f"{FOLDER}/data_stream.py"
    _, before = call(box, "GET", f"/{STREAM}/_mapping")
    shell(box, "systemctl start knockmap-data-stream.service")
    assert count(box, 0) == stored  # far below the limit
    shell(box, f"{program} roll && {program} trim 0")
    _, after = call(box, "GET", f"/{STREAM}/_mapping")
    assert not set(before) & set(after) and len(after) >= 1
    assert count(box, 0) == 0


def test_goes_on_after_a_reboot(fab: FabCommand, box: Box, elastic: dict[str, str]) -> None:
    stored = count(box, 0)
    box.restart(seconds=180)
    sent = attack(box, sources=5, count=20, rate=50)
    for _ in range(60):
        if box.run(["systemctl", "is-active", "elasticsearch"])[1].strip() == "active":
            break
        time.sleep(1)
    assert count(box, stored + sent.v4 + sent.v6) == stored + sent.v4 + sent.v6


def invocations(box: Box) -> str:
    """Another one after each start of one of the two."""
    return shell(
        box,
        "systemctl is-active elasticsearch logstash && systemctl show -P InvocationID elasticsearch logstash",
    )


def archives(box: Box) -> str:
    """What apt keeps of Elastic's."""
    return shell(box, "ls /var/cache/apt/archives | grep -E '^(elasticsearch|kibana|logstash)_' || true")


def test_a_version_that_is_not_there_is_refused_and_everything_runs_on(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    before = invocations(box)
    refused = fab(box, "install-elk", **{**elastic, "KNOCKMAP_ELASTIC_VERSION": "9.5.99"})
    if "KNOCKMAP_ELASTIC_PACKAGES" in elastic:  # then it is the folder here that does not have it
        assert refused.rc == 2 and "must hold one elasticsearch-9.5.99" in refused.out
    else:
        assert refused.rc == 1 and "no version 9.5.99 of elasticsearch" in refused.out, refused.out
        assert re.search(r"there (is|are) .*\d; nothing was stopped", refused.out), refused.out
    assert invocations(box) == before
    assert fab(box, "install-elk", **elastic).rc == 0
    assert invocations(box) == before


def test_a_mirror_that_is_away_stops_nothing(
    fab: FabCommand, box: Box, elastic: dict[str, str], elastic_next: dict[str, str]
) -> None:
    before, away = invocations(box), {"KNOCKMAP_ELASTIC_MIRROR": "http://127.0.0.1:9"}
    if "KNOCKMAP_ELASTIC_PACKAGES" not in elastic:
        refused = fab(box, "install-elk", **{**elastic_next, **away})
        assert refused.rc == 1 and "nothing was stopped" in refused.out, refused.out
        assert fab(box, "install-elk", **elastic).rc == 0
    assert invocations(box) == before


def test_a_higher_version_is_one_setting_and_a_lower_one_is_refused(
    fab: FabCommand, box: Box, elastic: dict[str, str], elastic_next: dict[str, str]
) -> None:
    stored, higher = count(box, 0), elastic_next["KNOCKMAP_ELASTIC_VERSION"]
    upgraded = fab(box, "install-elk", **elastic_next)
    assert upgraded.rc == 0, upgraded.out
    versions = shell(box, r"dpkg-query -W -f '${Version} ' elasticsearch logstash").split()
    assert versions == [higher, f"1:{higher}-1"]
    assert set(shell(box, "apt-mark showhold").split()) >= {"elasticsearch", "logstash"}
    assert call(box, "GET", "/")[1]["version"]["number"] == higher
    assert count(box, stored) == stored
    assert archives(box) == ""
    assert ", 0 changed, 0 failed" in fab(box, "install-elk", **elastic_next).last
    refused = fab(box, "install-elk", **elastic)
    assert refused.rc == 1 and f"set elastic_version = {higher}" in refused.out


def test_a_lost_authority_is_told_with_where_it_is_still(
    fab: FabCommand, box: Box, elastic_next: dict[str, str]
) -> None:
    authority, before = "/etc/elasticsearch/certs/http_ca.crt", invocations(box)
    rights = shell(box, f"stat -c '%U %G %a' {authority}")
    shell(box, f"rm {authority}")
    refused = fab(box, "install-elk", **elastic_next)
    assert refused.rc == 1 and f"{authority} is gone, and has a copy" in refused.out, refused.out
    shell(box, way_out(refused))
    assert shell(box, f"stat -c '%U %G %a' {authority}") == rights
    assert ", 0 changed, 0 failed" in fab(box, "install-elk", **elastic_next).last
    assert invocations(box) == before


def test_a_package_that_set_up_no_tls_is_told_and_the_way_out_leads_out(
    fab: FabCommand, box: Box, elastic_next: dict[str, str]
) -> None:
    """As it is where the package's auto-configuration failed: apt says that all went well."""
    shell(box, "systemctl stop logstash elasticsearch")
    shell(box, "rm -r /etc/elasticsearch/certs /etc/logstash/certs/http_ca.crt /var/lib/elasticsearch/*")
    refused = fab(box, "install-elk", **elastic_next)
    assert refused.rc == 1 and "http_ca.crt is not there" in refused.out, refused.out
    assert shell(box, "systemctl is-active elasticsearch || true").strip() == "inactive"
    shell(box, way_out(refused))
    mended = fab(box, "install-elk", **elastic_next)
    assert mended.rc == 0, mended.out
    assert ", 0 changed, 0 failed" in fab(box, "install-elk", **elastic_next).last
    sent = attack(box, sources=5, count=20, rate=50)
    assert count(box, sent.v4 + sent.v6) >= sent.v4 + sent.v6


def test_undo_leaves_neither_files_nor_packages_nor_data(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    undone = fab(box, "undo", "install-elk", "--packages", "--data", **elastic)
    assert undone.rc == 0, undone.out
    left = shell(
        box,
        "ls -d /etc/elasticsearch /var/lib/elasticsearch /usr/share/elasticsearch /etc/logstash 2>/dev/null || true",
    )
    assert left == ""
    assert (
        shell(
            box,
            "ls /etc/apt/sources.list.d /etc/apt/preferences.d /usr/share/keyrings | grep knockmap || true",
        )
        == ""
    )
    assert box.run(["dpkg-query", "-W", "elasticsearch"])[0] != 0
    assert not re.search(r":(9200|9300|9600)\b", shell(box, "ss -Hltn"))


@pytest.mark.usefixtures("elastic_box")  # not on a release that is too old for the doubles
def test_packages_brought_along_need_no_archive(
    fab: FabCommand, new_box: NewBox, elastic: dict[str, str], release: str, request: pytest.FixtureRequest
) -> None:
    """Also to a box that reaches no apt source at all."""
    if "KNOCKMAP_ELASTIC_PACKAGES" not in elastic and packages.real(request.config):
        pytest.skip("there are no .deb files here: --elastic-packages FOLDER")
    box = new_box(release)
    assert fab(box, "syslog-route", **elastic).rc == 0
    shell(box, "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*")
    offline = {name: value for name, value in elastic.items() if "MIRROR" not in name}
    if "KNOCKMAP_ELASTIC_PACKAGES" not in offline:
        built = repository.build(elastic["KNOCKMAP_ELASTIC_VERSION"])
        offline["KNOCKMAP_ELASTIC_PACKAGES"] = str(built.folder / "pool")
    done = fab(box, "install-elk", **offline)
    assert done.rc == 0, done.out
    assert shell(box, "ls /var/lib/knockmap/incoming") == ""
    assert call(box, "GET", "/_cluster/health", auth="reader")[1]["status"] == "green"
