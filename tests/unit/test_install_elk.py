# ruff: noqa: F811 - pytest takes fixtures by the names of arguments
"""What must hold before Elastic's stack comes, how it is installed and kept, and the documents behind its API."""

from __future__ import annotations

import http.server
import ipaddress
import json
import os
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import fabfile
from fabfile import collector, elastic_pipeline, elastic_source, install_elk, kibana
from fabfile.engine.agent import elastic, facts, item, packages, units
from fabfile.engine.agent.elastic import Heaps, heaps, needed
from fabfile.engine.resources import (
    Command,
    Directory,
    File,
    Package,
    Requirement,
    Resource,
    Rest,
    Service,
    blobs,
    manifest,
)
from fabfile.settings import SettingError, Settings, load
from tests.unit import mmdb
from tests.unit.test_agent import ME, Run, program_in, root, run, statuses, undo  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[2] / "files" / "install_elk"))

import data_stream
import security
import units as on_target

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FOLDER = ROOT / "files" / "install_elk"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "facts", {})
    item.observed.clear()


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def messages(events: list[dict[str, Any]]) -> str:
    return "\n".join(event.get("message", "") for event in events if event["status"] == "failed")


# --- memory -----------------------------------------------------------------------------------------------------


def test_the_readmes_table_is_what_the_function_says() -> None:
    rows = re.findall(r"^\| (\d+) GB.*\| (\d+) MB \| (\d+) MB \| (\d+) MB \| ([\d.]+) GiB \|$", README, re.M)
    assert len(rows) == 3
    for memory, *parts, need in rows:
        # A provider's GB are what is left of them: 3.7 GiB of 4.
        wanted = heaps(int(int(memory) * 1024 * 0.92))
        assert list(wanted) == list(map(int, parts))
        assert f"{needed(wanted, 'here') / 1024:.1f}" == need


@pytest.mark.parametrize("memory", [3780, 4096, 7400, 8192, 15_000, 32_000, 128_000])
def test_every_box_from_4_gb_on_has_more_than_it_needs(memory: int) -> None:
    assert needed(heaps(memory), "here") <= memory


def test_a_heap_of_the_operators_own_stands() -> None:
    assert heaps(4000, 600) == Heaps(600, 512, 704)


def meminfo(root: Path, mib: int) -> None:
    put(root / "proc/meminfo", f"MemTotal: {mib << 10} kB\n")


@pytest.mark.parametrize("mode", ["apply", "check"])
def test_too_little_memory_is_refused_with_numbers_and_a_way_out(run: Run, root: Path, mode: str) -> None:
    meminfo(root, 3277)
    events = run(
        Requirement("elastic_memory", given=("0", "0", "here")), File("/etc/a", text="a", **ME), mode=mode
    )
    assert sorted(statuses(events)) == ["failed", "skipped"]
    said = messages(events)
    assert "3.2 GiB of memory, needs 3.7: use `stack = embedded`, or set elastic_heap below its 1024" in said
    assert not (root / "etc/a").exists()


def test_a_smaller_heap_or_logstash_alone_fits_where_the_whole_does_not(root: Path) -> None:
    meminfo(root, 3277)
    assert elastic.fact_elastic_memory("512", "0", "here") == ""
    meminfo(root, 1900)
    assert elastic.fact_elastic_memory("0", "0", "elsewhere") == ""
    assert "elastic_heap" not in elastic.fact_elastic_memory("0", "0", "here")


def test_a_heap_of_kibanas_own_is_in_the_memory_that_is_needed(root: Path) -> None:
    assert heaps(4000, 600, 900) == Heaps(600, 512, 900)
    meminfo(root, 3800)
    assert elastic.fact_elastic_memory("0", "0", "here") == ""
    said = elastic.fact_elastic_memory("0", "4096", "here")
    assert said.startswith("3.7 GiB of memory, needs 7.0: ") and "set kibana_heap below its 4096" in said
    assert "elastic_heap" not in said
    assert elastic.fact_elastic_memory("0", "4096", "elsewhere") == ""
    (asked,) = (r for r in install_elk.resources(Settings(kibana_heap=4096)) if r.name == "elastic_memory")
    assert isinstance(asked, Requirement) and asked.given == ("0", "4096", "here")


def test_a_containers_limit_counts_and_not_its_hosts_memory(root: Path) -> None:
    meminfo(root, 64_000)
    put(root / "sys/fs/cgroup/memory.max", f"{2 << 30}\n")
    assert "2.0 GiB of memory" in elastic.fact_elastic_memory("0", "0", "here")


# --- the rest of what must hold ---------------------------------------------------------------------------------


def dpkg(root: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    (root / "dpkg").write_text("".join(f"{line}\n" for line in lines))
    program_in(root, monkeypatch, "dpkg-query", f"cat {root}/dpkg")
    item.observed.clear()


ALL_THREE = ("elasticsearch=9.5.2", "logstash=1:9.5.2-1", "kibana=9.5.2")


def disk(root: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    """One disk with so many MiB."""
    (root / "var/cache").mkdir(parents=True, exist_ok=True)
    told = SimpleNamespace(f_frsize=1 << 20, f_blocks=total, f_bavail=free)
    monkeypatch.setattr(os, "statvfs", lambda path: told)


def test_the_disk_that_the_readme_names_is_enough_and_what_it_says_of_the_need_is_so() -> None:
    (size,) = re.findall(r"^\| memory, disk \|.*GB, (\d+) GB \|$", README, re.M)
    (need,) = re.findall(r"([\d.]+) GiB of free disk and a tenth", README)
    whole, mib = int(size) * 10**9 >> 20, sum(elastic.disk_needed(list(elastic.SIZES)).values())
    assert f"{mib / 1024:.1f}" == need
    system, reserved = 2500, whole // 20  # an Ubuntu, and what ext4 keeps for root
    assert mib + elastic.left_free(whole) <= whole - system - reserved


def test_packages_come_one_after_the_other_but_for_an_upgrade_all_at_once() -> None:
    some = ["elasticsearch", "logstash"]
    assert elastic.disk_needed(some)["/var/cache"] == 680
    assert elastic.disk_needed([], some) == {"/var/cache": 1100, "/usr": 1300, "/var/lib": 0}
    assert elastic.disk_needed(["kibana"], some) == {"/var/cache": 1490, "/usr": 2480, "/var/lib": 0}
    assert elastic.disk_needed(["logstash"])["/var/lib"] == elastic.QUEUE_MIB


def test_a_large_disk_need_not_be_empty_by_a_tenth() -> None:
    assert [elastic.left_free(total >> 10 << 10) >> 10 for total in (20 << 10, 9 << 20)] == [2, 150]


def test_what_is_there_in_its_version_needs_no_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(root, monkeypatch, total=10_000, free=4200)
    dpkg(root, monkeypatch)
    said = elastic.fact_elastic_disk(*ALL_THREE)
    assert "4.1 GiB free on the disk of /var/cache, /usr, /var/lib, needs 5.8, 1.0 of them since" in said
    assert "df -h" in said
    dpkg(root, monkeypatch, "elasticsearch hi 9.5.2", "logstash hi 1:9.5.2-1")
    assert elastic.fact_elastic_disk(*ALL_THREE) == ""
    disk(root, monkeypatch, total=10_000, free=1500)
    assert "1.5 GiB free on the disk of /var/cache, /usr, /var/lib, needs 1.5: " in elastic.fact_elastic_disk(
        *ALL_THREE
    )
    dpkg(root, monkeypatch, "elasticsearch hi 9.5.1", "logstash hi 1:9.5.1-1", "kibana hi 9.5.1")
    assert "needs 2.7: " in elastic.fact_elastic_disk(*ALL_THREE)
    disk(root, monkeypatch, total=10_000, free=10)
    dpkg(root, monkeypatch, "elasticsearch hi 9.5.2", "logstash hi 1:9.5.2-1", "kibana hi 9.5.2")
    assert elastic.fact_elastic_disk(*ALL_THREE) == ""


def test_kibana_is_asked_about_where_it_is_to_come() -> None:
    asked = {
        r.name: r.given
        for r in (*install_elk.resources(Settings()), *kibana.resources(Settings()))
        if isinstance(r, Requirement) and r.name.endswith("_disk")
    }
    assert asked == {"elastic_disk": ALL_THREE[:2], "kibana_disk": ALL_THREE}
    assert set(asked) <= elastic.FACTS.keys()


def test_a_foreign_listener_is_named_and_our_own_units_are_none(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program_in(
        root, monkeypatch, "ss", "echo 'LISTEN 0 5 127.0.0.1:9200 0.0.0.0:* users:((\"java\",pid=7,fd=3))'"
    )
    put(root / "proc/7/cgroup", "0::/system.slice/tomcat.service\n")
    said = elastic.fact_elastic_ports("9200", "9600")
    assert "port 9200 is taken by java (process 7), and Elasticsearch needs it" in said
    assert elastic.fact_elastic_ports("9600") == ""
    put(root / "proc/7/cgroup", "0::/system.slice/elasticsearch.service\n")
    assert elastic.fact_elastic_ports("9200", "9600") == ""


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("elasticsearch ii 9.4.1", ""),
        ("elasticsearch hi 9.5.2", ""),
        ("elasticsearch ii 8.19.0", "another major"),
        ("elasticsearch ii 9.6.0", "cannot go back, so set elastic_version = 9.6.0"),
        ("logstash hi 1:9.5.3-1", "set elastic_version = 9.5.3"),
        ("logstash hi 1:9.5.2-1", ""),
        ("kibana ii 10.0.1", "another major"),
    ],
)
def test_what_we_installed_goes_up_and_never_down(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: str,
    said: str,
) -> None:
    dpkg(root, monkeypatch, there)
    names = ["elasticsearch=9.0.0", "kibana=9.0.0", "logstash=1:9.0.0-1"]
    put(
        root / "var/lib/knockmap/journal/journal.json",
        json.dumps({"package:x": {"want": {"names": names}}}),
    )
    found = elastic.fact_elastic_versions("9.5.2", "elasticsearch", "kibana", "logstash")
    assert (said in found) if said else found == ""


def test_an_elasticsearch_of_somebody_else_is_left_alone(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dpkg(root, monkeypatch, "elasticsearch ii 9.5.2")
    assert "not by knockmap: ship to it (elastic_hosts)" in elastic.fact_elastic_versions(
        "9.5.2", "elasticsearch"
    )


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("var/lib/elasticsearch/node.lock", "move that away: `mv /var/lib/elasticsearch /var/lib/elast"),
        # What a purge leaves there.
        (
            "etc/elasticsearch/elasticsearch.keystore",
            "`dpkg --purge elasticsearch; rm -r /etc/elasticsearch`",
        ),
    ],
)
def test_what_a_server_left_that_is_not_there_is_refused_with_the_way_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, left: str, said: str
) -> None:
    dpkg(root, monkeypatch)
    put(root / left, "")
    found = elastic.fact_elastic_versions("9.5.2", "elasticsearch")
    assert found.startswith(f"/{Path(left).parent} holds what is left") and said in found
    (root / left).unlink()
    assert elastic.fact_elastic_versions("9.5.2", "elasticsearch") == ""


def test_an_installation_that_broke_off_is_gone_on_with(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dpkg(root, monkeypatch, "elasticsearch iF 9.5.2")
    put(root / "etc/elasticsearch/elasticsearch.yml.dpkg-new", "")
    entry = {"want": {"names": ["elasticsearch=9.5.2"]}, "unfinished": True}
    put(root / "var/lib/knockmap/journal/journal.json", json.dumps({"package:elasticsearch": entry}))
    assert elastic.fact_elastic_versions("9.5.2", "elasticsearch") == ""


def test_kibana_does_not_move_without_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = kibana.alone(Settings())
    assert isinstance(alone, Requirement) and alone not in fabfile.plan(Settings())["kibana"]
    dpkg(root, monkeypatch, "elasticsearch hi 9.5.1", "kibana hi 9.5.1")
    said = elastic.FACTS[alone.name](*alone.given)
    assert "elasticsearch 9.5.1 is installed and elastic_version = 9.5.2" in said and "deploy" in said
    dpkg(root, monkeypatch, "elasticsearch hi 9.5.2", "kibana hi 9.5.1")
    assert elastic.FACTS[alone.name](*alone.given) == ""


def test_an_upgrade_without_kibanas_task_brings_its_version_and_its_start() -> None:
    chosen = Settings()
    kinds = [r.id for r in kibana.upgraded(chosen)]
    assert kinds == ["requirement:kibana_disk", "package:kibana", "service:kibana.service"]
    assert "kibana.service" in elastic_source.STOPS["elasticsearch"]


def test_a_second_entry_for_the_archive_is_named(root: Path) -> None:
    url, folder = "https://artifacts.elastic.co/packages/9.x/apt", root / "etc/apt/sources.list.d"
    put(folder / "knockmap-elastic.sources", f"URIs: {url}\n")
    put(folder / "elastic-9.x.list", f"# deb {url} stable main\n")
    put(folder / "elastic-9.x.list.save", f"deb {url} stable main\n")  # apt reads no such names
    put(
        folder / "off.sources",
        f"Types: deb\nURIs: {url}\nEnabled: no\n\nTypes: deb\nURIs: https://a.example\n",
    )
    assert elastic.fact_elastic_sources(elastic_source.SOURCE, url) == ""
    put(folder / "elastic-9.x.list", f"deb {url} stable main\n")
    assert "/etc/apt/sources.list.d/elastic-9.x.list names" in elastic.fact_elastic_sources(
        elastic_source.SOURCE, url
    )


def test_only_settings_of_modules_that_are_there_are_set(root: Path) -> None:
    assert "xpack.ml.enabled: false" in elastic.fact_elasticsearch_modules()  # before the package is there
    (root / "usr/share/elasticsearch/modules/ingest-geoip").mkdir(parents=True)
    assert elastic.fact_elasticsearch_modules() == "ingest.geoip.downloader.enabled: false"


def test_files_are_not_mapped_where_the_host_allows_too_few_maps_and_that_is_said(
    run: Run, root: Path
) -> None:
    put(root / "proc/sys/vm/max_map_count", "65530\n")
    put(root / "etc/elasticsearch/elasticsearch.yml", "")
    plan = File("/etc/elasticsearch/elasticsearch.yml", text="@@fact.elasticsearch_mmap@@\n", **ME)
    events = run(plan)
    assert [e["event"] for e in events] == ["notice", "result"] and "65530" in events[0]["text"]
    assert "allow_mmap: false" in (root / "etc/elasticsearch/elasticsearch.yml").read_text()
    assert [e["event"] for e in run(plan)] == ["result"]  # once
    put(root / "proc/sys/vm/max_map_count", "1048576\n")
    assert "allow_mmap" not in elastic.fact_elasticsearch_mmap()


# --- where the packages come from -------------------------------------------------------------------------------


def test_the_key_that_we_ship_is_elastics_and_apt_of_debian_13_takes_it() -> None:
    text = elastic_source.key(Settings())
    assert elastic_source.fingerprints(text) == ["46095ACC8548582C1A2699A9D27D666CD88E42B4"]
    body = text.split("\n\n", 1)[1].split("\n=", 1)[0]
    signatures = [
        packet for tag, packet in elastic_source.packets(__import__("base64").b64decode(body)) if tag == 2
    ]
    assert signatures and all(packet[3] == 8 for packet in signatures)  # SHA-256, never SHA-1


def test_a_key_with_another_fingerprint_or_a_second_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"46095ACC.*elastic_fingerprint = 0{40}"):
        elastic_source.key(Settings(elastic_fingerprint="0" * 40))
    no_key = tmp_path / "no.asc"
    no_key.write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\nno key\n")
    with pytest.raises(SettingError, match="no armoured"):
        elastic_source.key(Settings(elastic_key=str(no_key)))


def test_logstash_alone_has_an_epoch() -> None:
    names = [elastic_source.versioned(Settings(), name) for name in ("elasticsearch", "kibana", "logstash")]
    assert names == ["elasticsearch=9.5.2", "kibana=9.5.2", "logstash=1:9.5.2-1"]


def test_packages_come_from_a_folder_only_if_all_are_in_it(tmp_path: Path) -> None:
    chosen = Settings(elastic_packages=str(tmp_path))
    with pytest.raises(SettingError, match=r"must hold one elasticsearch-9\.5\.2"):
        elastic_source.package(chosen, "elasticsearch")
    (tmp_path / "elasticsearch-9.5.2-amd64.deb").write_bytes(b"deb")
    package = elastic_source.package(chosen, "elasticsearch")
    assert len(blobs({"t": [package]})) == 1
    assert manifest({"t": [package]})[0]["debs"][0]["name"] == "elasticsearch-9.5.2-amd64.deb"
    assert elastic_source.resources(chosen) == []


APT = """
echo "apt-get $*" >>{root}/did
case "$*" in
*=9.5.9*) echo "E: Version '9.5.9' for 'elasticsearch' was not found"; exit 100 ;;
*--download-only*|"-q "*" update") exit 0 ;;
esac
echo "The generated password for the elastic built-in superuser is : LEAKED"
echo "Unpacking elasticsearch"
cp {root}/after {root}/dpkg
"""
HELD = "echo \"apt-mark $*\" >>{root}/did; sed -i 's/ ii / hi /' {root}/dpkg"


def elastic_apt(root: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    dpkg(root, monkeypatch, *([before] if before else []))
    (root / "after").write_text(after + "\n")
    (root / "var/lib/apt/lists").mkdir(parents=True, exist_ok=True)
    (root / "var/lib/apt/lists/x_Release").touch()
    program_in(root, monkeypatch, "apt-get", APT.format(root=root))
    program_in(
        root, monkeypatch, "apt-cache", "printf ' elasticsearch | %s | http://x Packages\\n' 9.5.2 9.4.0"
    )
    program_in(root, monkeypatch, "apt-mark", HELD.format(root=root))
    program_in(root, monkeypatch, "systemctl", f'echo "systemctl $*" >>{root}/did')


PACKAGE = Package("elasticsearch=9.5.2", hold=True, stops=("logstash.service", "elasticsearch.service"))


def test_an_exact_version_is_installed_and_held(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elastic_apt(root, monkeypatch, "", "elasticsearch ii 9.5.2")
    events = run(PACKAGE)
    assert events[-1]["message"] == "install elasticsearch=9.5.2, hold"
    did = (root / "did").read_text()
    assert (
        "--no-install-recommends --allow-change-held-packages --no-remove install elasticsearch=9.5.2" in did
    )
    assert "apt-mark hold elasticsearch" in did and "systemctl stop" not in did
    assert "--force-confdef" in did and "--force-confold" in did
    assert statuses(run(PACKAGE)) == ["ok"]


def test_the_password_that_the_package_prints_is_shown_nowhere(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elastic_apt(root, monkeypatch, "", "elasticsearch ii 9.5.2")
    events = run(PACKAGE)
    assert "LEAKED" not in json.dumps(events) and "Unpacking" in json.dumps(events)


def test_an_upgrade_stops_in_order_what_runs_and_keeps_the_hold(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elastic_apt(root, monkeypatch, "elasticsearch hi 9.4.0", "elasticsearch ii 9.5.2")
    assert statuses(run(PACKAGE)) == ["changed"]
    did = [line.partition("--no-remove ")[2] or line for line in (root / "did").read_text().splitlines()]
    assert did == [
        "install --download-only elasticsearch=9.5.2",
        "systemctl stop logstash.service",
        "systemctl stop elasticsearch.service",
        "install elasticsearch=9.5.2",
        "apt-mark hold elasticsearch",
    ]


def test_everything_is_here_before_anything_is_stopped(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what comes after the first package, and nothing that is there already."""
    elastic_apt(root, monkeypatch, "elasticsearch hi 9.4.0", "elasticsearch ii 9.5.2\nkibana ii 9.5.2")
    put(root / "dpkg", "elasticsearch hi 9.4.0\nkibana hi 9.4.0\nlogstash hi 1:9.5.2-1\n")
    others = [Package("kibana=9.5.2", hold=True), Package("logstash=1:9.5.2-1")]
    run(PACKAGE, *others)
    first = (root / "did").read_text().splitlines()[0]
    assert first.endswith(" install --download-only elasticsearch=9.5.2 kibana=9.5.2")


def test_a_version_that_is_not_there_stops_nothing_and_those_that_are_there_are_said(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elastic_apt(root, monkeypatch, "elasticsearch hi 9.4.0", "")
    events = run(Package("elasticsearch=9.5.9", stops=("elasticsearch.service",)))
    said = messages([event for event in events if event["event"] == "result"])
    assert "no version 9.5.9 of elasticsearch" in said
    assert said.endswith("; there are 9.5.2, 9.4.0; nothing was stopped")
    assert "systemctl" not in (root / "did").read_text()
    assert not (root / "var/lib/knockmap/journal").exists()


def test_apt_keeps_no_archive_of_what_was_installed_in_an_exact_version(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elastic_apt(root, monkeypatch, "", "elasticsearch ii 9.5.2")
    folder = root / "var/cache/apt/archives"
    for name in ("elasticsearch_9.4.0", "elasticsearch_9.5.2", "elasticsearch-oss_7.1", "cron_3.0"):
        put(folder / f"{name}_amd64.deb", "")
    assert statuses(run(PACKAGE)) == ["changed"]
    assert {path.name.partition("_")[0] for path in folder.iterdir()} == {"elasticsearch-oss", "cron"}


def test_a_released_hold_is_repaired_without_apt_get(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elastic_apt(root, monkeypatch, "elasticsearch ii 9.5.2", "")
    (event,) = run(PACKAGE)
    assert event["message"] == "hold"
    assert (root / "did").read_text().splitlines() == ["apt-mark hold elasticsearch"]


def test_packages_brought_along_are_asked_for_by_hash_installed_and_not_left_behind(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import zlib

    elastic_apt(root, monkeypatch, "", "elasticsearch ii 9.5.2")
    deb = tmp_path / "elasticsearch-9.5.2-amd64.deb"
    deb.write_bytes(b"the package")
    sent = zlib.compress(b"the package")
    package = Package("elasticsearch=9.5.2", hold=True, debs=(deb,))
    events = run(package, answer=b"%d\n" % len(sent) + sent + b"0\n")
    assert events[0]["event"] == "need" and statuses(events) == ["changed"]
    installed = re.search(r"--no-remove install (\S+)$", (root / "did").read_text(), re.M)
    assert installed and installed[1].endswith(".elasticsearch-9.5.2-amd64.deb")
    assert list((root / "var/lib/knockmap/incoming").iterdir()) == []
    assert statuses(run(package)) == ["ok"]  # and nothing is asked for


def test_packages_brought_along_are_here_before_anything_is_stopped(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import zlib

    elastic_apt(root, monkeypatch, "elasticsearch hi 9.4.0", "elasticsearch ii 9.5.2")
    deb = tmp_path / "elasticsearch-9.5.2-amd64.deb"
    deb.write_bytes(b"the newer package")
    sent = zlib.compress(b"the newer package")
    package = Package("elasticsearch=9.5.2", debs=(deb,), stops=("elasticsearch.service",))
    events = run(package, answer=b"%d\n" % len(sent) + sent + b"0\n")
    assert [e["event"] for e in events if e["event"] != "progress"] == ["need", "result"]
    did = [line.split("-amd64")[0].rpartition(" ")[0] for line in (root / "did").read_text().splitlines()]
    assert [words.rpartition("--no-remove ")[2] for words in did] == [
        *("install --download-only", "systemctl stop", "install")
    ]
    assert list((root / "var/lib/knockmap/incoming").iterdir()) == []


def test_a_damaged_package_is_thrown_away(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import zlib

    elastic_apt(root, monkeypatch, "", "elasticsearch ii 9.5.2")
    deb = tmp_path / "elasticsearch-9.5.2-amd64.deb"
    deb.write_bytes(b"the package")
    sent = zlib.compress(b"something else")
    events = run(Package("elasticsearch=9.5.2", debs=(deb,)), answer=b"%d\n" % len(sent) + sent + b"0\n")
    assert statuses(events) == ["failed"] and "arrived damaged" in messages(events[1:])
    assert not (root / "did").exists()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("E: Version '9.5.9' for 'kibana' was not found\n", "no version 9.5.9 of kibana"),
        ("W: GPG error: x stable InRelease: NO_PUBKEY D27D666CD88E42B4\n", "not signed by the key"),
        ("E: The repository 'x stable Release' is not signed.\n", "not signed by the key"),
        ("E: Failed to fetch x  403  Forbidden [IP: 1.2.3.4 443]\n", "refuses this target"),
    ],
)
def test_apt_says_what_is_wrong_with_an_own_source(output: str, said: str) -> None:
    assert said in packages.apt_cause(output)


# --- units that take long ---------------------------------------------------------------------------------------

STARTING = """
case "$1 $2" in
"show -P") case "$3" in SubState) echo running ;; NRestarts) cat {root}/restarts ;; *) echo active ;; esac ;;
"show -p") s=$(cat {root}/state); printf 'Id=x\\nLoadState=loaded\\nActiveState=%s\\nUnitFileState=enabled\\nNeedDaemonReload=no\\n' $s ;;
start*) echo active >{root}/state ;;
esac
"""
UNIT = Service("logstash.service", ready=("ready",), why=("why",))


def starting(root: Path, monkeypatch: pytest.MonkeyPatch, ready: str) -> None:
    (root / "state").write_text("inactive")
    (root / "restarts").write_text("0")
    for name, script in (
        ("systemctl", STARTING.format(root=root)),
        ("ready", ready.format(root=root)),
        ("why", "echo memory: 12 MiB available"),
        ("journalctl", "echo FATAL no such pattern"),
    ):
        program_in(root, monkeypatch, name, script)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_a_unit_is_waited_for_until_it_does_its_work_and_says_how_far_it_is(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = "echo x >>{root}/asked; [ $(wc -l <{root}/asked) -ge 3 ] || {{ echo no pipeline yet; exit 1; }}"
    starting(root, monkeypatch, ready)
    events = run(UNIT)
    assert statuses(events) == ["changed"]
    progress = [event["text"] for event in events if event["event"] == "progress"]
    assert progress == ["logstash.service, 0 s: no pipeline yet"] * 2


@pytest.mark.parametrize("broken", ["restarts", "time"])
def test_a_unit_that_does_not_come_fails_with_its_last_words_and_the_usual_causes(
    run: Run,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    starting(root, monkeypatch, "echo 2 >{root}/restarts; echo no answer on port 9600; exit 1")
    if broken == "time":
        starting(root, monkeypatch, "echo no answer on port 9600; exit 1")
        monkeypatch.setattr(units, "READY_SECONDS", -1)
    event = run(UNIT)[-1]
    assert event["status"] == "failed"
    assert ("again and again" if broken == "restarts" else "does not work after") in event["message"]
    assert "no answer on port 9600" in event["message"]
    assert "FATAL no such pattern" in event["output"] and "12 MiB available" in event["output"]


# --- documents behind an API ------------------------------------------------------------------------------------


class Api(http.server.BaseHTTPRequestHandler):
    """A double of the one part of Elasticsearch that Rest talks to: documents at paths, behind a login."""

    documents: ClassVar[dict[str, Any]] = {}
    kept = False

    def answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Basic ZWxhc3RpYzpzM2NyZXQ=":
            self.answer(401, {"error": "no"})
        elif self.path in self.documents:
            self.answer(200, {"templates": [{"template": self.documents[self.path]}]})
        else:
            self.answer(404, {"error": "not found"})

    def do_PUT(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "wrong" in document:
            self.answer(400, {"error": {"reason": "unknown key [wrong]"}})
            return
        self.documents[self.path] = {**document, "created_date_millis": 1}
        self.answer(200, {"acknowledged": True})

    def do_DELETE(self) -> None:
        if self.kept:
            self.answer(400, {"error": "in use by a data stream"})
            return
        del self.documents[self.path]
        self.answer(200, {"acknowledged": True})

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def api(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of the API; its authority and the password are on the target."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    put(root / "etc/ca.crt", pem.decode())
    put(root / "server.pem", (pem + private).decode())
    put(root / "var/lib/knockmap/secrets/elastic_password", "s3cret")
    monkeypatch.setattr(Api, "documents", {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(root / "server.pem")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def rest(port: int, **document: Any) -> Rest:
    answer = ("templates", 0, "template")
    return Rest(
        "/_template/a", json.dumps(document), answer, port, "/etc/ca.crt", "elastic", "elastic_password"
    )


def test_a_document_is_set_compared_repaired_and_put_back(run: Run, api: int) -> None:
    document = rest(api, priority=500, template={"x": 1})
    assert statuses(run(document, mode="check")) == ["changed"] and not Api.documents
    assert [e["message"] for e in run(document)] == ["content"]
    assert statuses(run(document)) == ["ok"]
    Api.documents["/_template/a"]["template"] = {"x": 2}
    (event,) = run(document)
    assert event["status"] == "changed" and '-  "x": 2' in event["diff"] and '+  "x": 1' in event["diff"]
    assert statuses(undo(run)) == ["changed"] and not Api.documents


def test_a_document_of_somebody_else_comes_back(run: Run, api: int) -> None:
    Api.documents["/_template/a"] = {"priority": 1}
    run(rest(api, priority=500))
    assert statuses(undo(run)) == ["changed"]
    assert Api.documents["/_template/a"]["priority"] == 1


def test_a_refused_document_says_why(run: Run, api: int) -> None:
    (event,) = run(rest(api, wrong=1))
    assert event["status"] == "failed" and "unknown key [wrong]" in event["output"]


def test_a_document_in_use_stays_and_that_is_said(
    run: Run,
    api: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(rest(api, priority=500))
    monkeypatch.setattr(Api, "kept", True)
    (event,) = undo(run)
    assert event["status"] == "ok" and "in use by a data stream" in event["message"]


def test_without_its_server_a_document_is_to_come_and_cannot_be_set(run: Run, root: Path) -> None:
    put(root / "etc/ca.crt", "")
    assert statuses(run(rest(1, priority=500), mode="check")) == ["changed"]
    assert "does not answer" in messages(run(rest(1, priority=500)))


# --- the task ---------------------------------------------------------------------------------------------------


def texts(resources: list[Resource]) -> dict[str, str]:
    return {r.path: r.text or "" for r in resources if isinstance(r, File)}


def test_every_field_has_a_type_that_any_elasticsearch_knows() -> None:
    types = set(re.findall(r'"type": "(\w+)"', (FOLDER / "mappings.json").read_text()))
    assert types == {"text", "keyword", "ip", "geo_point", "long", "date"}


def test_elasticsearch_listens_on_loopback_alone_and_keeps_what_the_package_set_up() -> None:
    yml = texts(install_elk.resources(Settings()))["/etc/elasticsearch/elasticsearch.yml"]
    assert "http.host: 127.0.0.1" in yml and "transport.host: 127.0.0.1" in yml and "0.0.0.0" not in yml
    assert "initial_master_nodes" not in yml and "discovery.type: single-node" in yml
    keys = re.findall(r"^([\w.]+):", yml, re.M)
    assert len(keys) == len(set(keys))
    for kept in ("keystore.path: certs/http.p12", "truststore.path: certs/transport.p12"):
        assert kept in yml


def test_no_start_is_tried_where_the_package_set_up_no_tls() -> None:
    ids = [r.id for r in install_elk.resources(Settings())]
    order = (
        "package:elasticsearch",
        "command:TLS and passwords of Elasticsearch",
        "file:/etc/elasticsearch/elasticsearch.yml",
        "service:elasticsearch.service",
    )
    assert [ids.index(one) for one in order] == sorted(ids.index(one) for one in order)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["etc/elasticsearch/certs/http_ca.crt"], ""),
        ([], "`dpkg --purge elasticsearch; rm -r /etc/elasticsearch`"),
        (["etc/logstash/certs/http_ca.crt"], "`dpkg --purge elasticsearch; rm"),  # of another cluster
        (["var/lib/elasticsearch/nodes"], "elasticsearch; mv {data} {data}.former; rm -r /etc"),
        (
            ["etc/elasticsearch/certs/http.p12", "etc/kibana/certs/http_ca.crt"],
            "{ca} is gone, and has a copy: `install -g elasticsearch -m 660 ",
        ),
    ],
)
def test_a_package_that_set_up_no_tls_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], said: str
) -> None:
    ca, data = f"{tmp_path}/etc/elasticsearch/certs/http_ca.crt", f"{tmp_path}/var/lib/elasticsearch"
    monkeypatch.setattr(on_target, "CA", ca)
    monkeypatch.setattr(on_target, "DATA", data)
    monkeypatch.setattr(on_target, "COPIES", [f"{tmp_path}{path}" for path in on_target.COPIES])
    for path in there:
        put(tmp_path / path, "x")
    told = on_target.unsecured()
    assert said.format(ca=ca, data=data) in told if said else told == ""
    assert not said or ca in told


def test_templates_and_accounts_come_before_logstash() -> None:
    ids = [r.id for r in install_elk.resources(Settings())]
    order = (
        "service:elasticsearch.service",
        "command:accounts of Elasticsearch",
        "rest:/_index_template/knockmap",
    )
    assert [ids.index(one) for one in order] == sorted(ids.index(one) for one in order)
    assert ids.index(order[-1]) < ids.index("service:logstash.service")


def test_shipping_elsewhere_installs_logstash_alone(tmp_path: Path) -> None:
    key, ca = tmp_path / "key", tmp_path / "ca.pem"
    key.write_text("an_id:a_key\n")
    ca.write_text("the authority\n")
    chosen = Settings(
        elastic_hosts=("https://es.example:9200",), elastic_api_key_file=str(key), elastic_ca=str(ca)
    )
    resources = install_elk.resources(chosen)
    assert not any("elasticsearch" in r.id and not r.id.startswith("file:/usr/local") for r in resources)
    written = texts(resources)
    assert "https://es.example:9200" in written["/etc/logstash/conf.d/knockmap-2-output.conf"]
    assert written["/etc/logstash/certs/http_ca.crt"] == "the authority\n"
    env = next(r for r in resources if r.id == "file:/etc/logstash/knockmap.env")
    assert isinstance(env, File) and env.secret and env.mode == 0o600 and env.text is not None
    assert env.text.endswith("KNOCKMAP_WRITER_KEY=an_id:a_key\n")
    cloud = elastic_pipeline.pipeline(Settings(elastic_cloud_id="many:ZXM=", elastic_api_key_file=str(key)))
    assert 'cloud_id => "many:ZXM="' in (cloud[1].text or "")


def test_no_secret_stands_in_a_file_that_others_read() -> None:
    for resource in install_elk.resources(Settings()):
        if isinstance(resource, File) and "@@secret." in (resource.text or ""):
            assert resource.mode == 0o600 and resource.owner == "root", resource.path


def test_every_guarded_command_can_be_undone_or_leaves_nothing() -> None:
    commands = [r for r in install_elk.resources(Settings()) if isinstance(r, Command)]
    assert [c.undo[-1:] for c in commands if "accounts" in c.title] == [("remove",)]


def test_own_databases_are_taken_by_their_kind(tmp_path: Path) -> None:
    paths = [tmp_path / "a.mmdb", tmp_path / "b.mmdb"]
    for path, kind in zip(paths, ("GeoLite2-City", "GeoLite2-ASN"), strict=True):
        mmdb.write(path, {"1.0.0.0/8": {"x": "1"}}, kind=kind)
    chosen = Settings(geo_databases=tuple(map(str, paths)), logstash_geoip="own")
    assert elastic_pipeline.own_databases(chosen) == {"city": paths[0], "asn": paths[1]}
    text = elastic_pipeline.pipeline_text(chosen)
    assert 'database => "/var/lib/knockmap/logstash-geo/a.mmdb"' in text
    assert 'database => "/var/lib/knockmap/logstash-geo/b.mmdb"' in text
    mmdb.write(paths[0], {"1.0.0.0/8": {"x": "1"}}, kind="DBIP-City-Lite (compat=City), of July")
    assert elastic_pipeline.database_kind(paths[0]).endswith("of July")
    assert elastic_pipeline.own_databases(chosen)["city"] == paths[0]
    mmdb.write(paths[0], {"1.0.0.0/8": {"x": "1"}}, kind="city ipv4")
    with pytest.raises(SettingError, match="city ipv4"):
        elastic_pipeline.own_databases(chosen)


def test_own_databases_are_logstashs_alone_and_new_ones_start_it_anew(tmp_path: Path) -> None:
    mmdb.write(tmp_path / "a.mmdb", {"1.0.0.0/8": {"x": "1"}}, kind="GeoLite2-City")
    own = Settings(geo_databases=(str(tmp_path / "a.mmdb"),), logstash_geoip="own")
    assert elastic_pipeline.GEO != collector.GEO
    (database,) = [r for r in elastic_pipeline.resources(own) if isinstance(r, File) and ".mmdb" in r.path]
    services = [r for r in elastic_pipeline.resources(own) if isinstance(r, Service)]
    assert database in services[0].restart_on
    # Also without own ones the folder is looked after: own ones of an earlier deploy are to go.
    folders = [r for r in elastic_pipeline.resources(Settings()) if isinstance(r, Directory) and r.tidy]
    assert [folder.path for folder in folders] == [elastic_pipeline.GEO]


def test_pipeline_debug_has_the_very_filters_of_the_pipeline() -> None:
    text = elastic_pipeline.debugging(Settings()).text or ""
    whole = elastic_pipeline.pipeline_text(Settings())
    assert whole[whole.index("filter {") :].rstrip() in text
    assert "rubydebug" in text and "elasticsearch {" not in text


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"elastic_version": "8.19.0"}, "elastic_version"),
        ({"elastic_version": "9.x"}, "elastic_version"),
        ({"elastic_hosts": ["http://es:9200"]}, "elastic_hosts"),
        ({"elastic_hosts": ["https://es:9200"]}, "elastic_api_key_file"),
        ({"elastic_fingerprint": "D88E42B4"}, "elastic_fingerprint"),
        ({"elastic_mirror": "ftp://x"}, "elastic_mirror = .*: must be an https:// or http:// address"),
        ({"elastic_heap": 100}, "elastic_heap"),
        ({"logstash_geoip": "own"}, "logstash_geoip"),
        ({"elastic_packages": "/nonexistent"}, "elastic_packages"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(section: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        load(section, {})


def test_deploy_installs_it_by_default() -> None:
    assert "install_elk" in fabfile.plan(Settings())
    assert "install_elk" not in fabfile.plan(Settings(stack="embedded", geo_source="none"))


@pytest.mark.parametrize(
    ("sizes", "limit", "gone"),
    [
        ([10, 10, 10], 30, []),
        ([10, 10, 10], 29, ["0"]),
        ([10, 10, 10], 5, ["0", "1"]),  # never the one that is written to
        ([50], 5, []),
        ([], 5, []),
    ],
)
def test_the_oldest_indices_go_and_never_the_one_that_is_written_to(
    sizes: list[int], limit: int, gone: list[str]
) -> None:
    assert data_stream.surplus([(str(number), size) for number, size in enumerate(sizes)], limit) == gone


def answering(monkeypatch: pytest.MonkeyPatch, **answers: tuple[int, Any]) -> list[str]:
    """Elasticsearch answers so, by the first word of the path; gives the list of what it was asked."""
    asked: list[str] = []

    def call(method: str, path: str, body: Any = None, auth: str = "") -> tuple[int, Any]:
        asked.append(f"{method} {path}")
        return answers[path.strip("/_").split("/")[0]]

    monkeypatch.setattr(data_stream, "call", call)
    return asked


def run_data_stream(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """With what it ends: 0 for success, or its words."""
    monkeypatch.setattr(sys, "argv", ["data_stream.py", *words])
    try:
        data_stream.main()
    except SystemExit as end:
        return int(end.code) if isinstance(end.code, bool) else end.code
    return 0


def index_template(name: str, pattern: str, priority: int | None) -> dict[str, Any]:
    ranked = {} if priority is None else {"priority": priority}
    return {"name": name, "index_template": {"index_patterns": ["x", pattern], **ranked}}


OURS = index_template("knockmap", "logs-iptables.ssh-*", 500)
MISSING = (404, {"error": {"reason": "no such index"}})


@pytest.mark.parametrize("words", [("check",), ("follow",), ("trim", "100")])
@pytest.mark.parametrize("status", [401, 503])
def test_an_error_is_not_taken_for_a_data_stream_to_come(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], status: int
) -> None:
    answering(monkeypatch, data_stream=(status, {"error": {"reason": "not now"}}))
    said = run_data_stream(monkeypatch, *words)
    assert said == f"logs-iptables.ssh-default cannot be looked at ({status}): not now"


@pytest.mark.parametrize("none", [MISSING, (200, {"data_streams": []})])
def test_without_a_data_stream_there_is_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch, none: tuple[int, Any]
) -> None:
    asked = answering(monkeypatch, data_stream=none, index_template=(200, {"index_templates": [OURS]}))
    for words in (("trim", "1"), ("check",), ("follow",)):
        assert run_data_stream(monkeypatch, *words) == 0
    assert all(line.startswith("GET ") for line in asked)


@pytest.mark.parametrize(
    ("others", "rules"),
    [
        ([], "knockmap"),
        ([("logs", "logs-*-*", 100), ("nothing", "*", None)], "knockmap"),
        ([("metrics", "metrics-*", 900), ("longer", "logs-iptables.ssh-default-2", 900)], "knockmap"),
        ([("foreign", "logs-iptables*", 900), ("logs", "logs-*-*", 100)], "foreign"),
    ],
)
def test_before_the_first_event_the_template_that_outranks_the_others_rules(
    monkeypatch: pytest.MonkeyPatch, others: list[tuple[str, str, int | None]], rules: str
) -> None:
    there = [OURS, *(index_template(*other) for other in others)]
    answering(monkeypatch, data_stream=MISSING, index_template=(200, {"index_templates": there}))
    assert run_data_stream(monkeypatch, "check") == int(rules != "knockmap")
    said = run_data_stream(monkeypatch, "follow")
    assert said == 0 if rules == "knockmap" else f"the index template {rules} outranks ours" in said


def test_a_data_stream_that_no_template_rules_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"name": "logs-iptables.ssh-default", "indices": []}  # Elasticsearch leaves `template` out
    answering(monkeypatch, data_stream=(200, {"data_streams": [here]}))
    assert run_data_stream(monkeypatch, "check") == 1
    assert "no index template is there" in run_data_stream(monkeypatch, "follow")


@pytest.mark.parametrize(
    ("have", "fits"),
    [
        ({"cluster": ["b", "a"], "indices": [], "run_as": [], "metadata": {}}, True),
        ({"cluster": ["a", "b"], "indices": [], "run_as": ["root"]}, False),
        ({"cluster": ["a", "b", "all"], "indices": []}, False),
        ({"cluster": ["a"], "indices": []}, False),
        (None, False),
    ],
)
def test_a_key_with_more_or_less_than_it_shall_have_is_no_valid_one(have: Any, fits: bool) -> None:
    assert security.holds({"cluster": ["a", "b"], "indices": []}, have) is fits


def leaves(document: Any, path: str = "") -> set[str]:
    if isinstance(document, dict) and set(document) != {"lat", "lon"}:
        return {leaf for key, value in document.items() for leaf in leaves(value, f"{path}.{key}".strip("."))}
    return {path}


def test_every_field_of_the_pipelines_events_is_mapped() -> None:
    def fields(properties: Any, path: str = "") -> set[str]:
        return {
            field
            for name, value in properties.items()
            for field in (
                fields(value["properties"], f"{path}{name}.") if "properties" in value else {path + name}
            )
        }

    mappings = json.loads((FOLDER / "mappings.json").read_text())["template"]["mappings"]
    events = map(json.loads, (ROOT / "tests/data/iptables-events.ndjson").read_text().splitlines())
    assert {field for event in events for field in leaves(event)} <= fields(mappings["properties"])
