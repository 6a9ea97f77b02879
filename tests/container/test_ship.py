"""Many boxes can feed one cluster: a box with Logstash alone writes into an Elasticsearch that is another machine's.

Which repository the packages come from, Elastic's or the doubles', is nothing that these tests know.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from box import Box, images
from box.attack import attack

from tests.container.conftest import ROOT, Fab, boxes

FabCommand = Callable[..., Fab]
Settings = dict[str, str]
STREAM = "logs-iptables.ssh-default"
SOURCE = r"""
printf 'Types: deb\nURIs: %s\nSuites: stable\nComponents: main\nSigned-By: /root/key.asc\n' '{mirror}' >/etc/apt/sources.list.d/elastic.sources
"""
INSTALL = """
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -qq -y ca-certificates curl {package}
echo '-Xms512m\\n-Xmx512m' >/etc/elasticsearch/jvm.options.d/heap.options
systemctl start elasticsearch
"""


@dataclass(frozen=True)
class Cluster:
    """Somebody's Elasticsearch, as its package sets it up: open to all, behind TLS and a login."""

    box: Box
    address: str
    password: str

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer of the cluster, asked on its own machine."""
        data = ["-H", "Content-Type: application/json", "-d", json.dumps(body)] if body is not None else []
        curl = [
            "curl",
            "-sS",
            "--cacert",
            "/etc/elasticsearch/certs/http_ca.crt",
            "-u",
            f"elastic:{self.password}",
        ]
        status, out = self.box.run([*curl, "-X", method, *data, f"https://127.0.0.1:9200{path}"])
        assert status == 0, out
        return json.loads(out)


def brought(box: Box, folder: Path) -> str:
    """The path on the box of Elasticsearch's .deb, brought from a folder of ours."""
    (deb,) = folder.glob("elasticsearch*.deb")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(deb, "elasticsearch.deb")
    images.client().containers.get(box.container).put_archive("/root", packed.getvalue())
    return "/root/elasticsearch.deb"


@pytest.fixture(scope="module")
def cluster(elastic: Settings, elastic_box: Box) -> Cluster:
    """The module's box is the cluster's; the one that ships to it needs less."""
    key = elastic.get("KNOCKMAP_ELASTIC_KEY") or ROOT / "files/install_elk/elastic-signing-key.asc"
    written = (
        f"cat >/root/key.asc <<'end'\n{Path(key).read_text()}\nend\nchmod 644 /root/key.asc; chmod 711 /root"
    )
    if mirror := elastic.get("KNOCKMAP_ELASTIC_MIRROR"):
        written += SOURCE.format(mirror=mirror)
        package = f"elasticsearch={elastic['KNOCKMAP_ELASTIC_VERSION']}"
    else:
        package = brought(elastic_box, Path(elastic["KNOCKMAP_ELASTIC_PACKAGES"]))
    for part in (written, INSTALL.format(package=package)):
        status, out = elastic_box.run(["sh", "-ec", part])
        assert status == 0, out
    reset = "/usr/share/elasticsearch/bin/elasticsearch-reset-password -u elastic -b -s --url https://127.0.0.1:9200"
    password = elastic_box.run(["sh", "-c", f"{reset} 2>/dev/null"])[1].split()[-1]
    address = elastic_box.run(["hostname", "-I"])[1].split()[0]
    made = Cluster(elastic_box, address, password)
    for path, name in (
        ("component_template", "mappings"),
        ("component_template", "settings"),
        ("index_template", "template"),
    ):
        full = "knockmap" if name == "template" else f"knockmap-{name}"
        document = json.loads((ROOT / "files" / "install_elk" / f"{name}.json").read_text())
        assert made.ask("PUT", f"/_{path}/{full}", document) == {"acknowledged": True}
    return made


@pytest.fixture(scope="module")
def shipping(cluster: Cluster, elastic: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of an operator who has a key for that cluster, and its authority's certificate."""
    role = {"names": [STREAM], "privileges": ["auto_configure", "create_doc"]}
    cluster_rights = ["cluster:monitor/main", "cluster:monitor/xpack/license/get"]
    body = {"name": "box", "role_descriptors": {"writer": {"cluster": cluster_rights, "indices": [role]}}}
    made = cluster.ask("POST", "/_security/api_key", body)
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "key").write_text(f"{made['id']}:{made['api_key']}\n")
    (folder / "ca.pem").write_text(cluster.box.run(["cat", "/etc/elasticsearch/certs/http_ca.crt"])[1])
    return {
        **{name: value for name, value in elastic.items() if name != "KNOCKMAP_ELASTIC_HEAP"},
        "KNOCKMAP_ELASTIC_HOSTS": f"https://{cluster.address}:9200",
        "KNOCKMAP_ELASTIC_CA": str(folder / "ca.pem"),
        "KNOCKMAP_ELASTIC_API_KEY_FILE": str(folder / "key"),
    }


@pytest.fixture(scope="module")
def shipper(cluster: Cluster, worker_id: str) -> Iterator[Box]:
    with boxes(worker_id) as make:
        yield make("trixie")


def test_only_logstash_comes_and_nothing_the_second_time(
    fab: FabCommand, shipper: Box, shipping: Settings
) -> None:
    done = fab(shipper, "deploy", **shipping)
    assert done.rc == 0, done.out
    assert fab(shipper, "deploy", **shipping).last.endswith(" ok, 0 changed, 0 failed, 0 skipped")
    there = ("logstash", "elasticsearch", "kibana", "apache2")
    status = "${Package} ${db:Status-Status}\\n"
    shown = shipper.run(["sh", "-c", f"dpkg-query -W -f '{status}' {' '.join(there)} 2>/dev/null || true"])[1]
    assert [line.split()[0] for line in shown.splitlines() if line.endswith(" installed")] == ["logstash"]


def test_every_syn_is_an_event_of_the_cluster(shipper: Box, cluster: Cluster) -> None:
    sent = attack(shipper, sources=20, count=100, rate=100)
    wanted, deadline, found = sent.v4 + sent.v6 - sent.overruns, time.monotonic() + 90, 0
    while found < wanted and time.monotonic() < deadline:
        time.sleep(1)
        answer = cluster.ask("GET", f"/{STREAM}/_count?q=event.action:ssh-scan")
        found = answer.get("count", 0)
    assert found == wanted


def test_the_key_is_for_root_alone_and_nothing_of_it_is_said(
    fab: FabCommand, shipper: Box, shipping: Settings
) -> None:
    secret = Path(shipping["KNOCKMAP_ELASTIC_API_KEY_FILE"]).read_text().strip().split(":")[1]
    shown = fab(shipper, "deploy", "--diff", "--check", "--verbose", **shipping)
    assert shown.rc == 0 and secret not in shown.out
    found = shipper.run(["sh", "-c", f"grep -rlF {secret} /etc /var/lib /usr/local || true"])[1].split()
    assert [path.rpartition("/")[0] for path in found] == ["/etc/logstash"]
    assert set(shipper.run(["stat", "-c", "%a %U", *found])[1].splitlines()) == {"600 root"}


def test_a_key_that_the_cluster_refuses_is_named(
    fab: FabCommand, shipper: Box, shipping: Settings, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("unknown:unknown")
    done = fab(shipper, "install-elk", **{**shipping, "KNOCKMAP_ELASTIC_API_KEY_FILE": str(tmp_path / "key")})
    assert done.rc == 1 and "logstash" in done.out, done.out
    assert fab(shipper, "install-elk", **shipping).rc == 0
