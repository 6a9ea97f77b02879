"""Kibana on a real box in front of the real Elasticsearch: its objects, its visitors, and what an operator edited.

Which repository the packages come from, Elastic's or the doubles', is nothing that these tests know.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from box import Box

from fabfile import saved_objects
from tests.container import web
from tests.container.conftest import Fab
from tests.doubles.queries import queries

FabCommand = Callable[..., Fab]
FOLDER = "/usr/local/lib/knockmap/kibana"
SECRETS = "/var/lib/knockmap/secrets"
JOURNAL = "/var/lib/knockmap/journal"
STREAM = "logs-iptables.ssh-default"
DASHBOARD = "/kibana/app/dashboards"
UNCHANGED = "ok, 0 changed, 0 failed, 0 skipped"
# Who knocked, from where, over what: as the pipeline makes it.
SOURCES = (
    ("81.2.69.142", "GB", "United Kingdom", 51.51, -0.13, 20712, "Andrews & Arnold", "ipv4"),
    ("81.2.69.160", "GB", "United Kingdom", 51.51, -0.13, 20712, "Andrews & Arnold", "ipv4"),
    ("216.160.83.56", "US", "United States", 47.25, -122.31, 209, "CenturyLink", "ipv4"),
    ("2001:218::1", "JP", "Japan", 35.69, 139.69, 2914, "NTT", "ipv6"),
)
EACH = 5
# A day of its own: the logins of these tests are knocks of today.
DAY = ("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z")


@pytest.fixture(scope="module")
def box(elastic_box: Box) -> Box:
    return elastic_box


@pytest.fixture(scope="module")
def kibana(fab: FabCommand, box: Box, elastic: dict[str, str]) -> Callable[..., Fab]:
    """`fab … kibana` on the module's box."""

    def run(*words: str, **more: str) -> Fab:
        return fab(box, "kibana", *words, **{**elastic, **more})

    return run


def shell(box: Box, script: str) -> str:
    status, out = box.run(["sh", "-c", script])
    assert status == 0, (script, out)
    return out


def python(box: Box, source: str) -> Any:
    """What a Python source puts into `answer`, with both clients of the box as `es` and `kibana`."""
    lines = ("import json, sys", f"sys.path.insert(0, {FOLDER!r})", "import kibana_api as kibana")
    program = "\n".join((*lines, "es = kibana.elasticsearch", source, "print(json.dumps(answer))"))
    status, out = box.run(["/usr/bin/python3", "-B", "-c", program])
    assert status == 0, out
    return json.loads(out)


def search(box: Box, method: str, path: str, body: Any = None, auth: str = "elastic") -> tuple[int, Any]:
    status, answer = python(box, f"answer = es.call({method!r}, {path!r}, {body!r}, auth={auth!r})")
    return status, answer


def ask(box: Box, method: str, path: str, body: Any = None, user: str = "elastic") -> tuple[int, Any]:
    """A question to Kibana itself, as a user of Elasticsearch."""
    who = "kibana.viewer()" if user == "viewer" else 'es.authorization("elastic")'
    sent = f"json.dumps({body!r}).encode()" if body is not None else "None"
    status, text = python(box, f"answer = kibana.call({method!r}, {path!r}, {sent}, authorization={who})")
    return status, json.loads(text) if text.startswith("{") and "\n" not in text else text


def edit(box: Box, kind: str, id: str, **attributes: Any) -> None:
    """What an operator does in his browser."""
    status, answer = ask(box, "PUT", f"/api/saved_objects/{kind}/{id}", {"attributes": attributes})
    assert status == 200, answer


def stored(box: Box, kind: str, id: str) -> Any:
    body = {"objects": [{"type": kind, "id": id}], "excludeExportDetails": True}
    status, found = ask(box, "POST", "/api/saved_objects/_export", body)
    return found if status == 200 else None


def login(fab: FabCommand, box: Box, elastic: dict[str, str]) -> tuple[str, str]:
    shown = json.loads(fab(box, "credentials", "--json", **elastic).out)
    return shown["users"][0]["user"], shown["users"][0]["password"]


# --- from nothing to a dashboard --------------------------------------------------------------------------------


def test_check_writes_nothing(
    fab: FabCommand, box: Box, kibana: Callable[..., Fab], elastic: dict[str, str]
) -> None:
    for task in ("iptables-log", "syslog-route", "install-elk"):
        done = fab(box, task, **elastic)
        assert done.rc == 0, done.out
    checked = kibana("--check")
    assert checked.rc == 0 and "would change service:kibana.service" in checked.out
    assert box.run(["test", "-e", "/etc/kibana"])[0] == 1 and box.run(["test", "-e", FOLDER])[0] == 1


def test_deploys_and_then_changes_nothing(kibana: Callable[..., Fab]) -> None:
    done = kibana()
    assert done.rc == 0, done.out
    assert kibana().last.endswith(UNCHANGED)
    assert kibana("--check").last.endswith("ok, 0 would change, 0 failed, 0 skipped")


def test_the_key_of_the_import_lives_no_longer_than_that(box: Box) -> None:
    found = search(box, "GET", "/_security/api_key?name=knockmap-*")[1]["api_keys"]
    active = {key["name"] for key in found if not key["invalidated"]}
    assert "knockmap-importer" in {key["name"] for key in found} - active, found
    assert active == {"knockmap-writer", "knockmap-reader", "knockmap-keeper"}


def test_it_listens_on_loopback_only(box: Box) -> None:
    listening = box.run(["ss", "-Hltn"])[1].split()
    assert [word for word in listening if word.endswith(":5601")] == ["127.0.0.1:5601"]


def test_every_reference_of_the_dashboard_is_there(box: Box) -> None:
    body = {"objects": [{"type": "dashboard", "id": "knockmap-dashboard"}], "includeReferencesDeep": True}
    status, text = ask(box, "POST", "/api/saved_objects/_export", body, user="viewer")
    details = json.loads(text.splitlines()[-1])
    assert status == 200 and details["missingRefCount"] == 0
    assert details["exportedCount"] == len(saved_objects.objects())


def documents() -> str:
    """The lines of a `_bulk`: EACH scans of every source, and one line that nobody could parse."""
    now = "2026-11-01T12:00:00Z"
    lines = []
    for ip, iso, country, lat, lon, asn, network, family in SOURCES * EACH:
        place = {"country_iso_code": iso, "country_name": country, "location": {"lat": lat, "lon": lon}}
        owner = {"number": asn, "organization": {"name": network}}
        source = {"ip": ip, "port": 40000, "geo": place, "as": owner}
        scan = {"event": {"action": "ssh-scan"}, "source": source, "network": {"type": family}}
        lines.append({"@timestamp": now, "message": f"SRC={ip} DPT=22", **scan})
    lines.append({"@timestamp": now, "message": "no packet", "tags": ["_grokparsefailure"]})
    return "".join(f'{{"create":{{}}}}\n{json.dumps(line)}\n' for line in lines)


def test_every_panels_query_is_answered_by_elasticsearch(box: Box) -> None:
    """The very queries that Kibana's page sends, asked as its visitors are asked."""
    status, done = search(box, "POST", f"/{STREAM}/_bulk?refresh=true", documents(), "writer")
    assert status == 200 and not done["errors"], done
    asked = queries(saved_objects.objects(), *DAY)
    found = {}
    for name, (index, query) in asked.items():
        status, answer = python(
            box, f"answer = es.call('POST', '/{index}/_search', {query!r}, auth=kibana.viewer())"
        )
        assert status == 200 and answer["_shards"]["failed"] == 0, (name, answer)
        found[name] = answer
    countries = found["knockmap-scanning-countries"]["aggregations"]["bucket"]["buckets"]
    assert [(row["key"], row["doc_count"]) for row in countries] == [
        ("United Kingdom", 2 * EACH),
        ("Japan", EACH),
        ("United States", EACH),
    ]
    families = found["knockmap-families"]["aggregations"]["bucket"]["buckets"]
    assert {row["key"]: row["doc_count"] for row in families} == {"ipv4": 3 * EACH, "ipv6": EACH}
    (first, *_) = found["knockmap-networks"]["aggregations"]["name"]["buckets"]
    assert (first["key"], first["addresses"]["value"]) == ("Andrews & Arnold", 2)
    assert first["number"]["buckets"][0]["key"] == 20712
    tiles = found["knockmap-map: clusters"]["aggregations"]["gridSplit"]["buckets"]
    assert sorted(tile["doc_count"] for tile in tiles) == [EACH, EACH, 2 * EACH]
    assert found["knockmap-map: countries"]["hits"]["total"]["value"] > 200
    outline = found["knockmap-map: countries"]["hits"]["hits"][0]["fields"]["geometry"][0]
    assert outline["type"] in ("Polygon", "MultiPolygon")
    joined = found["knockmap-map: countries join 0"]["aggregations"]["join"]["buckets"]
    assert {row["key"]: row["doc_count"] for row in joined} == {"GB": 2 * EACH, "JP": EACH, "US": EACH}
    assert len(found["knockmap-map: points"]["hits"]["hits"]) == len(SOURCES) * EACH
    assert found["knockmap-lines"]["hits"]["total"]["value"] == len(SOURCES) * EACH
    assert found["knockmap-failed-lines"]["hits"]["total"]["value"] == 1


def test_the_outlines_are_understood_every_one(box: Box) -> None:
    query = {"query": {"exists": {"field": "_ignored"}}}
    assert search(box, "POST", "/knockmap-countries/_count", query)[1]["count"] == 0
    point = {"type": "Point", "coordinates": [10, 51]}
    inside = {"query": {"geo_shape": {"geometry": {"shape": point}}}}
    hits = search(box, "POST", "/knockmap-countries/_search", inside)[1]["hits"]["hits"]
    assert [hit["_id"] for hit in hits] == ["DE"]


# --- one login, and it only reads -------------------------------------------------------------------------------


def test_apaches_login_suffices_and_is_not_passed_on(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    done = fab(box, "apache-proxy", **elastic)
    assert done.rc == 0, done.out
    known = login(fab, box, elastic)
    assert web.ask(box, DASHBOARD).status == 401
    page = web.ask(box, DASHBOARD, known)
    assert page.status == 200, page.body
    # Passed on, it would be nobody's login at Elasticsearch.
    direct = f"answer = kibana.call('GET', '/app/dashboards', authorization={web.basic(known)!r})"
    assert python(box, direct)[0] == 401


def test_apaches_answers_for_the_elastic_stack(fab: FabCommand, box: Box, elastic: dict[str, str]) -> None:
    known = login(fab, box, elastic)
    first = web.ask(box, "/", known)
    assert first.status == 302
    assert first.headers["location"].endswith(f"{DASHBOARD}#/view/knockmap-dashboard")
    assert web.ask(box, "/map/", known).status == 404
    assert (
        web.ask(box, "/kibana/login?next=x", known).headers["location"].endswith("/view/knockmap-dashboard")
    )
    of_users = (
        "internal/security/users/knockmap_viewer/password"  # by which any visitor could shut the others out
    )
    for space in ("", "s/default/"):  # Kibana takes every path within a space, too
        for path in ("internal/security/login", of_users, "api/console/proxy?path=_security/user"):
            refused = web.ask(box, f"/kibana/{space}{path}", known, method="POST")
            assert refused.status == 404 and "<html>" in refused.body, refused.body
    assert web.ask(box, "/kibana/app/home", known, method="TRACE").status == 405
    page = web.ask(box, DASHBOARD, known)
    assert page.headers["content-security-policy"].count("script-src") == 1
    assert "default-src" not in page.headers["content-security-policy"]


def test_a_visitor_searches_through_apache_and_changes_nothing(
    fab: FabCommand, box: Box, elastic: dict[str, str]
) -> None:
    known = login(fab, box, elastic)
    session = web.ask(box, DASHBOARD, known).headers["set-cookie"].split(";")[0]
    inside = {"kbn_xsrf": "true", "x_elastic_internal_origin": "Kibana", "elastic_api_version": "1"}
    assert web.ask(box, "/kibana/internal/search/ese", known, method="POST", **inside).status == 401
    day = {"range": {"@timestamp": {"gte": DAY[0], "lte": DAY[1]}}}
    asked = {"params": {"index": "logs-iptables.ssh-*", "body": {"size": 0, "query": day}}}
    posted = post(box, known, "/kibana/internal/search/ese", asked, Cookie=session, **inside)
    assert posted["rawResponse"]["hits"]["total"]["value"] == len(SOURCES) * EACH + 1
    change = {"attributes": {"title": "mine"}}
    refused = post(
        box, known, "/kibana/api/saved_objects/map/knockmap-map", change, "PUT", Cookie=session, **inside
    )
    assert refused["statusCode"] == 403
    foreign = {"params": {"index": ".security*", "body": {}}}
    found = post(box, known, "/kibana/internal/search/ese", foreign, Cookie=session, **inside)
    assert found.get("statusCode") == 403 or found["rawResponse"]["hits"]["total"]["value"] == 0


def post(
    box: Box, known: tuple[str, str], path: str, body: Any, method: str = "POST", **headers: str
) -> dict[str, Any]:
    connection = web.Web(box).connection
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    sent |= {"Authorization": web.basic(known), "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body), sent)
    found = json.loads(connection.getresponse().read())
    connection.close()
    return dict(found)


def test_the_viewer_may_not_import(box: Box) -> None:
    lines = (
        f"sys.path.insert(0, {FOLDER!r})",
        "import objects",
        "body, kind = objects.multipart(open(objects.FILE).read())",
        "answer = kibana.call('POST', '/api/saved_objects/_import?overwrite=true', body, kind=kind, authorization=kibana.viewer())",
    )
    assert python(box, "\n".join(lines))[0] == 403


def test_credentials_tells_the_operators_way(fab: FabCommand, box: Box, elastic: dict[str, str]) -> None:
    shown = fab(box, "credentials", **elastic).out
    assert "/kibana/\n" in shown and "-L 5601:127.0.0.1:5601" in shown
    assert f"{SECRETS}/elastic_password" in shown
    assert shell(box, f"cat {SECRETS}/elastic_password").strip() not in shown


def test_the_operator_logs_in_by_the_tunnels_form(box: Box) -> None:
    """What the browser does at the other end of the tunnel: the hint leads to the form, and that to a session."""
    lines = (
        "import http.client as h",
        "c = h.HTTPConnection('127.0.0.1', 5601)",
        "c.request('GET', '/kibana/app/home?auth_provider_hint=basic1')",
        "r = c.getresponse(); r.read()",
        "given = {'username': 'elastic', 'password': es.secret('elastic_password')}",
        "form = {'providerType': 'basic', 'providerName': 'basic1', 'currentURL': '/', 'params': given}",
        "sent = {'kbn-xsrf': 'true', 'x-elastic-internal-origin': 'Kibana', 'Content-Type': 'application/json'}",
        "c.request('POST', '/kibana/internal/security/login', json.dumps(form), sent)",
        "r2 = c.getresponse(); r2.read()",
        "answer = [r.status, r.getheader('Location'), r2.status, (r2.getheader('Set-Cookie') or '')[:4]]",
    )
    first, where, status, cookie = python(box, "\n".join(lines))
    assert first == 302 and where.startswith("/kibana/login?")
    assert (status, cookie) == (200, "sid=")


def test_kibana_refuses_what_it_is_to_refuse(box: Box) -> None:
    get = "import http.client as h\nc = h.HTTPConnection('127.0.0.1', 5601)\n"
    assert python(box, get + "c.request('GET', '/api/status')\nanswer = c.getresponse().status") == 404
    bare = "{'Authorization': es.authorization('elastic'), 'Content-Type': 'application/json'}"
    lines = f"c.request('POST', '/kibana/api/saved_objects/_export', b'{{}}', {bare})\nanswer = c.getresponse().status"
    assert python(box, get + lines) == 400  # no kbn-xsrf
    assert (
        ask(box, "POST", "/internal/search/ese", {"params": {"index": "x"}})[0] == 400
    )  # not from its own page


# --- what becomes of edits --------------------------------------------------------------------------------------


def test_an_operators_edit_survives_and_is_said(box: Box, kibana: Callable[..., Fab]) -> None:
    edit(box, "lens", "knockmap-timeline", title="My timeline")
    done = kibana()
    assert done.rc == 0 and done.last.endswith(UNCHANGED)
    assert "lens:knockmap-timeline in Kibana was edited there and stays as it is" in done.out
    assert stored(box, "lens", "knockmap-timeline")["attributes"]["title"] == "My timeline"


def test_a_new_version_of_an_edited_object_comes_beside_it(box: Box, kibana: Callable[..., Fab]) -> None:
    edit(box, "map", "knockmap-map", title="My map")
    done = kibana(KNOCKMAP_KIBANA_MAPS_SERVICE="true")
    assert done.rc == 0, done.out
    assert "our new version is beside it as map:knockmap-map-new" in done.out
    assert stored(box, "map", "knockmap-map")["attributes"]["title"] == "My map"
    beside = stored(box, "map", "knockmap-map-new")["attributes"]
    assert beside["title"] == "SSH Scanners (new)" and "EMS_TMS" in beside["layerListJSON"]
    assert kibana(KNOCKMAP_KIBANA_MAPS_SERVICE="true").last.endswith(UNCHANGED)


def test_his_own_objects_are_left_alone(box: Box, kibana: Callable[..., Fab]) -> None:
    lines = (
        "import objects",
        "mine = {'type': 'search', 'id': 'mine', 'attributes': {'title': 'Mine', 'kibanaSavedObjectMeta': {'searchSourceJSON': '{}'}}, 'references': [], 'typeMigrationVersion': '10.5.0'}",
        "body, kind = objects.multipart(json.dumps(mine))",
        "answer = kibana.call('POST', '/api/saved_objects/_import', body, kind=kind, authorization=es.authorization('elastic'))",
    )
    status, text = python(box, "\n".join(lines))
    assert status == 200 and json.loads(text)["success"], text
    before = stored(box, "search", "mine")
    assert kibana().rc == 0
    assert stored(box, "search", "mine") == before


def test_what_somebody_removed_is_back(box: Box, kibana: Callable[..., Fab]) -> None:
    status, text = ask(box, "DELETE", "/api/saved_objects/map/knockmap-map")
    assert status == 200, text
    done = kibana()
    assert done.rc == 0 and "map, charts and lines in Kibana" in done.out, done.out
    assert stored(box, "map", "knockmap-map")["attributes"]["title"] == "SSH Scanners"


def test_objects_survive_a_restart(box: Box, kibana: Callable[..., Fab]) -> None:
    shell(box, "systemctl restart kibana")
    assert kibana().last.endswith(UNCHANGED) or kibana().last.endswith(UNCHANGED)


# --- drift, and reasons -----------------------------------------------------------------------------------------


def test_drift_is_repaired(box: Box, kibana: Callable[..., Fab]) -> None:
    shell(box, "echo 'server.host: \"0.0.0.0\"' >/etc/kibana/kibana.yml; systemctl stop kibana")
    search(box, "DELETE", "/_security/role/knockmap_viewer")
    search(box, "DELETE", "/knockmap-countries")
    done = kibana()
    assert done.rc == 0, done.out
    for what in ("file:/etc/kibana/kibana.yml", "outlines of the countries", "viewers' role and user"):
        assert what in done.out
    assert kibana().last.endswith(UNCHANGED)


def test_a_token_that_elasticsearch_does_not_know_is_made_anew(box: Box, kibana: Callable[..., Fab]) -> None:
    former = shell(box, f"cat {SECRETS}/kibana_token")
    search(box, "DELETE", "/_security/service/elastic/kibana/credential/token/knockmap")
    done = kibana()
    assert done.rc == 0 and "service:kibana.service" in done.out, done.out
    assert shell(box, f"cat {SECRETS}/kibana_token") != former
    assert kibana().last.endswith(UNCHANGED)


def test_the_encryption_keys_are_kept(box: Box, kibana: Callable[..., Fab]) -> None:
    keys = f"cat {SECRETS}/kibana_encryption_*"
    before = shell(box, keys)
    assert kibana(KNOCKMAP_KIBANA_HEAP="600").rc == 0
    assert shell(box, keys) == before and kibana().rc == 0


def test_why_kibana_does_not_come_is_said(box: Box, kibana: Callable[..., Fab]) -> None:
    taken = "systemd-run -q --unit=squatter python3 -m http.server 5601 --bind 127.0.0.1"
    shell(box, f"systemctl stop kibana; {taken}; sleep 1")
    failed = kibana()
    assert failed.rc == 1 and "port: 127.0.0.1:5601 is held by" in failed.out, failed.out
    shell(box, "systemctl stop squatter")
    assert kibana().rc == 0


def test_renewed_secrets_let_kibana_and_its_visitors_in(
    fab: FabCommand, box: Box, elastic: dict[str, str], kibana: Callable[..., Fab]
) -> None:
    names = (
        "kibana_token",
        "kibana_viewer_password",
        "elastic_password",
        "writer_key",
        "reader_key",
        "keeper_key",
    )
    former = [shell(box, f"cat {SECRETS}/{name}") for name in names]
    renewed = fab(box, "rotate-secrets", **elastic)
    assert renewed.rc == 0, renewed.out
    assert all(shell(box, f"cat {SECRETS}/{name}") != old for name, old in zip(names, former, strict=True))
    refused = f"answer = es.call('GET', '/', auth=es.bearer({former[0].strip()!r}))[0]"
    assert python(box, refused) == 401
    status, answer = ask(box, "GET", "/api/status", user="viewer")
    assert status == 200 and answer["status"]["overall"]["level"] == "available"
    assert kibana().last.endswith(UNCHANGED)


def test_secrets_are_in_their_places_only(box: Box) -> None:
    names = shell(box, f"ls {SECRETS}").split()
    for name in (name for name in names if name.startswith(("kibana_", "elastic_"))):
        value = shell(box, f"cat {SECRETS}/{name}").strip()
        found = box.run(["grep", "-rlF", "--", value, "/etc", "/var", "/root", "/tmp", "/usr/local", "/run"])[
            1
        ]
        others = [path for path in found.split() if not path.startswith((SECRETS, JOURNAL))]
        assert others in ([], ["/etc/kibana/kibana.yml"]), (name, found)
    assert shell(box, f"stat -c %a {JOURNAL} {SECRETS}").split() == ["700", "700"]
    assert "640 root kibana" in shell(box, "stat -c '%a %U %G' /etc/kibana/kibana.yml")


def test_an_upgrade_of_the_others_takes_kibana_along_and_it_alone_moves_not(
    fab: FabCommand,
    box: Box,
    elastic: dict[str, str],
    elastic_next: dict[str, str],
    kibana: Callable[..., Fab],
) -> None:
    higher = elastic_next["KNOCKMAP_ELASTIC_VERSION"]
    refused = kibana(**elastic_next)
    assert refused.rc == 1 and "Elasticsearch, Logstash and Kibana move together" in refused.out, refused.out
    upgraded = fab(box, "install-elk", **elastic_next)
    assert upgraded.rc == 0, upgraded.out
    names = "elasticsearch kibana logstash"
    versions = shell(box, f"dpkg-query -W -f '${{Version}} ' {names}").split()
    assert versions == [higher, higher, f"1:{higher}-1"]
    assert set(shell(box, "apt-mark showhold").split()) >= set(names.split())
    assert web.ask(box, DASHBOARD, login(fab, box, elastic)).status == 200
    assert fab(box, "install-elk", **elastic_next).last.endswith(UNCHANGED)
    assert kibana(**elastic_next).last.endswith(UNCHANGED)


def test_undo_puts_everything_back(fab: FabCommand, box: Box, elastic: dict[str, str]) -> None:
    keys = f"cat {SECRETS}/kibana_encryption_*"
    former = shell(box, keys)
    checked = fab(box, "undo", "kibana", "--check", "--verbose", **elastic)
    assert checked.out.count("kept, since data are encrypted with it") == 3, checked.out
    done = fab(box, "undo", "kibana", **elastic)
    assert done.rc == 0, done.out
    assert shell(box, keys) == former  # of what Kibana has in Elasticsearch, which stays
    assert shell(box, f"ls {SECRETS} | grep -c ^kibana_").strip() == "3"
    assert box.run(["test", "-e", FOLDER])[0] == 1
    assert "knockmap" not in shell(box, "cat /etc/kibana/kibana.yml")
    assert shell(box, "systemctl is-active kibana || true").strip() == "inactive"
    call = "sys.path.insert(0, '/usr/local/lib/knockmap/install_elk')\nimport elasticsearch as es"
    for path in ("/_security/user/knockmap_viewer", "/_security/role/knockmap_viewer", "/knockmap-countries"):
        program = f"import sys\n{call}\nprint(es.call('GET', {path!r})[0])"
        assert box.run(["/usr/bin/python3", "-B", "-c", program])[1].strip() == "404"
