"""What the packages of the Elastic stack do, and what they refuse: the doubles have to be as strict as Elastic's own.

With --elastic-mirror the same is shown of Elastic's own, save where a test says why it is about the doubles alone.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from box import Box

from tests.container import elastic as packages
from tests.doubles import repository

ROOT = Path(__file__).parents[2]
YML, CA = "/etc/elasticsearch/elasticsearch.yml", "/etc/elasticsearch/certs/http_ca.crt"
KEYRING, SOURCE = "/usr/share/keyrings/elastic.asc", "/etc/apt/sources.list.d/elastic.sources"
RESET = (
    "/usr/share/elasticsearch/bin/elasticsearch-reset-password -u elastic -b -s --url https://127.0.0.1:9200"
)
SAFE = "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"


def did(box: Box, script: str) -> tuple[int, str]:
    return box.run(["bash", "-c", f"export DEBIAN_FRONTEND=noninteractive; {script}"])


def shell(box: Box, script: str) -> str:
    """What a script prints; it must go well."""
    status, out = did(box, script)
    assert status == 0, out[-2000:]
    return out


def add_source(box: Box, url: str, keyring: str = KEYRING) -> None:
    text = f"Types: deb\nURIs: {url}\nSuites: stable\nComponents: main\nSigned-By: {keyring}\n"
    shell(box, f"printf %s {shlex.quote(text)} >{SOURCE}")


def update(box: Box) -> tuple[int, str]:
    return did(
        box,
        f"apt-get update -o Dir::Etc::sourcelist={SOURCE} -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 -o APT::Update::Error-Mode=any",
    )


@pytest.fixture(scope="module")
def mirror(elastic: dict[str, str]) -> str:
    if "KNOCKMAP_ELASTIC_MIRROR" not in elastic:
        pytest.skip("a folder of packages is no apt repository")
    return elastic["KNOCKMAP_ELASTIC_MIRROR"]


@pytest.fixture(scope="module")
def sourced(elastic_box: Box, elastic: dict[str, str], mirror: str) -> Box:
    """The box with the repository and its key."""
    key = Path(
        elastic.get("KNOCKMAP_ELASTIC_KEY") or ROOT / "files/install_elk/elastic-signing-key.asc"
    ).read_text()
    shell(elastic_box, f"printf %s {shlex.quote(key)} >{KEYRING}")
    add_source(elastic_box, mirror)
    shell(elastic_box, "apt-get update")
    return elastic_box


@dataclass(frozen=True)
class Installed:
    box: Box
    said: str  # by apt


@pytest.fixture(scope="module")
def installed(sourced: Box, elastic: dict[str, str]) -> Installed:
    version = elastic["KNOCKMAP_ELASTIC_VERSION"]
    said = shell(sourced, f"apt-get install -y elasticsearch={version} curl 2>&1")
    # By itself it takes half of this machine's memory, at once, also to find that it is not to start.
    shell(sourced, "printf '%s\\n' -Xms512m -Xmx512m >/etc/elasticsearch/jvm.options.d/test.options")
    return Installed(sourced, said)


@dataclass(frozen=True)
class Node:
    """A node that is up, and its superuser's password."""

    box: Box
    password: str

    def ask(self, method: str, path: str, *options: str, user: str = "") -> tuple[int, str]:
        """Status and body (after the headers) of a request by curl."""
        who = user or f"elastic:{self.password}"
        login = ["-u", who] if who != "nobody" else []
        command = [
            "curl",
            "-s",
            "-i",
            "--cacert",
            CA,
            "-X",
            method,
            *login,
            *options,
            f"https://127.0.0.1:9200{path}",
        ]
        status, out = self.box.run(command)
        assert status == 0, out
        return int(out.split()[1]), out

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer of a request with a JSON body, or with none."""
        more = [] if body is None else ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        status, out = self.ask(method, path, *more)
        return status, json.loads(out.split("\r\n\r\n", 1)[1])

    def wait(self) -> None:
        """Until its users are there: a start ends a moment before, and 503 is the answer meanwhile."""
        for _ in range(60):
            if self.ask("GET", "/")[0] == 200:
                return
            time.sleep(1)
        raise AssertionError("the node does not know its users after 60 s")


@pytest.fixture(scope="module")
def node(installed: Installed) -> Iterator[Node]:
    box = installed.box
    shell(box, "systemctl daemon-reload; systemctl start elasticsearch")
    lines = shell(box, RESET).splitlines()
    assert len(lines) == 1
    yield Node(box, lines[0])


# The repository


def test_apt_refuses_a_repository_that_is_not_signed(
    request: pytest.FixtureRequest, sourced: Box, mirror: str, tmp_path: Path
) -> None:
    if packages.real(request.config):
        pytest.skip("the doubles alone can be served without their signature")
    shutil.copytree(repository.build(packages.VERSION).folder / "dists", tmp_path / "dists")
    for name in ("InRelease", "Release.gpg"):
        (tmp_path / "dists/stable" / name).unlink()
    try:
        with repository.serving(tmp_path) as url:
            add_source(sourced, url)
            status, out = update(sourced)
    finally:
        add_source(sourced, mirror)
    assert status == 100 and "is not signed" in out


def test_apt_refuses_a_repository_that_another_key_signed(sourced: Box, mirror: str) -> None:
    add_source(sourced, mirror, "/usr/share/keyrings/debian-archive-keyring.gpg")
    status, out = update(sourced)
    add_source(sourced, mirror)
    assert status == 100 and re.search("NO_PUBKEY|Missing key|is not signed", out), out


def test_apt_refuses_a_package_that_was_changed(
    request: pytest.FixtureRequest, sourced: Box, mirror: str, tmp_path: Path
) -> None:
    if packages.real(request.config):
        pytest.skip("the doubles alone can be changed")
    folder = repository.build(packages.VERSION).folder
    shutil.copytree(folder / "dists", tmp_path / "dists")
    (tmp_path / "pool").mkdir()
    for path in (folder / "pool").glob("logstash-*.deb"):
        content = path.read_bytes()
        (tmp_path / "pool" / path.name).write_bytes(content[:-8] + b"changed!")
    try:
        with repository.serving(tmp_path) as url:
            add_source(sourced, url)
            shell(sourced, "apt-get update")
            status, out = did(sourced, "cd /tmp && apt-get download logstash")
    finally:
        add_source(sourced, mirror)
        shell(sourced, "apt-get update")
    assert status == 100 and "Hash Sum mismatch" in out


def test_logstash_alone_has_an_epoch_and_a_revision(sourced: Box, elastic: dict[str, str]) -> None:
    version = elastic["KNOCKMAP_ELASTIC_VERSION"]
    status, out = did(sourced, f"apt-get install -s logstash={version}")
    assert status == 100 and f"Version '{version}' for 'logstash' was not found" in out
    shell(sourced, f"apt-get install -s logstash=1:{version}-1 elasticsearch={version} kibana={version}")
    assert did(sourced, f"apt-get install -s elasticsearch=1:{version}-1")[0] == 100


# What the package of Elasticsearch leaves


def test_elasticsearch_is_installed_configured_and_not_started(installed: Installed) -> None:
    said, box = installed.said, installed.box
    assert "Security autoconfiguration information" in said and "### NOT starting on installation" in said
    assert re.search(r"password for the elastic built-in superuser is : \S{20}\r?\n", said)
    assert did(box, "systemctl is-enabled elasticsearch")[1].strip() == "disabled"
    assert did(box, "systemctl is-active elasticsearch")[1].strip() == "inactive"
    assert shell(box, "id -nG elasticsearch; getent passwd elasticsearch").split()[0] == "elasticsearch"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/etc/elasticsearch", "2750 root:elasticsearch"),
        ("/etc/elasticsearch/jvm.options.d", "2750 root:elasticsearch"),
        (YML, "660 root:elasticsearch"),
        ("/etc/elasticsearch/elasticsearch.keystore", "660 root:elasticsearch"),
        ("/etc/elasticsearch/certs", "750 root:elasticsearch"),
        (CA, "660 root:elasticsearch"),
        ("/etc/elasticsearch/certs/http.p12", "660 root:elasticsearch"),
        ("/etc/elasticsearch/certs/transport.p12", "660 root:elasticsearch"),
        ("/var/lib/elasticsearch", "2750 elasticsearch:elasticsearch"),
        ("/var/log/elasticsearch", "2750 elasticsearch:elasticsearch"),
    ],
)
def test_elasticsearch_has_the_owners_and_modes_of_elastics_package(
    installed: Installed, path: str, wanted: str
) -> None:
    assert shell(installed.box, f"stat -c '%a %U:%G' {path}").strip() == wanted


def test_auto_configuration_opens_9200_to_all_and_names_an_initial_master(installed: Installed) -> None:
    text = shell(installed.box, f"cat {YML}")
    block = text.split("#----------------------- BEGIN SECURITY AUTO CONFIGURATION -----------------------")[
        1
    ]
    assert f'\ncluster.initial_master_nodes: ["{installed.box.name}"]\n' in block
    assert "\nhttp.host: 0.0.0.0\n" in block and "\n  keystore.path: certs/http.p12\n" in block
    assert "\npath.data: /var/lib/elasticsearch\npath.logs" in re.sub(r"\n(#.*)?(?=\n)", "", text)


def test_its_files_are_conffiles(installed: Installed) -> None:
    listed = shell(installed.box, "dpkg-query -f '${Conffiles}' -W elasticsearch")
    for path in (YML, "/etc/elasticsearch/jvm.options", "/etc/default/elasticsearch"):
        assert f" {path} " in listed


def test_a_password_is_not_reset_where_no_node_answers(installed: Installed) -> None:
    status, out = did(installed.box, RESET)
    assert status != 0 and "Failed to determine the health of the cluster" in out


# What Elasticsearch does not start with


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("http.host: 127.0.0.1", "Duplicate field 'http.host'"),
        ("discovery.zen.minimum_master_nodes: 1", "unknown setting [discovery.zen.minimum_master_nodes]"),
        (
            "discovery.type: single-node",
            "setting [cluster.initial_master_nodes] is not allowed when [discovery.type] is set",
        ),
        ("a:\\n\\tb: 1", "found character '\\t(TAB)' that cannot start any token"),
    ],
    ids=["a key twice", "an unknown setting", "a single node with initial masters", "a tab"],
)
def test_elasticsearch_does_not_start_with(installed: Installed, line: str, reason: str) -> None:
    box = installed.box
    shell(
        box,
        f"cp -a {YML} /root/kept.yml && printf '{line}\\n' >>{YML}; rm -f /var/log/elasticsearch/*.log; systemctl daemon-reload",
    )
    try:
        status, out = did(box, "systemctl start elasticsearch")
        why = shell(
            box,
            "journalctl -u elasticsearch -n 60 --no-pager; cat /var/log/elasticsearch/elasticsearch.log 2>&1; true",
        )
    finally:
        shell(box, f"cp -a /root/kept.yml {YML}; systemctl reset-failed elasticsearch")
    assert status != 0 and "Job for elasticsearch.service failed" in out
    assert reason in why, why[-3000:]


# What it answers


def test_a_start_ends_when_the_node_is_up_open_as_auto_configuration_left_it(node: Node) -> None:
    assert node.ask("GET", "/_cluster/health")[0] == 200
    listening = shell(node.box, "ss -ltnH")
    assert (
        "*:9200" in listening
        and "[::ffff:127.0.0.1]:9300" in listening
        and "*:9300" not in listening.replace("]:9300", "")
    )


def test_who_is_not_known_gets_401_and_how_to_log_in(node: Node) -> None:
    status, out = node.ask("GET", "/", user="nobody")
    assert status == 401 and "missing authentication credentials" in out
    assert 'www-authenticate: basic realm="security"' in out.lower()


def test_plain_http_is_not_spoken(node: Node) -> None:
    assert did(node.box, "curl -s -S http://127.0.0.1:9200/")[0] == 52


def test_who_answers_and_which_version_is_told(node: Node, elastic: dict[str, str]) -> None:
    status, out = node.ask("GET", "/")
    told = json.loads(out.split("\r\n\r\n", 1)[1])
    assert (
        status == 200
        and told["tagline"] == "You Know, for Search"
        and told["cluster_name"] == "elasticsearch"
    )
    assert (
        told["version"]["number"] == elastic["KNOCKMAP_ELASTIC_VERSION"]
        and told["version"]["build_type"] == "deb"
    )


@pytest.mark.parametrize(
    ("kind", "body", "status", "reason"),
    [
        ("text/plain", "x\n", 406, "Content-Type header [text/plain] is not supported"),
        ("application/x-ndjson", '{"create":{"_index":"a"}}\n{}', 400, "must be terminated by a newline"),
    ],
)
def test_a_bulk_is_refused(node: Node, kind: str, body: str, status: int, reason: str) -> None:
    found, out = node.ask("POST", "/_bulk", "-H", f"Content-Type: {kind}", "--data-binary", body)
    assert found == status and reason in out


def template(retention: str) -> dict[str, Any]:
    return {
        "index_patterns": ["logs-iptables.ssh-*"],
        "priority": 500,
        "data_stream": {},
        "template": {
            "settings": {"number_of_replicas": 0},
            "lifecycle": {"data_retention": retention},
            "mappings": {"properties": {"@timestamp": {"type": "date"}, "source.ip": {"type": "ip"}}},
        },
    }


def test_a_data_stream_takes_a_document_once_and_only_from_who_may(node: Node) -> None:
    assert node.send("PUT", "/_index_template/test", template("30d")) == (200, {"acknowledged": True})
    may = {"names": ["logs-iptables.*"], "privileges": ["create_doc", "auto_configure"]}
    _, key = node.send(
        "POST", "/_security/api_key", {"name": "w", "role_descriptors": {"w": {"indices": [may]}}}
    )
    header = f"Authorization: ApiKey {key['encoded']}"

    def create(index: str, ip: str) -> dict[str, Any]:
        lines = [
            {"create": {"_index": index, "_id": "1"}},
            {"@timestamp": "2026-11-24T10:00:00Z", "source": {"ip": ip}},
        ]
        body = "".join(json.dumps(line) + "\n" for line in lines)
        kind = "Content-Type: application/x-ndjson"
        _, out = node.ask("POST", "/_bulk", "-H", header, "-H", kind, "--data-binary", body, user="nobody")
        return dict(json.loads(out.split("\r\n\r\n", 1)[1])["items"][0]["create"])

    assert create("logs-iptables.ssh-default", "no address")["error"]["type"] == "document_parsing_exception"
    assert create("logs-iptables.ssh-default", "192.0.2.7")["status"] == 201
    assert (
        create("logs-iptables.ssh-default", "192.0.2.7")["error"]["type"]
        == "version_conflict_engine_exception"
    )
    assert create("logs-other-default", "192.0.2.7")["status"] == 403
    assert node.ask("GET", "/logs-iptables.ssh-default/_search", "-H", header, user="nobody")[0] == 403
    (stream,) = node.send("GET", "/_data_stream/logs-iptables.ssh-default")[1]["data_streams"]
    assert (
        stream["template"] == "test"
        and stream["lifecycle"]["data_retention"] == "30d"
        and stream["status"] == "GREEN"
    )


def test_a_template_does_not_change_the_retention_of_a_data_stream_that_is_there(node: Node) -> None:
    def kept() -> str:
        (stream,) = node.send("GET", "/_data_stream/logs-iptables.ssh-default")[1]["data_streams"]
        return str(stream["lifecycle"]["data_retention"])

    assert node.send("PUT", "/_index_template/test", template("60d"))[0] == 200 and kept() == "30d"
    path = "/_data_stream/logs-iptables.ssh-default/_lifecycle"
    assert node.send("PUT", path, {"data_retention": "60d"})[0] == 200 and kept() == "60d"
    assert node.send("PUT", path, {"data_retention": "long"})[0] == 400


def test_a_service_token_of_one_name_is_made_once(node: Node) -> None:
    path = "/_security/service/elastic/kibana/credential/token/test"
    assert [node.ask("POST", path)[0] for _ in range(2)] == [200, 409]
    assert node.ask("DELETE", path)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/_ilm/policy/x", {"policy": {"phases": {}}}),
        ("POST", "/_reindex", {"source": {"index": "a"}, "dest": {"index": "b"}}),
        ("PUT", "/_ingest/pipeline/x", {"processors": [{"set": {"field": "a", "value": 1}}]}),
        ("PUT", "/x", {"mappings": {"properties": {"m": {"type": "match_only_text"}}}}),
        ("PUT", "/x", {"mappings": {"runtime": {"m": {"type": "keyword", "script": "emit('x')"}}}}),
        ("POST", "/logs-iptables.ssh-default/_async_search", {}),
        ("POST", "/_query", {"query": "FROM logs-*"}),
    ],
)
def test_what_the_double_lacks_it_refuses(
    request: pytest.FixtureRequest, node: Node, method: str, path: str, body: Any
) -> None:
    if packages.real(request.config):
        pytest.skip("Elastic's own lacks none of it")
    assert node.send(method, path, body)[0] in (400, 405)


# What becomes of it


def test_an_upgrade_keeps_files_of_ours_and_does_not_restart(
    node: Node, elastic_next: dict[str, str], mirror: str
) -> None:
    version, box = elastic_next["KNOCKMAP_ELASTIC_VERSION"], node.box
    before = shell(box, f"systemctl show -P MainPID elasticsearch; sha256sum {YML}")
    add_source(box, elastic_next["KNOCKMAP_ELASTIC_MIRROR"])
    shell(box, f"apt-get update; apt-get install -y {SAFE} elasticsearch={version}")
    add_source(box, mirror)
    assert shell(box, f"systemctl show -P MainPID elasticsearch; sha256sum {YML}") == before
    shell(box, "systemctl daemon-reload; systemctl restart elasticsearch")
    node.wait()
    assert node.send("GET", "/")[1]["version"]["number"] == version
    assert '"count":1' in node.ask("GET", "/logs-iptables.ssh-default/_count")[1]


def test_after_a_purge_data_are_left_and_nothing_is_configured_anew(node: Node, mirror: str) -> None:
    out = shell(node.box, "apt-get update; apt-get purge -y elasticsearch; ls /var/lib/elasticsearch")
    assert "Deleting log directory... OK" in out and {"nodes", "indices"} & set(out.split())
    said = shell(node.box, "apt-get install -y elasticsearch 2>&1")
    assert "Skipping auto-configuration" in said or "Failed to auto-configure" in said
    assert "The generated password" not in said
