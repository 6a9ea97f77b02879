"""A box moves from the embedded stack to Elasticsearch by one deploy, with its past; then the whole of it is undone.

Which repository the packages come from, Elastic's or the doubles', is nothing that these tests know.
"""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from box import Box
from box.attack import attack

from tests.container import web
from tests.container.conftest import Fab
from tests.container.test_apache_proxy import scan
from tests.container.test_kibana import DASHBOARD, login, search
from tests.container.test_undo import LOOKED_AT, snapshot

FabCommand = Callable[..., Fab]
Settings = dict[str, str]
SECRETS = "/var/lib/knockmap/secrets"
# Where a secret may stand beside that folder, for the one service that needs it.
PLACES = ("/etc/logstash/knockmap.env", "/etc/kibana/", "/var/lib/knockmap/journal/objects/")
BEFORE: dict[str, Any] = {}


def shell(box: Box, script: str) -> str:
    status, out = box.run(["sh", "-c", f"{{ {script}\n}} 2>&1"])
    assert status == 0, (script, out)
    return out


def scanners(fab: FabCommand, box: Box, total: int, **settings: str) -> dict[str, Any]:
    """The box's report, as soon as it has `total` SYNs, or after a minute."""
    deadline = time.monotonic() + 60
    while True:
        shown = fab(box, "scanners", "--json", "--rows", "1000", **settings)
        assert shown.rc == 0, shown.out
        report: dict[str, Any] = json.loads(shown.out)
        if report["total"] >= total or time.monotonic() > deadline:
            return report
        time.sleep(1)


def counts(report: dict[str, Any]) -> dict[str, Any]:
    """What both stacks must say alike. Countries differ: each has GeoIP data of its own."""
    networks = {row["network"]: row["count"] for row in report["networks"]}
    addresses = {row["address"]: row["count"] for row in report["sources"]}
    return {
        "families": [report["total"], report["ipv4"], report["ipv6"]],
        "networks": networks,
        "addresses": addresses,
    }


def test_a_check_of_either_stack_on_a_fresh_box_writes_nothing(
    fab: FabCommand, elastic_box: Box, elastic: Settings
) -> None:
    BEFORE["pristine"], before = snapshot(elastic_box), snapshot(elastic_box, LOOKED_AT)
    for stack in ({}, elastic):
        checked = fab(elastic_box, "deploy", "--check", **stack)
        assert checked.rc == 0 and ", 0 failed, 0 skipped" in checked.last, checked.out
        assert "would change service:" in checked.out
    assert sorted(snapshot(elastic_box, LOOKED_AT) ^ before) == []


def test_the_embedded_stack_has_a_past(fab: FabCommand, elastic_box: Box) -> None:
    done = fab(elastic_box, "deploy")
    assert done.rc == 0, done.out
    # Before the others, so that it is stored when they are.
    shell(
        elastic_box, "echo '2026-11-24T01:02:03.000004+00:00 host kernel: no packet' >>/var/log/iptables.log"
    )
    sent = attack(elastic_box, sources=40, count=400, rate=200)
    BEFORE["report"] = scanners(fab, elastic_box, sent.v4 + sent.v6 - sent.overruns)
    assert 0 <= sent.v4 + sent.v6 - BEFORE["report"]["total"] <= sent.overruns


def test_a_deploy_brings_the_other_stack_and_then_changes_nothing(
    fab: FabCommand, elastic_box: Box, elastic: Settings
) -> None:
    # The past that Logstash cannot read by itself: it was rotated away, and is in the collector's database alone.
    shell(
        elastic_box,
        "systemctl stop rsyslog knockmap-collector; : >/var/log/iptables.log; systemctl start rsyslog",
    )
    done = fab(elastic_box, "deploy", **elastic)
    assert done.rc == 0, done.out
    again = fab(elastic_box, "deploy", **elastic)
    assert again.last.endswith(" ok, 0 changed, 0 failed, 0 skipped"), again.out
    shell(elastic_box, "systemctl start knockmap-collector")


def test_the_past_comes_along_and_every_count_is_equal(
    fab: FabCommand, elastic_box: Box, elastic: Settings
) -> None:
    moved = fab(elastic_box, "migrate", **elastic)
    assert moved.rc == 0 and "each one seen there" in moved.out, moved.out
    report = scanners(fab, elastic_box, BEFORE["report"]["total"], **elastic)
    assert counts(report) == counts(BEFORE["report"])
    assert report["unparsed"] == BEFORE["report"]["unparsed"] == 1
    assert sorted(report["lines"]) == sorted(BEFORE["report"]["lines"])


def test_a_second_time_doubles_nothing(fab: FabCommand, elastic_box: Box, elastic: Settings) -> None:
    # In a new index, what the former has would not be refused.
    assert search(elastic_box, "POST", "/logs-iptables.ssh-default/_rollover")[1]["rolled_over"] is True
    moved = fab(elastic_box, "migrate", **elastic)
    assert moved.rc == 0, moved.out
    looked_at, there = re.findall(r"(\d[\d ]*) (?:lines \(|were there already)", moved.out)
    assert looked_at == there, moved.out
    report = scanners(fab, elastic_box, BEFORE["report"]["total"], **elastic)
    assert counts(report) == counts(BEFORE["report"])
    assert shell(elastic_box, "ls -A /var/lib/knockmap/replay") == ""


def test_new_syns_come_to_elasticsearch_every_one(
    fab: FabCommand, elastic_box: Box, elastic: Settings
) -> None:
    sent = attack(elastic_box, sources=30, count=300, rate=150)
    wanted = BEFORE["report"]["total"] + sent.v4 + sent.v6 - sent.overruns
    report = scanners(fab, elastic_box, wanted, **elastic)
    assert report["total"] == wanted
    BEFORE["total"] = wanted


def test_export_has_a_row_for_each_with_the_columns_of_the_embedded_stack(
    fab: FabCommand, elastic_box: Box, elastic: Settings, tmp_path: Path
) -> None:
    rows = {}
    for stack in ("elastic", "embedded"):
        path = tmp_path / f"{stack}.csv"
        done = fab(elastic_box, "export", "--output", str(path), **{**elastic, "KNOCKMAP_STACK": stack})
        assert done.rc == 0, done.out
        with path.open(newline="") as file:
            rows[stack] = list(csv.DictReader(file))
    assert len(rows["elastic"]) == BEFORE["total"]
    places = ("country", "city", "latitude", "longitude")  # each stack has GeoIP data of its own
    without = [
        sorted(str({k: v.strip() for k, v in row.items() if k not in places}) for row in rows[stack])
        for stack in rows
    ]
    assert without[0] == without[1]
    few = tmp_path / "few.ndjson"
    done = fab(
        elastic_box, "export", "--format", "ndjson", "--where", "family:6", "--output", str(few), **elastic
    )
    assert done.rc == 0, done.out
    assert {":" in json.loads(line)["address"] for line in few.read_text().splitlines()} == {True}
    refused = fab(elastic_box, "export", "--where", "seen:new", "--output", str(tmp_path / "none"), **elastic)
    assert refused.rc == 1 and "use Kibana" in refused.out


def test_a_higher_version_is_one_setting_and_one_deploy(
    fab: FabCommand, elastic_box: Box, elastic_next: Settings
) -> None:
    higher = elastic_next["KNOCKMAP_ELASTIC_VERSION"]
    stored = scanners(fab, elastic_box, BEFORE["total"], **elastic_next)["total"]
    done = fab(elastic_box, "deploy", **elastic_next)
    assert done.rc == 0, done.out
    order = re.findall(r"^changed +package:(\S+)", done.out, re.M)
    assert order == ["elasticsearch", "logstash", "kibana"]
    form = "'${db:Status-Want} ${Version}\n'"
    rows = shell(elastic_box, f"dpkg-query -W -f {form} {' '.join(order)}").splitlines()
    assert sorted(rows) == [f"hold 1:{higher}-1", f"hold {higher}", f"hold {higher}"]
    page = web.ask(elastic_box, DASHBOARD, login(fab, elastic_box, elastic_next))
    assert page.status == 200, page.body
    again = fab(elastic_box, "deploy", **elastic_next)
    assert again.last.endswith(" ok, 0 changed, 0 failed, 0 skipped"), again.out
    assert scanners(fab, elastic_box, stored, **elastic_next)["total"] == stored


def test_no_secret_stands_anywhere_else_than_where_it_is_needed(elastic_box: Box) -> None:
    """On the whole disk, in the logs and in the list of processes."""
    names = shell(elastic_box, f"ls {SECRETS}").split()
    assert {"elastic_password", "writer_key", "reader_key", "keeper_key"} <= set(names)
    for name in names:
        shell(elastic_box, f"head -c 200 {SECRETS}/{name} | tr ':' '\\n' | tail -n 1 >/root/.looked-for")
        found = shell(
            elastic_box,
            "grep -rlaFs -f /root/.looked-for / --exclude-dir=proc --exclude-dir=sys --exclude=.looked-for || true;"
            " cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -qF -f /root/.looked-for && echo cmdline || true;"
            " journalctl -a -o cat | grep -qaF -f /root/.looked-for && echo journal || true",
        ).splitlines()
        others = [path for path in found if not path.startswith((f"{SECRETS}/", *PLACES))]
        assert others == [], name
        assert shell(elastic_box, f"find {' '.join(found)} -perm /004") == "", name
    shell(elastic_box, "rm /root/.looked-for")


def test_from_outside_only_sshd_and_apache_answer(elastic_box: Box) -> None:
    found = scan(elastic_box)
    assert len(found) == 2 and set(map(tuple, found.values())) == {(80, 443, 2222)}, found


def test_undo_of_both_stacks_leaves_the_box_as_it_was(
    fab: FabCommand, elastic_box: Box, elastic: Settings
) -> None:
    undone = fab(elastic_box, "undo", "--packages", "--data", **elastic)
    assert undone.rc == 0, undone.out
    after = snapshot(elastic_box)
    assert sorted(after - BEFORE["pristine"]) == []
    assert sorted(BEFORE["pristine"] - after) == []
