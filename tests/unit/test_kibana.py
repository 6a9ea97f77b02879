"""The task's list, what Kibana is told, and what it shows: every reference resolves, and nothing names what is not there."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from fabfile import saved_objects
from fabfile.engine.resources import Command, File, Resource, Secret, Service, manifest
from fabfile.kibana import resources
from fabfile.saved_objects.dashboard import panels
from fabfile.saved_objects.references import problems
from fabfile.saved_objects.shapes import SavedObject
from fabfile.settings import SettingError, Settings, load
from tests.doubles.queries import lens_query, map_queries, search_query

OBJECTS = saved_objects.objects()


def plan(**values: Any) -> list[Resource]:
    return resources(Settings(**values))


def text(path: str, **values: Any) -> str:
    found = next(r for r in plan(**values) if isinstance(r, File) and r.path == path)
    assert found.text is not None
    return found.text


def one(id: str, objects: list[SavedObject] | None = None) -> SavedObject:
    return next(item for item in objects or OBJECTS if item["id"] == id)


# --- the list ---------------------------------------------------------------------------------------------------


def test_the_list_travels_as_json() -> None:
    assert json.dumps(manifest({"kibana": plan()}))


def test_kibana_starts_with_its_token_and_restarts_when_its_files_change() -> None:
    order = [r.name for r in plan()]
    (service,) = (r for r in plan() if isinstance(r, Service))
    files = {r.name for r in service.restart_on if isinstance(r, File)}
    assert {"/etc/kibana/kibana.yml", "/etc/systemd/system/kibana.service.d/knockmap.conf"} < files
    token = order.index("Kibana's token, its viewers' role and user")
    assert token < order.index("/etc/kibana/kibana.yml") < order.index("kibana.service")
    assert order.index("kibana.service") < order.index("map, charts and lines in Kibana")


def test_no_secret_stands_in_the_manifest() -> None:
    yml = next(r for r in plan() if r.name == "/etc/kibana/kibana.yml")
    assert isinstance(yml, File) and yml.secret and yml.mode == 0o640 and yml.group == "kibana"
    born = {r.secret for r in plan() if isinstance(r, Secret)}
    for line in (yml.text or "").splitlines():
        if any(word in line for word in ("Token:", "password:", "encryptionKey:")):
            assert "@@secret." in line
            name = line.split("@@secret.")[1].split("@@")[0]
            assert name in born | {"kibana_token"}


def test_the_keys_of_what_kibana_keeps_in_elasticsearch_stay_with_it() -> None:
    stay = {r.secret for r in plan() if isinstance(r, Secret) and r.data}
    assert stay == set(re.findall(r"encryptionKey: .*@@secret\.(\w+)@@", text("/etc/kibana/kibana.yml")))
    assert len(stay) == 3


def test_every_command_has_a_guard_that_writes_nothing() -> None:
    assert all(r.unless[1] == "check" for r in plan() if isinstance(r, Command))


def test_elastics_services_are_off_unless_asked_for() -> None:
    assert "map.includeElasticMapsService: false" in text("/etc/kibana/kibana.yml")
    assert "map.includeElasticMapsService: true" in text("/etc/kibana/kibana.yml", kibana_maps_service=True)
    assert "EMS" not in saved_objects.ndjson() and "EMS_TMS" in saved_objects.ndjson(maps_service=True)


def test_the_public_url_is_named_only_where_a_name_is_given() -> None:
    assert "publicBaseUrl" not in text("/etc/kibana/kibana.yml")
    named = text("/etc/kibana/kibana.yml", apache_names=("knocks.example",))
    assert 'server.publicBaseUrl: "https://knocks.example/kibana"' in named


def test_where_elasticsearch_is_elsewhere_there_is_no_kibana(tmp_path: Any) -> None:
    (tmp_path / "key").write_text("id:key")
    assert plan(elastic_hosts=("https://a.example",), elastic_api_key_file=str(tmp_path / "key")) == []


@pytest.mark.parametrize("given", [{"kibana_heap": "100"}, {"kibana_maps_service": "perhaps"}])
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(SettingError, match=rf"^{name} = "):
        load(given, {})


# --- the objects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maps_service", [False, True])
def test_every_reference_resolves_and_is_used(maps_service: bool) -> None:
    assert problems(saved_objects.objects(maps_service=maps_service)) == []


def test_the_same_source_gives_the_same_bytes() -> None:
    assert saved_objects.ndjson() == saved_objects.ndjson()
    assert [json.loads(line)["id"] for line in saved_objects.ndjson().splitlines()] == [
        o["id"] for o in OBJECTS
    ]


def test_the_recipes_map_and_pie_have_their_names() -> None:
    titles = {item["attributes"]["title"] for item in OBJECTS}
    assert {"SSH Scanners", "Scanning Countries", "Timeline", "Log lines", "IPv4 and IPv6"} <= titles


def test_every_object_but_the_views_is_on_the_dashboard() -> None:
    shown = {id for _, id in panels()}
    assert shown == {item["id"] for item in OBJECTS if item["type"] not in ("index-pattern", "dashboard")}


def test_the_dashboard_has_a_first_time_range_and_refreshes() -> None:
    attributes = one("knockmap-dashboard")["attributes"]
    assert attributes["timeRestore"] and (attributes["timeFrom"], attributes["timeTo"]) == ("now-24h", "now")
    assert attributes["refreshInterval"] == {"pause": False, "value": 30000}


def broken_reference(objects: list[SavedObject]) -> None:
    one("knockmap-timeline", objects)["references"][0]["id"] = "elsewhere"


def renamed_reference(objects: list[SavedObject]) -> None:
    one("knockmap-map", objects)["references"][0]["name"] = "layer_9_source_index_pattern"


def document_in_place_of_text(objects: list[SavedObject]) -> None:
    attributes = one("knockmap-dashboard", objects)["attributes"]
    attributes["panelsJSON"] = json.loads(attributes["panelsJSON"])


def no_version(objects: list[SavedObject]) -> None:
    del one("knockmap-lines", objects)["typeMigrationVersion"]


def panel_on_panel(objects: list[SavedObject]) -> None:
    attributes = one("knockmap-dashboard", objects)["attributes"]
    attributes["panelsJSON"] = attributes["panelsJSON"].replace('"x":32', '"x":31')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (broken_reference, "knockmap-timeline: .* elsewhere, which is not there"),
        (renamed_reference, "nobody uses the reference layer_9"),
        (document_in_place_of_text, "panelsJSON must be text"),
        (no_version, "typeMigrationVersion is None"),
        (panel_on_panel, "lies on another"),
    ],
)
def test_the_checker_finds(damage: Any, words: str) -> None:
    objects = copy.deepcopy(OBJECTS)
    damage(objects)
    assert any(re.search(words, line) for line in problems(objects))


# --- what Kibana would ask --------------------------------------------------------------------------------------


def test_the_pie_asks_for_countries_of_scans() -> None:
    asked = lens_query(one("knockmap-scanning-countries"), "now-24h", "now")
    assert asked["aggs"]["bucket"]["terms"]["field"] == "source.geo.country_name"
    assert {"match_phrase": {"event.action": "ssh-scan"}} in asked["query"]["bool"]["filter"]


def test_the_map_asks_for_tiles_documents_and_outlines() -> None:
    asked = map_queries(one("knockmap-map"), "now-24h", "now")
    assert asked["clusters"]["aggs"]["gridSplit"]["geotile_grid"]["field"] == "source.geo.location"
    assert asked["points"]["fields"] == ["source.geo.location"]
    assert "query" not in asked["countries"] or "range" not in json.dumps(asked["countries"]["query"])
    assert asked["countries join 0"]["aggs"]["join"]["terms"]["field"] == "source.geo.country_iso_code"


def test_failed_lines_are_found_by_their_tags() -> None:
    asked = search_query(one("knockmap-failed-lines"), "now-24h", "now")
    assert "*failure*" in json.dumps(asked["query"])
