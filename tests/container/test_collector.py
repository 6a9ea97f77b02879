"""From SYNs of the whole world to rows with countries, on a real box."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from box import Box, attack
from box.attack import choose

from tests.container.conftest import Fab
from tests.unit import mmdb

FabCommand = Callable[..., Fab]
# The real data, by which the country of each source is known.
GEO = {"KNOCKMAP_GEO_SOURCE": "dbip-city"}


def scanners(fab: FabCommand, box: Box, total: int) -> dict[str, Any]:
    """The box's own report, as soon as it has `total` SYNs, or after 10 s."""
    for _ in range(20):
        shown = fab(box, "scanners", "--json")
        assert shown.rc == 0, shown.out
        report: dict[str, Any] = json.loads(shown.out)
        if report["total"] >= total:
            break
        time.sleep(0.5)
    return report


def test_check_on_a_fresh_box_says_what_would_come(fab: FabCommand, box: Box) -> None:
    checked = fab(box, "collector", "--check", **GEO)
    assert checked.rc == 0 and "would change service:knockmap-collector.service" in checked.out
    assert box.run(["test", "-e", "/usr/local/lib/knockmap"])[0] == 1


def test_deploy_brings_the_whole_chain(fab: FabCommand, box: Box) -> None:
    done = fab(box, "deploy", **GEO)
    assert done.rc == 0, done.out
    again = fab(box, "deploy", **GEO)
    assert again.rc == 0 and again.last.endswith("ok, 0 changed, 0 failed, 0 skipped"), again.out


def test_the_service_is_fenced_in_and_runs_as_its_own_user(box: Box) -> None:
    shown = box.run(["systemd-analyze", "security", "--no-pager", "knockmap-collector.service"])[1]
    score = float(shown.strip().splitlines()[-1].split("service:")[1].split()[0])
    assert score <= 2.5
    assert box.run(["systemctl", "show", "-P", "User", "knockmap-collector.service"])[1].strip() == "knockmap"
    pid = box.run(["systemctl", "show", "-P", "MainPID", "knockmap-collector.service"])[1].strip()
    assert box.run(["ps", "-o", "user=", "-p", pid])[1].split() == ["knockmap"]


def test_every_syn_is_a_row_with_the_country_of_its_source(fab: FabCommand, box: Box) -> None:
    sent = attack(box, sources=60, count=600, rate=300)
    assert sent.leaked == 0 and sent.v4 > 0 and sent.v6 > 0
    report = scanners(fab, box, sent.v4 + sent.v6)
    assert (report["ipv4"], report["ipv6"], report["unparsed"]) == (sent.v4, sent.v6, 0)
    # Sources take turns, so each sent as many SYNs as any other.
    each = 600 // 60
    expected = Counter(dict.fromkeys(choose(60).values(), 0))
    for country in choose(60).values():
        expected[country] += each
    assert {row["code"]: row["count"] for row in report["countries"]} == dict(expected)
    assert all(row["name"] and not row["name"].startswith("unknown") for row in report["countries"])
    assert "knockmap IN=" in report["lines"][-1]


def test_kill_9_in_the_middle_of_an_attack_loses_nothing(fab: FabCommand, box: Box) -> None:
    before = scanners(fab, box, 0)["total"]
    kill = "for i in 1 2 3 4 5 6; do systemctl kill -s KILL knockmap-collector; sleep 0.4; systemctl reset-failed knockmap-collector; done"
    box.run(["systemd-run", "-q", "sh", "-c", kill])
    sent = attack(box, sources=20, count=2000, rate=1000)
    assert sent.v4 + sent.v6 == 2000
    report = scanners(fab, box, before + 2000 - sent.overruns)
    # Whatever the kernel's and rsyslog's part may have been: each line of the log is one row.
    written = int(box.run(["sh", "-c", "cat /var/log/iptables.log* | wc -l"])[1])
    assert (report["total"], report["unparsed"]) == (written, 0)
    # The kernel's ring belongs to all boxes: what another one made it overwrite is no loss of ours.
    assert before + 2000 - sent.overruns <= report["total"] <= before + 2000


def test_drift_is_repaired(fab: FabCommand, box: Box) -> None:
    box.run(
        [
            "sh",
            "-c",
            "systemctl disable -q --now knockmap-collector; echo broken >/usr/local/lib/knockmap/collector/geoip.py",
        ]
    )
    repaired = fab(box, "collector", **GEO)
    assert repaired.rc == 0 and ", 2 changed, 0 failed" in repaired.last
    assert box.run(["systemctl", "is-active", "knockmap-collector"])[1].strip() == "active"


def test_goes_on_after_a_reboot(fab: FabCommand, box: Box) -> None:
    before = scanners(fab, box, 0)["total"]
    box.restart()
    sent = attack(box, sources=10, count=50, rate=100)
    assert scanners(fab, box, before + 50)["total"] == before + sent.v4 + sent.v6
    assert ", 0 changed, 0 failed, 0 skipped" in fab(box, "deploy", **GEO).last


def test_the_table_is_for_people(fab: FabCommand, box: Box) -> None:
    shown = fab(box, "scanners", "--rows", "3")
    assert shown.rc == 0
    assert "SYNs to port 22 in the last 24h" in shown.out and "https://db-ip.com" in shown.out


def mmdb_files(box: Box) -> list[str]:
    return box.run(["sh", "-c", "cd /var/lib/knockmap/geo && ls"])[1].split()


def test_other_geoip_data_take_the_place_of_the_former(fab: FabCommand, box: Box, tmp_path: Path) -> None:
    """The same source under another name, which is how newer data come; a file by the operator's hand is not ours."""
    former = mmdb_files(box)
    box.run(["touch", "/var/lib/knockmap/geo/mine.mmdb"])
    mmdb.write(tmp_path / "small.mmdb", {"10.0.0.0/8": {"country_code": "DE"}}, built=int(time.time()))
    own = {"KNOCKMAP_GEO_DATABASES": str(tmp_path / "small.mmdb")}
    checked = fab(box, "collector", "--check", **own)
    assert checked.rc == 0 and len(former) == 2
    assert all(f"would change file:/var/lib/knockmap/geo/{name}  removed" in checked.out for name in former)
    assert mmdb_files(box) == sorted([*former, "mine.mmdb"])
    done = fab(box, "collector", **own)
    assert done.rc == 0 and ", 3 changed, 0 failed" in done.last, done.out
    assert mmdb_files(box) == ["mine.mmdb", "small.mmdb"]
    assert ", 0 changed, 0 failed, 0 skipped" in fab(box, "collector", **own).last
    doctor = json.loads(fab(box, "doctor", "--json").out)
    (link,) = [link for link in doctor["links"] if link["name"] == "GeoIP"]
    assert link["state"] == "ok" and link["cause"].startswith("1 readable, 0 days old")
    assert fab(box, "collector", KNOCKMAP_GEO_SOURCE="none").rc == 0 and mmdb_files(box) == ["mine.mmdb"]
    # The running collector has seen it, too.
    asked = """import sqlite3; db = sqlite3.connect("file:/var/lib/knockmap/collector/knockmap.db?mode=ro", uri=True)
print(db.execute("SELECT value FROM meta WHERE key = 'geo_kinds'").fetchone())"""
    for _ in range(20):
        if (known := box.run(["python3", "-c", asked])[1].strip()) == "('',)":
            break
        time.sleep(0.5)
    assert known == "('',)"
    undone = fab(box, "undo", "collector")
    assert undone.rc == 0 and mmdb_files(box) == ["mine.mmdb"], undone.out
