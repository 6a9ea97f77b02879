"""The dashboard's JSON against a plain model of the same events, and against whatever one can ask."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import dashboard
import pytest
import view
from box import history
from collector import Collector
from collector import Options as CollectorOptions
from dashboard import Dashboard, Options, Rate
from hypothesis import given, settings
from hypothesis import strategies as st
from iptables_line import Event, parse

from tests.unit import mmdb

START, DAYS = 1_790_000_000, 45
UNTIL = START + DAYS * 86400
TTLS = {32: (0, 32), 64: (33, 64), 128: (65, 128), 255: (129, 255)}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Page:
    """The WSGI application as a browser behind Apache sees it."""

    def __init__(self, app: Dashboard) -> None:
        self.app = app

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        path, _, question = path.partition("?")
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": question, **headers}
        seen: list[Any] = []
        answer = self.app(environ, lambda status, headers: seen.extend((status, headers)))
        body = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        return Answer(int(seen[0].split()[0]), dict(seen[1]), body)

    def ask(
        self, name: str, since: int = START, until: int = UNTIL, base: str = "map", **more: Any
    ) -> Answer:
        where = [("where", f"{key}:{value}") for key, value in more.pop("where", {}).items()]
        question = urlencode([("since", since), ("until", until), *where, *more.items()])
        return self.get(f"/{base}/api/{name}?{question}")


def pairs(events: list[dict[str, Any]], key: str) -> Counter[Any]:
    return Counter(event[key] for event in events)


@dataclass
class World:
    page: Page
    events: list[dict[str, Any]]

    def matching(self, since: int, until: int, where: dict[str, str]) -> list[dict[str, Any]]:
        """The plain model: every event is looked at."""
        found = [event for event in self.events if since <= event["ts"] < until]
        for name, value in where.items():
            found = [event for event in found if holds(event, name, value, since)]
        return found


def holds(event: dict[str, Any], name: str, value: str, since: int) -> bool:
    if name == "seen":
        return (event["first_seen"] >= since) == (value == "new")
    if name == "family":
        return (":" in event["address"]) == (value == "6")
    if name == "ttl":
        least, most = TTLS[int(value)]
        return least <= event["ttl"] <= most
    if name == "city":
        return f"{event['country']}/{event['city']}" == value
    return bool(str(event[name]) == value)


def record(country: str, city: str, latitude: float, longitude: float) -> dict[str, Any]:
    return {"country_code": country, "city": city, "latitude": latitude, "longitude": longitude}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """45 days of made-up scans, collected for real; countries by the first number of the address."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "geo").mkdir()
    networks = {
        f"{n}.0.0.0/8": record("CN" if n < 90 else "US", f"City {n}", n / 2, n / 3) for n in range(1, 170)
    }
    mmdb.write(folder / "geo" / "city.mmdb", networks | {"2001:200::/24": record("JP", "Tōkyō", 35.7, 139.7)})
    lines = list(history.lines(START, UNTIL, 3000))
    (folder / "iptables.log").write_bytes(b"".join(lines) + b"this is no packet\n")
    log, db = str(folder / "iptables.log"), str(folder / "knockmap.db")
    collector = Collector(CollectorOptions(log=log, db=db, geo=str(folder / "geo"), free_bytes=0))
    collector.step()
    app = Dashboard(Options(db=db, log=log, counts=str(folder / "none"), public=True))
    app.rate = Rate(10_000, 10_000)
    return World(Page(app), model(lines, collector))


def model(lines: list[bytes], collector: Collector) -> list[dict[str, Any]]:
    events, first_seen = [], dict[str, int]()
    for line in lines:
        event = parse(line.rstrip(b"\n"), UNTIL)
        assert isinstance(event, Event)
        first_seen.setdefault(event.source, event.ts)
        country, city, *_ = collector.atlas.locate(event.source)
        network = ip_network((event.source, 48 if ":" in event.source else 24), strict=False)
        events.append(
            {
                "ts": event.ts,
                "address": event.source,
                "network": str(network),
                "country": country,
                "city": city,
                "ttl": event.ttl,
                "window": event.window,
                "port": event.source_port,
                "first_seen": first_seen[event.source],
                "line": line.decode().strip(),
            }
        )
    return events


def cases(world: World, count: int) -> Iterator[tuple[int, int, dict[str, str]]]:
    """Spans of a minute to all of it, at any second, with up to three filters that something matches."""
    rng = random.Random(4)
    for _ in range(count):
        length = int(60 * (DAYS * 1440) ** rng.random())
        since = rng.randrange(START - 3600, UNTIL - length + 3600)
        example = rng.choice(world.events)
        ttl = next(start for start, (_, most) in TTLS.items() if example["ttl"] <= most)
        values = {
            **{name: str(example[name]) for name in ("country", "network", "address", "window", "port")},
            "city": f"{example['country']}/{example['city']}",
            "family": "6" if ":" in example["address"] else "4",
            "seen": rng.choice(("new", "returning")),
            "ttl": str(ttl),
        }
        if not example["city"]:
            del values["city"]
        names = rng.sample(sorted(values), rng.choice((0, 1, 1, 2, 3)))
        yield since, since + length, {name: values[name] for name in names}


def test_every_number_is_that_of_the_events_for_any_span_and_filters(world: World) -> None:
    for since, until, where in cases(world, 150):
        answer = world.page.ask("view", since, until, where=where)
        assert answer.status == 200, (since, until, where, answer.body)
        shown, events = answer.json, world.matching(since, until, where)
        at = (since, until, where)
        assert shown["total"] == len(events), at
        assert shown["sources"] == len(pairs(events, "address")), at
        assert {c["code"]: c["count"] for c in shown["countries"]} == pairs(events, "country"), at
        step = shown["step"]
        assert dict(map(tuple, shown["series"])) == Counter(event["ts"] // step * step for event in events), (
            at
        )
        top = pairs(events, "network").most_common()
        assert [row["count"] for row in shown["networks"]] == [count for _, count in top][:12], at
        assert all(pairs(events, "network")[row["network"]] == row["count"] for row in shown["networks"]), at
        assert [row["count"] for row in shown["addresses"]] == [
            n for _, n in pairs(events, "address").most_common(12)
        ], at
        new = [event for event in events if event["first_seen"] >= since]
        assert shown["seen"]["new"] == {"sources": len(pairs(new, "address")), "count": len(new)}, at
        assert shown["families"]["6"]["count"] == sum(":" in event["address"] for event in events), at
        assert shown["packets"]["of"] == len(events), at
        assert dict(map(tuple, shown["packets"]["window"])) == pairs(events, "window"), at
        assert sum(place[4] for place in shown["places"]) == sum(bool(event["city"]) for event in events), at


def test_pages_of_lines_are_all_lines_the_newest_first(world: World) -> None:
    for since, until, where in [*cases(world, 15), (START, UNTIL, {"country": "JP"}), (START, UNTIL, {})]:
        wanted = world.matching(since, until, where)
        found: list[Any] = []
        before = ""
        while True:
            shown = world.page.ask("lines", since, until, where=where, before=before).json
            assert len(shown["lines"]) <= 50
            found += shown["lines"]
            if not (before := shown["next"]):
                break
        assert [line["ts"] for line in found] == sorted((event["ts"] for event in wanted), reverse=True)
        assert Counter(line["text"] for line in found) == pairs(wanted, "line")
        assert len({line["id"] for line in found}) == len(found)


def test_a_search_is_an_address_a_network_or_a_country(world: World) -> None:
    event = next(event for event in world.events if event["country"] == "JP")
    for text, name in (
        (event["address"], "address"),
        (event["network"], "network"),
        (event["country"].lower(), "country"),
    ):
        shown = world.page.ask("lines", q=text).json["lines"]
        assert shown and {line[name] for line in shown} == {event[name]}
    assert world.page.ask("lines", q="drop table").status == 400


def test_an_export_has_every_event_in_both_forms(world: World) -> None:
    where = {"country": "CN"}
    wanted = world.matching(START, UNTIL, where)
    table = list(
        csv.DictReader(io.StringIO(world.page.ask("export", where=where, format="csv").body.decode()))
    )
    assert Counter(row["line"] for row in table) == pairs(wanted, "line")
    assert {row["country"] for row in table} == {"CN"}
    documents = [
        json.loads(line) for line in world.page.ask("export", where=where, format="ndjson").body.splitlines()
    ]
    assert Counter(row["line"] for row in documents) == pairs(wanted, "line")
    assert [int(row["ts"]) for row in documents] == sorted((event["ts"] for event in wanted), reverse=True)


def test_two_exports_at_a_time_and_the_next_one_after_them(world: World) -> None:
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/map/api/export",
        "QUERY_STRING": f"since={START}&until={UNTIL}",
    }
    running = [world.page.app(environ, lambda *given: None) for _ in range(2)]
    refused = world.page.ask("export")
    assert refused.status == 429 and "must end first" in refused.json["error"]
    assert next(iter(running[0]))
    for export in running:
        export.close()  # type: ignore[attr-defined]
    assert world.page.ask("export").status == 200


def test_an_export_that_cannot_be_says_so_and_holds_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "MOST_EVENTS", 10)
    for form in ("csv", "ndjson", "csv", "ndjson"):
        refused = world.page.ask("export", where={"ttl": "255"}, format=form)
        assert refused.status == 422 and "shorter span" in refused.json["error"]
    assert world.page.ask("export").status == 200


def test_the_public_page_has_no_address_anywhere(world: World) -> None:
    addresses = {event["address"] for event in world.events}
    sums = world.page.ask("view", base="public")
    live = world.page.get(f"/public/api/live?after={len(world.events) - 5}")
    assert sums.json["total"] == len(world.events)
    for answer in (sums, live):
        text = answer.body.decode()
        assert answer.status == 200 and not any(address in text for address in addresses)
    for name in ("lines", "export", "unparsed"):
        assert world.page.ask(name, base="public").status == 404
    for name, value in (("ttl", "64"), ("window", "1024"), ("port", "1")):
        assert world.page.ask("view", base="public", where={name: value}).status == 400
    assert world.page.ask("view", base="public", where={"address": world.events[0]["address"]}).status == 400
    assert world.page.ask("view", base="public", q=world.events[0]["address"]).status == 400


def test_the_public_page_is_off_unless_it_is_asked_for(world: World) -> None:
    quiet = Page(Dashboard(Options(db=world.page.app.options.db)))
    assert quiet.get("/public/").status == quiet.ask("view", base="public").status == 404


def test_the_public_page_answers_one_address_only_so_often(world: World) -> None:
    page = Page(Dashboard(Options(db=world.page.app.options.db, public=True)))
    path = "/public/api/live?after=0"
    statuses = [page.get(path, HTTP_X_FORWARDED_FOR="198.51.100.1").status for _ in range(60)]
    assert statuses[:40] == [200] * 40 and statuses[-1] == 429
    assert page.get(path, HTTP_X_FORWARDED_FOR="198.51.100.2").status == 200
    assert page.get("/map/api/live?after=0").status == 200


HOSTILE = (
    "' OR 1=1 --",
    "1;DROP TABLE event",
    "../../etc/passwd",
    "%00",
    "\x00",
    "9" * 400,
    "-1",
    "1e9",
    "NaN",
    "0x10",
    "𝟙",
    "<script>",
    "{{7*7}}",
    "🦀",
    " ",
    "",
)
NAMES = ("since", "until", "where", "before", "after", "q", "format", "sql", "__proto__", "")


def test_whatever_is_asked_gets_an_answer_or_a_sentence_within_its_limits(world: World) -> None:
    rng = random.Random(200)
    words = [
        *HOSTILE,
        str(START),
        str(UNTIL),
        "csv",
        *(
            f"{name}:{value}"
            for name in ("country", "city", "network", "address", "ttl", "seen", "x")
            for value in (*HOSTILE[:4], "CN")
        ),
    ]
    seen = Counter[int]()
    for _ in range(200):
        question = [(rng.choice(NAMES), rng.choice(words)) for _ in range(rng.randrange(6))]
        if rng.random() < 0.6:
            question = [("since", str(START)), ("until", str(UNTIL)), *question[2:]]
        text = (
            urlencode(question)
            if rng.random() < 0.8
            else quote("&".join("=".join(pair) for pair in question), safe="&=%;+")
        )
        name = rng.choice(("view", "lines", "live", "unparsed", "export", "../view", "x", ""))
        began = time.monotonic()
        answer = world.page.get(f"/{rng.choice(('map', 'public'))}/api/{name}?{text}")
        assert time.monotonic() - began < 2.5, text
        assert answer.status in (200, 304, 400, 404), (name, text, answer.body)
        if answer.status >= 400:
            assert len(answer.json["error"]) > 10 and "Traceback" not in answer.json["error"]
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
        seen[answer.status] += 1
    assert seen[200] > 10 and seen[400] > 10


@given(st.text(max_size=60), st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_as_a_question_or_a_path_is_answered(world: World, text: str, raw: bytes) -> None:
    path = f"/map/api/view?since={START}&until={UNTIL}&where="
    assert world.page.get(path + quote(text)).status in (200, 400)
    assert world.page.get("/map/api/view?" + raw.decode("latin-1")).status == 400
    assert world.page.get("/" + raw.decode("latin-1").replace("?", "")).status in (200, 404)


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


def test_what_takes_too_long_ends_soon_for_all_who_ask_and_hinders_nobody_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "SECONDS", 0.5)
    page = Page(Dashboard(Options(db=world.page.app.options.db)))
    monkeypatch.setattr(page.app, "view", lambda db, question: db.execute(ENDLESS).fetchall())
    ended: list[tuple[float, Answer]] = []
    began = time.monotonic()
    threads = [
        threading.Thread(target=lambda: ended.append((time.monotonic() - began, page.ask("view"))))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    assert page.ask("lines").status == 200  # the other connection is free
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 2
    assert {answer.status for _, answer in ended} <= {422, 429}
    assert any("shorter span" in answer.json["error"] for _, answer in ended)


def test_the_public_page_takes_one_connection_at_most(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "SECONDS", 0.2)
    page = Page(Dashboard(Options(db=world.page.app.options.db, public=True)))
    monkeypatch.setattr(page.app, "public_view", lambda db, question: db.execute(ENDLESS).fetchall())
    threads = [
        threading.Thread(target=page.ask, args=("view", START + n), kwargs={"base": "public"})
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    began = time.monotonic()
    assert page.ask("view").status == 200 and time.monotonic() - began < 1
    for thread in threads:
        thread.join()


def test_a_database_that_was_moved_away_is_shown_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "FRESH", 0.0)
    log, db = tmp_path / "iptables.log", tmp_path / "knockmap.db"
    options = CollectorOptions(log=str(log), db=str(db), geo=str(tmp_path / "geo"), free_bytes=0)
    page = Page(Dashboard(Options(db=str(db), log=str(log))))
    for lines in (30, 20):
        log.write_bytes(b"".join(history.lines(START, START + 3600, lines, seed=lines)))
        collector = Collector(options)
        collector.step()
        collector.db.close()
        assert [page.ask("view").json["total"] for _ in range(3)] == [lines] * 3
        for path in tmp_path.glob("knockmap.db*"):
            path.rename(path.with_name(f"damaged-{lines}-{path.name}"))


def test_no_answer_takes_more_memory_than_it_may(world: World) -> None:
    answers = world.page.app.answers
    assert (
        answers.ask(lambda db: db.execute("PRAGMA hard_heap_limit").fetchone()[0])
        == dashboard.MEMORY
        <= 50 << 20
    )
    with pytest.raises(view.TooMuch, match="shorter span"):
        answers.ask(lambda db: db.execute("SELECT length(hex(zeroblob(40000000)))").fetchall())
    assert world.page.ask("view", START, START + 60).status == 200


def test_without_a_database_the_next_step_is_said(tmp_path: Path) -> None:
    answer = Page(Dashboard(Options(db=str(tmp_path / "none.db")))).ask("view")
    assert answer.status == 503 and "doctor" in answer.json["error"]


def test_a_damaged_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    answer = Page(Dashboard(Options(db=str(tmp_path / "bad.db")))).ask("view")
    assert answer.status == 503 and "doctor" in answer.json["error"]


def test_only_reading_and_only_our_paths(world: World) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert world.page.get("/map/", method).status == 405
    for path in (
        "/map/" + "a" * 300,
        "/",
        "/map",
        "/mapp/",
        "/map/../dashboard.py",
        "/map/static/page.js",
        "/map//etc/passwd",
        "/map/api",
    ):
        assert world.page.get(path).status == (200 if path == "/map" else 404), path


def test_files_are_sent_packed_and_not_twice(world: World) -> None:
    first = world.page.get("/map/page.js", HTTP_ACCEPT_ENCODING="gzip")
    assert first.headers["Content-Encoding"] == "gzip" and first.headers["Cache-Control"] == "no-cache"
    assert gzip.decompress(first.body) == world.page.get("/map/page.js").body
    again = world.page.get("/map/page.js", HTTP_IF_NONE_MATCH=first.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    assert "immutable" in world.page.get("/map/vendor/echarts-6.1.0.min.js").headers["Cache-Control"]
    assert world.page.get("/map/", "HEAD").body == world.page.get("/map/none", "HEAD").body == b""


def packed(name: str) -> bytes:
    file = dashboard.static_file(name)
    return file.packed


def test_a_first_visit_weighs_less_than_700_kb(world: World) -> None:
    index = packed("index.html")
    page = gzip.decompress(index).decode()
    names = {*re.findall(r'(?:src|href)="([\w./-]+)"', page), "vendor/world-2.0.2.json"}
    names |= {f"{name}.js" for name in ("state", "format", "charts", "panels", "picture")}
    weight = len(index) + sum(len(packed(name)) for name in names)
    answer = world.page.get(f"/map/api/view?since={UNTIL - 86400}&until={UNTIL}", HTTP_ACCEPT_ENCODING="gzip")
    assert weight + len(answer.body) < 700_000


def test_equal_questions_at_once_are_worked_out_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    worked = []
    original = world.page.app.view
    monkeypatch.setattr(
        world.page.app, "view", lambda *given: (worked.append(1), time.sleep(0.05), original(*given))[2]
    )
    threads = [
        threading.Thread(target=world.page.ask, args=("view", START + 1, UNTIL - 1)) for _ in range(20)
    ]
    [thread.start() for thread in threads]  # type: ignore[func-returns-value]
    [thread.join() for thread in threads]  # type: ignore[func-returns-value]
    assert len(worked) == 1


def test_live_tells_what_is_new_and_how_the_chain_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "FRESH", 0.0)
    log, db = tmp_path / "iptables.log", str(tmp_path / "knockmap.db")
    now = int(time.time())
    old, new = list(history.lines(now - 600, now - 500, 20)), list(history.lines(now - 5, now, 7, seed=3))
    log.write_bytes(b"".join(old))
    collector = Collector(CollectorOptions(log=str(log), db=db, geo=str(tmp_path / "geo"), free_bytes=0))
    collector.step()
    (tmp_path / "counts").write_text('{"v4": {"seen": 30, "logged": 20, "over_limit": 10}, "v6": null}')
    page = Page(Dashboard(Options(db=db, log=str(log), counts=str(tmp_path / "counts"))))
    before = page.get("/map/api/live?after=0").json
    assert (before["last"], before["events"], before["chain"]["unread"]) == (20, [], 0)
    assert before["chain"]["limit"]["seen"] == 30 and before["chain"]["limit"]["over_limit"] == 10
    with log.open("ab") as file:
        file.writelines(new)
    waiting = page.get("/map/api/live?after=20").json
    assert waiting["last"] == 20 and waiting["chain"]["unread"] > 0
    assert waiting["chain"]["waiting"] < 60
    collector.step()
    after = page.get("/map/api/live?after=20").json
    assert after["last"] == 27 and len(after["events"]) == 7
    seen = []
    for number in range(6):  # every connection sees what is new, also after an answer of its own
        with log.open("ab") as file:
            file.writelines(history.lines(now - 5, now, 1, seed=10 + number))
        collector.step()
        seen.append(page.ask("view", now - 700, now + 1).json["total"])
    assert seen == [28, 29, 30, 31, 32, 33]
    # New lines do not hide how long the first unread one has waited.
    with log.open("ab") as file:
        file.writelines(history.lines(now - 300, now - 299, 1, seed=20))
        file.writelines(history.lines(now - 2, now, 1, seed=21))
    assert 290 < page.get("/map/api/live?after=0").json["chain"]["waiting"] < 400
    collector.note("paused", now)
    assert page.get("/map/api/live?after=33").json["chain"]["paused"] == now


def test_lines_that_were_no_packets_are_shown_with_their_reason(world: World) -> None:
    shown = world.page.ask("unparsed", int(time.time()) - 3600, int(time.time()) + 3600).json
    assert (
        shown["count"] == 1
        and shown["lines"][0]["text"] == "this is no packet"
        and shown["lines"][0]["reason"]
    )
