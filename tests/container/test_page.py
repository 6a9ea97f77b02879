"""The page in a real browser, through Apache with TLS and login: what it says is what SQL on the box says."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from box import Box, history, state
from box.images import client
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.container.conftest import Fab, boxes

GEO = {"KNOCKMAP_GEO_SOURCE": "dbip-city"}
# `PICTURES=tests/pictures invoke test` makes the README's anew.
PICTURES = Path(os.environ.get("PICTURES", state.FOLDER / "pictures"))
PAST_HOURS, PAST_LINES = 36, 6000
# What the browser complains about is kept before anything of ours runs.
WATCH = "window.violations = []; addEventListener('securitypolicyviolation', e => window.violations.push(e.violatedDirective + ' ' + e.blockedURI))"


@dataclass
class Site:
    """A deployed box, its past, and how to log in."""

    box: Box
    url: str
    user: str
    password: str
    until: int

    def sql(self, query: str, **values: Any) -> list[Any]:
        """Rows of a query on the box's own database, run by the box's own Python."""
        program = (
            "import json, sqlite3, sys; db = sqlite3.connect('file:/var/lib/knockmap/collector/knockmap.db?mode=ro', uri=True); "
            "print(json.dumps(db.execute(sys.argv[1], json.loads(sys.argv[2])).fetchall()))"
        )
        status, out = self.box.run(["python3", "-c", program, query, json.dumps(values)])
        assert status == 0, out
        return list(json.loads(out))

    def knock(self) -> None:
        """One SYN to port 22 from this machine, through real netfilter; nobody listens there any more."""
        with socket.socket() as knocking:
            knocking.settimeout(1)
            knocking.connect_ex((self.box.address, 22))


@pytest.fixture(scope="module")
def site(worker_id: str, fab: Callable[..., Fab]) -> Iterator[Site]:
    """On Debian 13 alone: what a browser shows does not depend on the release."""
    with boxes(worker_id) as make:
        box = make("trixie")
        done = fab(box, "deploy", **GEO)
        assert done.rc == 0, done.out
        until = int(time.time())
        box.add_log("iptables.log.past", history.lines(until - PAST_HOURS * 3600, until, PAST_LINES))
        found = json.loads(fab(box, "credentials", "--json").out)
        site = Site(box, found["url"], found["users"][0]["user"], found["users"][0]["password"], until)
        while site.sql("SELECT count(*) FROM event")[0][0] < PAST_LINES:
            time.sleep(0.2)
        yield site


@pytest.fixture(scope="module")
def browser(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium or Chrome is here: ./setup installs it on Debian"
    arguments = []
    if os.getuid() == 0:
        arguments = ["--no-sandbox"]  # which needs a user other than root
        found = beside(site.box, found, tmp_path_factory.mktemp("browser"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


def beside(box: Box, program: str, folder: Path) -> str:
    """A command that starts it in the network of the box, where its address is the same.

    In this machine's network Chromium gives up whatever it loads when a box of another test comes or goes.
    """
    namespace = f"/proc/{client().containers.get(box.container).attrs['State']['Pid']}/ns/net"
    command = folder / "chromium"
    command.write_text(f'#!/bin/sh\nexec nsenter --net={namespace} -- {program} "$@"\n')
    command.chmod(0o755)
    return str(command)


@dataclass
class Visit:
    """A page with all that it asked for and complained about."""

    page: Page
    site: Site
    requests: list[str]
    complaints: list[str]

    def open(self, **asked: Any) -> Visit:
        self.page.goto(f"{self.site.url}?{urlencode(asked)}")
        expect(self.page.locator("body:not(.loading)")).to_be_attached(timeout=15_000)
        return self

    def number(self, name: str) -> int:
        return int("".join(filter(str.isdigit, self.page.locator(f"#{name}").inner_text())))

    def area(self, name: str) -> tuple[float, float, float, float]:
        """x, y, width and height of what is in sight then."""
        self.page.locator(f"#{name}").scroll_into_view_if_needed()
        box = self.page.locator(f"#{name}").bounding_box()
        assert box
        return box["x"], box["y"], box["width"], box["height"]

    def becomes(self, name: str, number: int, seconds: float = 5) -> None:
        expect(self.page.locator(f"#{name}")).to_have_text(
            f"{number:,}".replace(",", "\u202f"), timeout=seconds * 1000
        )

    def whole(self) -> dict[str, int]:
        """A span that does not move any more."""
        return {"from": self.site.until - 24 * 3600, "to": self.site.until}


Open = Callable[..., Visit]


@pytest.fixture
def visit(site: Site, browser: Browser) -> Iterator[Open]:
    """Open the page as somebody with the login; in the end nothing was complained about, and nothing came from elsewhere."""
    contexts: list[BrowserContext] = []
    visits: list[Visit] = []

    def start(quiet: bool = True, **options: Any) -> Visit:
        login = {"username": site.user, "password": site.password}
        options = {"viewport": {"width": 1440, "height": 900}, "timezone_id": "Europe/Berlin", **options}
        context = browser.new_context(ignore_https_errors=True, http_credentials=login, **options)  # type: ignore[arg-type]
        contexts.append(context)
        context.add_init_script(WATCH)
        made = Visit(context.new_page(), site, [], [])
        made.page.on("request", lambda request: made.requests.append(request.url))
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        if quiet:
            made.page.on(
                "console",
                lambda said: made.complaints.append(said.text) if said.type in ("error", "warning") else None,
            )
        visits.append(made)
        return made

    yield start
    violations = [made.page.evaluate("window.violations") for made in visits]
    for context in contexts:  # also where something is complained about: a page left open goes on asking
        context.close()
    for made, violated in zip(visits, violations, strict=True):
        assert violated == []
        assert made.complaints == []
        assert [url for url in made.requests if not url.startswith((site.url, "data:", "blob:"))] == []


FILTERS = {
    "country": "p.country = :country",
    "city": "p.country || '/' || p.city = :city",
    "network": "s.network = :network",
    "address": "s.address = :address",
    "family": "(s.address LIKE '%:%') = (:family = '6')",
    "seen": "(s.first_seen >= :since) = (:seen = 'new')",
    "ttl": "e.ttl BETWEEN :least AND :most",
    "window": "e.window = CAST(:window AS INTEGER)",
    "port": "e.source_port = CAST(:port AS INTEGER)",
}
TTLS = {"32": (0, 32), "64": (33, 64), "128": (65, 128), "255": (129, 255)}


def combinations(site: Site) -> list[dict[str, str]]:
    """Twenty combinations of one to three filters, taken from events that are there."""
    rng = random.Random(20)
    rows = site.sql(
        "SELECT p.country, p.city, s.network, s.address, e.ttl, e.window, e.source_port FROM event e"
        " JOIN source s ON s.id = e.source JOIN place p ON p.id = e.place WHERE p.city <> '' ORDER BY e.ts, e.id"
    )
    found = []
    for row in rng.sample(rows, 20):
        values = dict(
            zip(
                ("country", "city", "network", "address", "ttl", "window", "port"), map(str, row), strict=True
            )
        )
        values["city"] = f"{values['country']}/{values['city']}"
        values["ttl"] = next(start for start, (_, most) in TTLS.items() if row[4] <= most)
        values |= {"family": "6" if ":" in row[3] else "4", "seen": rng.choice(("new", "returning"))}
        names = rng.sample(sorted(values), rng.choice((1, 1, 2, 3)))
        found.append({name: values[name] for name in names})
    return found


def test_numbers_on_the_screen_are_those_of_sql_for_twenty_combinations_of_filters(
    site: Site, visit: Open
) -> None:
    seen = visit()
    rng = random.Random(3)
    for where in combinations(site):
        since = site.until - rng.choice((3600, 6 * 3600, 24 * 3600, PAST_HOURS * 3600))
        values = {**where, "since": since, "until": site.until}
        values |= dict(zip(("least", "most"), TTLS.get(where.get("ttl", ""), (0, 0)), strict=True))
        condition = " AND ".join(FILTERS[name] for name in where)
        wanted = site.sql(
            "SELECT count(*), count(DISTINCT e.source), count(DISTINCT nullif(p.country, '')) FROM event e JOIN source s ON s.id = e.source"
            f" JOIN place p ON p.id = e.place WHERE e.ts >= :since AND e.ts < :until AND {condition}",
            **values,
        )[0]
        seen.open(**{"from": since, "to": site.until}, **where)
        shown = [seen.number(name) for name in ("total", "sources", "country-count")]
        assert shown == wanted, (where, since)


def test_a_syn_shows_within_three_seconds_without_a_reload(site: Site, visit: Open) -> None:
    seen = visit().open(range="7d")
    time.sleep(2)
    before = seen.number("total")
    for more in (1, 2, 3):
        began = time.monotonic()
        site.knock()
        seen.becomes("total", before + more, 3)
        assert time.monotonic() - began < 3
    assert "DPT=22" in seen.page.locator("#line-table .raw").first.inner_text()
    assert not any("?" in url and url.startswith(f"{site.url}?") for url in seen.requests[1:])


def test_pause_holds_the_page_still(site: Site, visit: Open) -> None:
    seen = visit().open(range="7d")
    time.sleep(2)
    seen.page.click("#live")
    before = seen.number("total")
    site.knock()
    time.sleep(3)
    assert seen.number("total") == before
    seen.page.click("#live")
    seen.becomes("total", before + 1)


def test_new_events_flash_on_the_map_where_the_filters_leave_them(site: Site, visit: Open) -> None:
    flashing = "echarts.getInstanceByDom(document.getElementById('map')).getOption().series[1].data.length"
    all_of_them, few = visit().open(), visit().open(network="203.0.113.0/24")
    now = int(time.time())
    site.box.add_log("iptables.log.news", history.lines(now - 2, now, 10, seed=7))
    deadline = time.monotonic() + 10
    while not all_of_them.page.evaluate(flashing):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert few.page.evaluate(flashing) == 0


def test_a_country_on_the_map_filters_everything_and_back_takes_it_away(site: Site, visit: Open) -> None:
    seen = visit()
    seen.open(**seen.whole())
    total = seen.number("total")
    x, y, width, height = seen.area("map")
    # Brazil is there at every size of the map.
    seen.page.mouse.click(x + width * 0.355, y + height * 0.70)
    expect(seen.page.locator("#chips")).to_contain_text("Brazil")
    wanted = site.sql(
        "SELECT count(*) FROM event JOIN place ON place.id = place WHERE country = 'BR' AND ts >= :since AND ts < :until",
        since=site.until - 86400,
        until=site.until,
    )[0][0]
    seen.becomes("total", wanted)
    assert "country=BR" in seen.page.url
    seen.page.go_back()
    seen.becomes("total", total)
    seen.page.go_forward()
    seen.becomes("total", wanted)
    seen.page.click("#chips button")
    seen.becomes("total", total)


def test_dragging_over_the_timeline_zooms_in(visit: Open) -> None:
    seen = visit()
    seen.open(**seen.whole())
    total = seen.number("total")
    x, y, width, _ = seen.area("timeline")
    seen.page.mouse.move(x + width * 0.4, y + 60)
    seen.page.mouse.down()
    seen.page.mouse.move(x + width * 0.6, y + 70, steps=8)
    seen.page.mouse.up()
    expect(seen.page.locator("#range-label")).to_contain_text("–")
    expect(seen.page.locator("#total")).not_to_have_text(f"{total:,}".replace(",", "\u202f"))
    assert 0 < seen.number("total") < total
    seen.page.click("#wider")
    expect(seen.page.locator("#total")).not_to_have_text("0")
    seen.page.go_back()
    seen.page.go_back()
    seen.becomes("total", total)


def test_a_slice_of_the_pie_and_a_row_of_a_table_filter(visit: Open) -> None:
    seen = visit()
    seen.open(**seen.whole())
    x, y, width, height = seen.area("pie")
    # Right beside the top: the largest slice.
    seen.page.mouse.click(
        x + width / 2 + 30,
        y + height / 2 - min(width, height) * 0.245,
    )
    expect(seen.page.locator("#chips li")).to_have_count(2)  # the span is one, too
    for number, table in enumerate(("network-table", "address-table", "ttl-table", "window-table"), 3):
        seen.page.locator(f"#{table} tbody button").first.click()
        expect(seen.page.locator("#chips li button[aria-label]")).to_have_count(number)
    assert seen.number("total") > 0
    seen.page.get_by_role("button", name="time ").click()
    expect(seen.page.locator("#range-label")).to_have_text("Last 24 hours")


def test_a_focused_row_stays_focused_while_new_events_come(site: Site, visit: Open) -> None:
    seen = visit().open(range="7d")  # nothing grows too old for it meanwhile
    total = seen.number("total")
    seen.page.locator("#network-table button").nth(1).focus()
    name = seen.page.evaluate("document.activeElement.textContent")
    site.knock()
    seen.becomes("total", total + 1)
    assert seen.page.evaluate("document.activeElement.textContent") == name
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("#chips")).to_contain_text(name)


def test_all_of_it_works_by_keyboard(visit: Open) -> None:
    seen = visit()
    seen.open(**seen.whole())
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.className") == "skip"
    seen.page.locator("#picker summary").focus()
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("#picker")).to_have_attribute("open", "")
    seen.page.keyboard.press("Escape")
    expect(seen.page.locator("#picker")).not_to_have_attribute("open", "")
    seen.page.locator("section.pie summary").focus()
    seen.page.keyboard.press("Enter")
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("Tab")
    name = seen.page.evaluate("document.activeElement.textContent")
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("#chips")).to_contain_text(name)
    # Bars, too: each stands in a table as a button.
    seen.page.locator("section.timeline summary").focus()
    seen.page.keyboard.press("Enter")
    seen.page.locator("#time-table button").first.focus()
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("#range-label")).to_contain_text("–")


def test_time_picker_takes_presets_relative_and_absolute_times_in_both_zones(site: Site, visit: Open) -> None:
    seen = visit().open()
    seen.page.click("#picker summary")
    seen.page.get_by_role("button", name="6 hours").click()
    expect(seen.page.locator("#range-label")).to_have_text("Last 6 hours")
    seen.page.click("#picker summary")
    seen.page.fill("#amount", "3")
    seen.page.select_option("#unit", "d")
    seen.page.click("#relative button")
    assert "range=3d" in seen.page.url
    seen.page.click("#picker summary")
    seen.page.select_option("#zone", "utc")
    at = [time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(site.until - ago)) for ago in (7200, 3600)]
    seen.page.fill("#from", at[1])
    seen.page.fill("#to", at[0])
    seen.page.click("#absolute button")
    expect(seen.page.locator("#absolute-problem")).to_contain_text("after the start")
    seen.page.fill("#from", at[0])
    seen.page.fill("#to", at[1])
    seen.page.click("#absolute button")
    values = {"since": site.until - 7200, "until": site.until - 3600}
    seen.becomes(
        "total", site.sql("SELECT count(*) FROM event WHERE ts >= :since AND ts < :until", **values)[0][0]
    )
    expect(seen.page.locator("#range-zone")).to_have_text("UTC")


def test_search_and_pages_of_log_lines(site: Site, visit: Open) -> None:
    seen = visit()
    seen.open(**seen.whole())
    first = seen.page.locator("#line-table .raw").first.inner_text()
    seen.page.click("#older")
    expect(seen.page.locator("#line-table .raw").first).not_to_have_text(first)
    seen.page.click("#newest")
    expect(seen.page.locator("#line-table .raw").first).to_have_text(first)
    address = seen.page.locator("#line-table .event button").first.inner_text()
    seen.page.fill("#q", address)
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("#chips")).to_contain_text(address)
    addresses = seen.page.locator("#line-table .event td:nth-child(2)")
    expect(addresses.filter(has_not_text=address)).to_have_count(0)
    expect(addresses.first).to_have_text(address)
    seen.page.fill("#q", "no such thing")
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("#search-problem")).to_contain_text("no address")
    # A country that the filter leaves nothing of is known all the same.
    seen.open(**seen.whole(), country="CN")
    seen.page.fill("#q", "brazil")
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("#chips")).to_contain_text("Brazil")


def test_exports_are_offered_as_files(site: Site, visit: Open, tmp_path: Path) -> None:
    seen = visit()
    seen.open(**seen.whole(), family="6")
    total = seen.number("total")
    for kind, extra in (("csv", 1), ("ndjson", 0)):
        seen.page.click("#export summary")
        with seen.page.expect_download() as download:
            seen.page.click(f"#export-{kind}")
        download.value.save_as(tmp_path / kind)
        assert len((tmp_path / kind).read_text().splitlines()) == total + extra
        seen.page.keyboard.press("Escape")
    if not seen.page.locator("#export-png").is_visible():
        seen.page.click("#export summary")
    with seen.page.expect_download() as download:
        seen.page.click("#export-png")
    download.value.save_as(tmp_path / "view.png")
    assert (tmp_path / "view.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (
        tmp_path / "view.png"
    ).stat().st_size > 50_000


def faults(page: Page) -> list[tuple[str, list[str]]]:
    """What axe finds, by rule; the one of WCAG 2.2 has to be switched on."""
    found = Axe().run(page, options={"rules": {"target-size": {"enabled": True}}}).response["violations"]
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_nothing(visit: Open, scheme: str, width: int) -> None:
    seen = visit(color_scheme=scheme, viewport={"width": width, "height": 844}, reduced_motion="reduce")
    seen.open(**seen.whole(), country="CN")
    for summary in seen.page.locator("details.data > summary").all():
        summary.click()
    seen.page.click("#picker summary")
    assert faults(seen.page) == []


@pytest.mark.parametrize("width", [360, 390, 768, 1440, 3840])
def test_no_width_scrolls_sideways(visit: Open, width: int) -> None:
    seen = visit(viewport={"width": width, "height": 844})
    seen.open(**seen.whole())
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_less_motion_is_respected(site: Site, visit: Open) -> None:
    seen = visit(reduced_motion="reduce").open()
    site.knock()
    time.sleep(2.5)
    moving = "document.getAnimations().filter(animation => animation.playState === 'running').length"
    assert seen.page.evaluate(moving) == 0
    kinds = "echarts.getInstanceByDom(document.getElementById('map')).getOption().series.map(series => series.type)"
    assert seen.page.evaluate(kinds) == ["scatter", "scatter"]
    assert "effectScatter" in visit(reduced_motion="no-preference").open().page.evaluate(kinds)


def test_the_first_visit_is_light_and_soon_painted(visit: Open) -> None:
    seen = visit().open()
    sizes = seen.page.evaluate(
        "[...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')].map(e => e.transferSize)"
    )
    assert len(sizes) > 10 and 300_000 < sum(sizes) < 700_000
    painted = seen.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 1000


def test_nothing_in_the_span_is_said_with_the_next_step(visit: Open) -> None:
    seen = visit().open(**{"from": 1_000_000_000, "to": 1_000_003_600})
    expect(seen.page.locator("#empty")).to_contain_text("No SYN in this span")
    seen.page.goto(f"{seen.site.url}?address=192.0.2.1")
    expect(seen.page.locator("#empty")).to_contain_text("Remove a filter")


def test_a_dashboard_that_is_down_is_said_and_found_again(site: Site, visit: Open) -> None:
    seen = visit(quiet=False).open()
    site.box.run(["systemctl", "stop", "knockmap-dashboard"])
    expect(seen.page.locator("#notices")).to_contain_text("doctor", timeout=8000)
    site.box.run(["systemctl", "start", "knockmap-dashboard"])
    expect(seen.page.locator("#notices")).to_be_empty(timeout=15_000)


def test_a_collector_that_is_down_is_said(site: Site, visit: Open) -> None:
    seen = visit().open()
    site.box.run(["systemctl", "stop", "knockmap-collector"])
    # Also on a host where the log never rests.
    for _ in range(12):
        site.knock()
        time.sleep(1.5)
    expect(seen.page.locator("#notices")).to_contain_text("collector", timeout=5_000)
    site.box.run(["systemctl", "start", "knockmap-collector"])
    expect(seen.page.locator("#notices")).to_be_empty(timeout=10_000)


def test_small_countries_are_on_the_map(visit: Open) -> None:
    seen = visit().open()
    names = seen.page.evaluate(
        "echarts.getMap('world').geoJSON.features.map(feature => feature.properties.name)"
    )
    assert {"SG", "HK", "MO", "MT", "BH", "LU", "MU"} <= set(names)
    # Cut at the antimeridian: no outline runs around the world.
    wide = "echarts.getMap('world').geoJSON.features.filter(f => f.geometry.coordinates.some(p => { const x = p[0].map(c => c[0]); return Math.max(...x) - Math.min(...x) > 181 })).length"
    assert seen.page.evaluate(wide) == 0


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_pictures_for_the_readme(visit: Open, scheme: str) -> None:
    seen = visit(color_scheme=scheme)
    seen.open(**seen.whole())
    seen.page.evaluate("document.getElementById('host').textContent = 'vps.example.net'")
    time.sleep(1)
    PICTURES.mkdir(parents=True, exist_ok=True)
    seen.page.screenshot(
        path=PICTURES / f"page-{scheme}.png",
        clip={"x": 0, "y": 0, "width": 1440, "height": 1130},
        full_page=True,
    )
    assert (PICTURES / f"page-{scheme}.png").stat().st_size > 50_000


def test_the_public_page_needs_no_login_and_shows_no_address(
    site: Site, browser: Browser, fab: Callable[..., Fab]
) -> None:
    assert fab(site.box, "deploy", KNOCKMAP_PUBLIC_PAGE="true", **GEO).rc == 0
    context = browser.new_context(ignore_https_errors=True, reduced_motion="reduce")
    context.add_init_script(WATCH)
    page = context.new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    page.goto(site.url.replace("/map/", "/public/"))
    expect(page.locator("body.public:not(.loading)")).to_be_attached(timeout=15_000)
    expect(page.locator("#total")).not_to_have_text("–")
    time.sleep(2)
    text = page.locator("main").inner_text()
    addresses = [address for (address,) in site.sql("SELECT address FROM source")]
    assert len(addresses) > 100 and not [address for address in addresses if address in text]
    assert "Scanning Countries" in text and "/24" in text and not page.locator("#line-table").is_visible()
    assert (page.evaluate("window.violations"), complaints) == ([], [])
    assert faults(page) == []
    context.close()
