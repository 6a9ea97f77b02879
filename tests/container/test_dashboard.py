"""The page's JSON on a real box: loopback only, fenced in, and every number that of the rows."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from box import Box, attack

from tests.container.conftest import Fab

FabCommand = Callable[..., Fab]
GEO = {"KNOCKMAP_GEO_SOURCE": "dbip-city"}
GET = "import sys, urllib.request as u; sys.stdout.write(u.urlopen('http://127.0.0.1:8722' + sys.argv[1]).read().decode())"


def get(box: Box, path: str) -> str:
    status, out = box.run(["python3", "-c", GET, path])
    assert status == 0, out
    return out


def ask(box: Box, name: str, **more: Any) -> Any:
    now = int(time.time())
    asked = {"since": now - 3600, "until": now + 60, **more}
    return json.loads(
        get(box, f"/map/api/{name}?" + "&".join(f"{key}={value}" for key, value in asked.items()))
    )


def eventually(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_check_on_a_fresh_box_says_what_would_come(fab: FabCommand, box: Box) -> None:
    checked = fab(box, "dashboard", "--check")
    assert checked.rc == 0 and "would change service:knockmap-dashboard.service" in checked.out
    assert box.run(["test", "-e", "/usr/local/lib/knockmap"])[0] == 1


def test_deploy_brings_the_page_and_twice_changes_nothing(fab: FabCommand, box: Box) -> None:
    done = fab(box, "deploy", **GEO)
    assert done.rc == 0, done.out
    again = fab(box, "dashboard", **GEO)
    assert again.rc == 0 and again.last.endswith("ok, 0 changed, 0 failed, 0 skipped"), again.out
    assert "<title>knockmap</title>" in get(box, "/map/")


def test_it_listens_on_loopback_only(box: Box) -> None:
    listening = box.run(["ss", "-Hltn"])[1].split()
    assert [word for word in listening if word.endswith(":8722")] == ["127.0.0.1:8722"]


def test_the_service_is_fenced_in(box: Box) -> None:
    shown = box.run(["systemd-analyze", "security", "--no-pager", "knockmap-dashboard.service"])[1]
    assert float(shown.strip().splitlines()[-1].split("service:")[1].split()[0]) <= 1.5
    assert box.run(["systemctl", "show", "-P", "User", "knockmap-dashboard.service"])[1].strip() == "knockmap"


def test_a_syn_is_on_the_page_within_three_seconds(box: Box) -> None:
    last = json.loads(get(box, "/map/api/live?after=0"))["last"]
    sent = attack(box, sources=20, count=20, rate=200)
    began = time.monotonic()
    eventually(lambda: json.loads(get(box, f"/map/api/live?after={last}"))["last"] == last + 20, 3)
    assert time.monotonic() - began < 3
    view = ask(box, "view")
    assert (view["families"]["4"]["count"], view["families"]["6"]["count"]) == (sent.v4, sent.v6)
    assert {row["code"]: row["count"] for row in view["countries"]} == sent.countries


def test_what_the_flood_limit_kept_out_is_shown(box: Box) -> None:
    box.run(["systemctl", "start", "knockmap-rules-check.service"])
    limit = json.loads(get(box, "/map/api/live?after=0"))["chain"]["limit"]
    assert limit["seen"] >= 20 and limit["over_limit"] == 0 and time.time() - limit["at"] < 60


def test_collector_and_page_are_small(box: Box) -> None:
    for span in (3600, 86400, 30 * 86400, 365 * 86400):
        ask(box, "view", since=int(time.time()) - span)
    kilobytes = box.run(["ps", "-o", "rss=", "-u", "knockmap"])[1].split()
    assert len(kilobytes) == 2 and sum(map(int, kilobytes)) <= 80 * 1024


def test_a_pause_of_the_collector_is_said(box: Box) -> None:
    note = "import sqlite3; db = sqlite3.connect('/var/lib/knockmap/collector/knockmap.db'); db.execute({!r}); db.commit()"
    box.run(["python3", "-c", note.format("INSERT INTO meta VALUES('paused', 1)")])
    eventually(lambda: json.loads(get(box, "/map/api/live?after=0"))["chain"]["paused"] == 1)
    box.run(["python3", "-c", note.format("DELETE FROM meta WHERE key = 'paused'")])


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_an_export_holds_every_event(fab: FabCommand, box: Box, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"events.{form}"
    done = fab(box, "export", "--format", form, "--where", "family:6", "--output", str(path))
    assert done.rc == 0, done.out
    lines = path.read_text().splitlines()
    rows = list(csv.DictReader(lines)) if form == "csv" else [json.loads(line) for line in lines]
    assert len(rows) == ask(box, "view")["families"]["6"]["count"]
    assert all(":" in row["address"] and "SRC=" in row["line"] for row in rows)
    assert fab(box, "export", "--output", str(path)).rc == 2


def test_an_export_that_cannot_be_leaves_no_file(fab: FabCommand, box: Box, tmp_path: Path) -> None:
    assert fab(box, "export", "--where", "country:nowhere", "--output", str(tmp_path / "x.csv")).rc == 1
    assert list(tmp_path.iterdir()) == []


def test_drift_is_repaired(fab: FabCommand, box: Box) -> None:
    damage = (
        "systemctl stop knockmap-dashboard; echo broken >/usr/local/lib/knockmap/dashboard/static/page.js"
    )
    box.run(["sh", "-c", damage])
    repaired = fab(box, "dashboard", **GEO)
    assert repaired.rc == 0 and ", 2 changed, 0 failed" in repaired.last
    assert "Loads what the URL asks for" in get(box, "/map/page.js")


def test_another_port_and_the_public_page_are_settings(fab: FabCommand, box: Box) -> None:
    assert fab(box, "dashboard", KNOCKMAP_DASHBOARD_PORT="8723", KNOCKMAP_PUBLIC_PAGE="true", **GEO).rc == 0
    public = GET.replace("8722", "8723")
    eventually(lambda: box.run(["python3", "-c", public, "/public/"])[0] == 0)
    assert fab(box, "dashboard", **GEO).rc == 0
    eventually(lambda: box.run(["python3", "-c", GET, "/map/"])[0] == 0)
    assert box.run(["python3", "-c", GET, "/public/"])[0] == 1
