"""A box with the Elastic stack is broken in one way after another: doctor names the cause first, and mended, all is well.

Most are mended by the very command that doctor says. Which packages are installed, Elastic's or the doubles', is
nothing that these tests know. A shared machine's disk cannot be filled, so the watermarks are moved instead.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from box import Box

from tests.container.conftest import Fab
from tests.container.test_doctor import diagnose, first_bad
from tests.container.test_iptables_log import sh

FabCommand = Callable[..., Fab]
CLIENT = "/usr/local/lib/knockmap/install_elk"
SECRETS = "/var/lib/knockmap/secrets"
STREAM = "logs-iptables.ssh-default"
PIPELINE = "/etc/logstash/conf.d/knockmap-1-pipeline.conf"
SITE = "/etc/apache2/sites-available/zz-knockmap.conf"
STORE = "/var/lib/logstash/dead_letter_queue/main"


class Breakage(NamedTuple):
    """A way to break a box, the link that is to be named for it, some of its words, and how to mend the box.

    A line of `mended` that begins with `fab` is typed by the operator; without a line, what doctor says next is.
    """

    name: str
    broken: str
    link: str
    words: str
    mended: str = ""


def python(source: str) -> str:
    """Shell for some Python on the box, which can ask Elasticsearch as its superuser."""
    head = f"import sys; sys.path.insert(0, '{CLIENT}'); from elasticsearch import call, secret; "
    return f"python3 -B -c {shlex.quote(head + source)}"


def es(method: str, path: str, body: Any = None) -> str:
    """Shell for one request to Elasticsearch that has to go well."""
    return python(
        f"status, answer = call({method!r}, {path!r}, {body!r}); assert status < 300, (status, answer)"
    )


def until(condition: str, seconds: int = 90) -> str:
    """Shell that waits for something."""
    return f"for i in $(seq {seconds}); do if {condition}; then break; fi; sleep 1; done"


def revoked(key: str) -> str:
    return python(f"call('DELETE', '/_security/api_key', {{'ids': [secret({key!r}).split(':')[0]]}})")


def watermarks(low: str, high: str, flood: str) -> str:
    """Shell that sets them, as used space; empty text is the default."""
    names = {"low": low, "high": high, "flood_stage": flood}
    settings: dict[str, str | None] = {
        f"cluster.routing.allocation.disk.watermark.{name}": value or None for name, value in names.items()
    }
    settings["cluster.info.update.interval"] = "10s" if low else None
    return es("PUT", "/_cluster/settings", {"persistent": settings})


BLOCKED = python(
    f"sys.exit('true' not in str(call('GET', '/{STREAM}/_settings/index.blocks.*?flat_settings=true')[1]))"
)
NOW = "$(date -u +%FT%T.%6N+00:00)"
KNOCK = f"""echo "{NOW} box kernel: knockmap IN=eth0 OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 \
SRC=81.2.69.142 DST=192.0.2.1 LEN=60 TOS=0x00 PREC=0x00 TTL=64 ID=$$ DF PROTO=TCP SPT=5 DPT=22 WINDOW=6 RES=0x00 \
SYN URGP=0 " >>/var/log/iptables.log"""
# A template of somebody else's that takes all fields from ours but one.
FOREIGN = {
    "index_patterns": ["logs-iptables.*"],
    "priority": 600,
    "data_stream": {},
    "composed_of": ["knockmap-mappings", "knockmap-settings"],
    "template": {"mappings": {"properties": {"message": {"type": "long"}}}},
}
OUTRANK = es("PUT", "/_index_template/foreign", FOREIGN)
TWIN = es("PUT", "/_index_template/foreign", {**FOREIGN, "priority": 400, "template": {}})
NO_FOREIGN = es("DELETE", "/_index_template/foreign")
ROLL = es("POST", f"/{STREAM}/_rollover")
GARBAGE = "for i in $(seq 40); do echo nonsense $i >>/var/log/iptables.log; done"
FAILED = python(f"sys.exit(call('GET', '/{STREAM}/_count?q=tags:_grokparsefailure')[1].get('count', 0) < 40)")
# The same authority signs a certificate that ended a year ago.
EXPIRE = r"""cd /root && cp -a /etc/elasticsearch/certs/http.p12 was.p12
/usr/share/elasticsearch/bin/elasticsearch-keystore show xpack.security.http.ssl.keystore.secure_password >word
openssl pkcs12 -in was.p12 -passin file:word -noenc 2>/dev/null >all.pem
awk '/friendlyName: http_ca$/ {ca = 1} /friendlyName: http$/ {ca = 0} /BEGIN PRIVATE/ {on = ca} on {print} /END PRIVATE/ {on = 0}' all.pem >ca.key
openssl req -quiet -newkey rsa:2048 -noenc -keyout leaf.key -subj /CN=localhost -out leaf.csr
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' >san
openssl x509 -req -in leaf.csr -CA /etc/elasticsearch/certs/http_ca.crt -CAkey ca.key -extfile san \
  -not_before 20230101000000Z -not_after 20251101000000Z -out leaf.pem 2>/dev/null
openssl pkcs12 -export -in leaf.pem -inkey leaf.key -certfile /etc/elasticsearch/certs/http_ca.crt -passout file:word -out new.p12
cat new.p12 >/etc/elasticsearch/certs/http.p12; rm word all.pem ca.key leaf.key new.p12; systemctl restart elasticsearch"""

BREAKAGES = [
    Breakage("elasticsearch-stopped", "systemctl stop elasticsearch", "Elasticsearch", "is stopped"),
    Breakage("elasticsearch-config-broken", "echo 'zen.nonsense: 1' >>/etc/elasticsearch/elasticsearch.yml; systemctl restart elasticsearch || true", "Elasticsearch", "elasticsearch.yml was edited since it was deployed"),
    Breakage("port-9200-open-to-all", "sed -i 's/^http.host: .*/http.host: 0.0.0.0/' /etc/elasticsearch/elasticsearch.yml; systemctl restart elasticsearch", "ports", "port 9200 of Elasticsearch is open on"),
    Breakage("http-certificate-expired", EXPIRE, "TLS", "HTTP certificate has expired on 2025-11-01", "cat /root/was.p12 >/etc/elasticsearch/certs/http.p12; systemctl restart elasticsearch"),
    Breakage("kibanas-copy-of-the-authority-replaced", "cp -a /etc/ssl/certs/ca-certificates.crt /etc/kibana/certs/http_ca.crt", "TLS", "/etc/kibana/certs/http_ca.crt is not the certificate authority"),
    Breakage("versions-differ", "cp -a /var/lib/dpkg/status /root/; sed -i '/^Package: kibana$/,/^$/s/^Version: .*/Version: 9.9.9/' /var/lib/dpkg/status", "versions", "kibana 9.9.9", "cp -a /root/status /var/lib/dpkg/status"),
    Breakage("writer-key-revoked", revoked("writer_key"), "keys", "refuses the writer_key"),
    Breakage("reader-key-revoked", revoked("reader_key"), "keys", "refuses the reader_key"),
    Breakage("kibana-token-deleted", es("DELETE", "/_security/service/elastic/kibana/credential/token/knockmap"), "keys", "refuses the kibana_token"),
    Breakage("read-only-by-the-flood-stage", f"{watermarks('1%', '2%', '3%')}; {until(BLOCKED)}", "watermarks", "read-only, as it makes it where the disk is too full", f"{watermarks('', '', '')}; {until('! ' + BLOCKED)}"),
    Breakage("disk-nearly-full", watermarks("1%", "2%", "99%"), "watermarks", "beyond the high watermark", watermarks("", "", "")),
    Breakage("template-gone", f"{TWIN}; {es('DELETE', '/_index_template/knockmap')}", "template", "the index template knockmap is gone", f"fab install-elk\n{NO_FOREIGN}"),
    Breakage("template-outranked", OUTRANK, "template", "the index template foreign outranks ours", NO_FOREIGN),
    Breakage("documents-rejected", f"{OUTRANK}; {ROLL}; {NO_FOREIGN}; {KNOCK}; {until(f'test -n $(find {STORE} -size +1k | head -n 1)', 30)}; sleep 5", "queue", "they are dead letters", f"{ROLL}; systemctl stop logstash; rm -r {STORE}; systemctl start logstash"),
    Breakage("lines-that-fit-no-pattern", f"{GARBAGE}; {until(FAILED)}", "events", "fit no pattern", es("DELETE", f"/_data_stream/{STREAM}")),
    Breakage("logstash-stopped", "systemctl stop logstash", "Logstash", "is stopped"),
    Breakage("pipeline-broken", f"echo 'filter {{ nonsense {{ }} }}' >>{PIPELINE}; systemctl restart logstash; {until('test $(systemctl show -P NRestarts logstash) -gt 0', 120)}", "Logstash", f"ends again and again; {PIPELINE} was edited"),
    Breakage("log-unreadable-for-logstash", "printf '[Service]\\nSupplementaryGroups=\\n' >/etc/systemd/system/logstash.service.d/zz.conf; systemctl daemon-reload; systemctl restart logstash", "Logstash", "may not read /var/log/iptables.log", "rm /etc/systemd/system/logstash.service.d/zz.conf; systemctl daemon-reload; systemctl restart logstash"),
    Breakage("kibana-stopped", "systemctl stop kibana", "Kibana", "is stopped"),
    Breakage("kibana-config-broken", f"echo 'xpack.nonsense: 1' >>/etc/kibana/kibana.yml; systemctl restart kibana; {until('systemctl is-failed -q kibana', 120)}", "Kibana", "kibana.yml was edited since it was deployed"),
    Breakage("visitors-password-changed", es("POST", "/_security/user/knockmap_viewer/_password", {"password": "another one"}), "visitors", "does not let knockmap_viewer in"),
    Breakage("dashboard-deleted", python("import http.client, elasticsearch; c = http.client.HTTPConnection('127.0.0.1', 5601); c.request('DELETE', '/kibana/api/saved_objects/dashboard/knockmap-dashboard', headers={'kbn-xsrf': 'true', 'Authorization': elasticsearch.authorization('elastic')}); assert c.getresponse().status == 200"), "objects", "Kibana has lost dashboard knockmap-dashboard"),
    Breakage("apache-without-login", f"sed -i 's/Require valid-user/Require all granted/' {SITE}; systemctl reload apache2", "Apache", "shows Kibana without a login"),
]  # fmt: skip


@pytest.fixture(scope="module")
def box(elastic_box: Box) -> Box:
    return elastic_box


@pytest.fixture(scope="module")
def deployed(fab: FabCommand, box: Box, elastic: dict[str, str]) -> Fab:
    done = fab(box, "deploy", **elastic)
    assert done.rc == 0, done.out
    return done


@pytest.fixture
def mend(fab: FabCommand, box: Box, elastic: dict[str, str]) -> Callable[[str], None]:
    """Lines of shell for the box, and of `fab` for the operator."""

    def run(lines: str) -> None:
        for line in lines.split("\n"):
            if line.startswith("fab "):
                done = fab(box, *line.split()[1:], **elastic)
                assert done.rc == 0, done.out
            else:
                sh(box, line)

    return run


def typed(next: str) -> str:
    """`fab -S … -H box install-elk` as a line for `mend`."""
    words = shlex.split(next)
    return f"fab {words[-1]}"


def wait_until_well(fab: FabCommand, box: Box, seconds: float = 180) -> dict[str, Any]:
    """Logstash and Kibana take their time after a start."""
    deadline = time.monotonic() + seconds
    while not (found := diagnose(fab, box))["ok"] or any(li["state"] == "warn" for li in found["links"]):
        assert time.monotonic() < deadline, [li for li in found["links"] if li["state"] != "ok"]
        time.sleep(2)
    return found


def test_deploy_says_at_its_end_what_doctor_sees(deployed: Fab) -> None:
    notes = [line for line in deployed.out.splitlines() if "doctor: " in line]
    assert len(notes) == 1 and "doctor: nothing is bad" in notes[0], deployed.out


def test_the_links_stand_in_the_order_of_the_chain(fab: FabCommand, box: Box, deployed: Fab) -> None:
    chain = (
        "clock disk sshd rule counter log syslog rotation versions ports TLS Elasticsearch keys watermarks health template "
        "pipeline Logstash queue events geo-data Kibana visitors objects Apache certificate login"
    )
    found = wait_until_well(fab, box)
    assert [link["name"].replace(" ", "-") for link in found["links"]] == chain.split()


def test_one_syn_is_followed_to_its_document_and_through_kibana(
    fab: FabCommand, box: Box, deployed: Fab
) -> None:
    packet = wait_until_well(fab, box)["proof"]["packets"][0]
    assert packet["state"] == "ok" and packet["cause"] == ""
    assert [hop["name"] for hop in packet["hops"]] == [
        *("counter", "log line", "document", "Kibana behind the login")
    ]
    address, port = packet["seen_as"].split(" port ")
    query = {
        "query": {"bool": {"filter": [{"term": {"source.ip": address}}, {"term": {"source.port": port}}]}}
    }
    found = sh(
        box, python(f"import json; print(json.dumps(call('POST', '/{STREAM}/_search', {query!r})[1]))")
    )
    hits = json.loads(found)["hits"]["hits"]
    assert len(hits) == 1 and hits[0]["_source"]["event"]["action"] == "ssh-scan"


def test_no_secret_is_in_what_is_printed(fab: FabCommand, box: Box, deployed: Fab) -> None:
    shown = fab(box, "doctor").out + fab(box, "doctor", "--json").out
    secrets = sh(box, f"for file in {SECRETS}/*; do cat $file; echo; done").split()
    assert len(secrets) >= 6 and not [secret for secret in secrets if secret in shown]


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_names_the_very_cause_first(
    fab: FabCommand, box: Box, deployed: Fab, mend: Callable[[str], None], breakage: Breakage
) -> None:
    sh(box, breakage.broken)
    found: dict[str, Any] = {}
    try:
        found = diagnose(fab, box)
    finally:
        root = next((link for link in found.get("links", []) if link["state"] == "bad"), {"next": "deploy"})
        mend(breakage.mended or typed(root["next"]))
    name, cause = first_bad(found)
    assert name == breakage.link and breakage.words in cause, found
    assert found["summary"].startswith(f"root cause: {name}: {cause}; next: ")
    wait_until_well(fab, box)


def test_warns_of_what_may_become_bad(fab: FabCommand, box: Box, deployed: Fab) -> None:
    """Each is told, and none is bad by itself."""
    sh(box, "apt-mark unhold logstash; systemctl disable -q elasticsearch kibana")
    sh(box, "echo '# nothing' >/etc/logstash/conf.d/other.conf")
    sh(box, es("PUT", f"/{STREAM}/_settings", {"index.number_of_replicas": 1}))
    try:
        found = diagnose(fab, box)
    finally:
        sh(box, es("PUT", f"/{STREAM}/_settings", {"index.number_of_replicas": 0}))
        sh(
            box,
            "rm /etc/logstash/conf.d/other.conf; apt-mark hold logstash; systemctl enable -q elasticsearch kibana",
        )
    assert found["ok"], first_bad(found)
    causes = {link["name"]: link["cause"] for link in found["links"] if link["state"] == "warn"}
    assert causes.keys() == {"versions", "Elasticsearch", "health", "pipeline", "Kibana"}
    assert "logstash: not held" in causes["versions"] and "already allocated" in causes["health"]
    wait_until_well(fab, box)


def test_nothing_is_written(fab: FabCommand, box: Box, deployed: Fab) -> None:
    sh(box, "sleep 1.1; touch /tmp/mark")
    assert fab(box, "doctor").rc == 0
    assert sh(box, "find /etc /usr /var/lib/knockmap -newer /tmp/mark -type f") == ""
