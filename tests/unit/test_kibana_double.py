"""The double of Kibana can fail us: each of these configurations and objects is one that Kibana would not take."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fabfile import saved_objects
from fabfile.kibana import resources
from fabfile.settings import Settings

DOUBLE = Path(__file__).parents[1] / "doubles/kibana/root/usr/share/kibana/double"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kibana_double_{name}", DOUBLE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


config, objects = module("config"), module("saved_objects")


# --- kibana.yml -------------------------------------------------------------------------------------------------


def ours(tmp_path: Path, **settings: Any) -> str:
    """Our own kibana.yml, with secrets as the target has them."""
    found = next(r for r in resources(Settings(**settings)) if r.name == "/etc/kibana/kibana.yml")
    authority = tmp_path / "ca.crt"
    authority.write_text("")
    text = str(getattr(found, "text", "")).replace("/etc/kibana/certs/http_ca.crt", str(authority))
    for word in (
        "kibana_token",
        "kibana_viewer_password",
        *(f"kibana_encryption_{n}" for n in ("objects", "sessions", "reports")),
    ):
        text = text.replace(f"@@secret.{word}@@", "x" * 40)
    return text


def load(tmp_path: Path, text: str) -> dict[str, Any]:
    (tmp_path / "kibana.yml").write_text(text)
    return dict(config.load(str(tmp_path)))


@pytest.mark.parametrize("settings", [{}, {"kibana_maps_service": True}, {"apache_names": ("a.example",)}])
def test_our_configuration_is_taken(tmp_path: Path, settings: dict[str, Any]) -> None:
    loaded = load(tmp_path, ours(tmp_path, **settings))
    assert loaded["server.host"] == "127.0.0.1" and loaded["server.basePath"] == "/kibana"
    assert config.providers(loaded)[("anonymous", "anonymous1")]["credentials.username"] == "knockmap_viewer"
    assert loaded["logging.root.appenders"] == ["default", "file"]


def test_the_packages_own_configuration_is_taken(tmp_path: Path) -> None:
    shipped = (DOUBLE.parents[3] / "etc/kibana/kibana.yml").read_text()
    assert load(tmp_path, shipped)["pid.file"] == "/run/kibana/kibana.pid"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("telemetry.optIn: false", "telemetry.optin: false", "definition for this key is missing"),
        ("newsfeed.enabled: false", "xpack.security.enabled: true", "definition for this key is missing"),
        ("newsfeed.enabled: false", 'elasticsearch.url: "x"', "definition for this key is missing"),
        ("server.port: 5601", 'server.port: "5601"', r"expected value of type \[number\]"),
        ("newsfeed.enabled: false", 'newsfeed.enabled: "no"', r"expected value of type \[boolean\]"),
        ('basePath: "/kibana"', 'basePath: "/kibana/"', "must start with a slash, don't end with one"),
        ('basePath: "/kibana"', 'basePath: "kibana"', "must start with a slash"),
        ('server.basePath: "/kibana"\n', "", r"cannot use \[rewriteBasePath\]"),
        ("server.port: 5601", 'server.publicBaseUrl: "https://a.example"', r"must contain the \[basePath\]"),
        ("server.port: 5601", "server.port: 5601\nserver.port: 5602", "duplicated mapping key"),
        ("server.port: 5601", 'elasticsearch.username: "elastic"', 'value of "elastic" is forbidden'),
        (
            "server.port: 5601",
            'elasticsearch.username: "kibana_system"\nelasticsearch.password: "x"',
            'when "username" is also set',
        ),
        (
            'xpack.reporting.encryptionKey: "' + "x" * 40,
            'xpack.reporting.encryptionKey: "short',
            r"minimum length of \[32\]",
        ),
        ("  basic.basic1:\n    order: 1", "  basic.basic1:\n    order: 0", "same order"),
        ("  basic.basic1:\n    order: 1", "  anonymous.other:\n    order: 1", 'Only one "anonymous"'),
        ("/ca.crt", "/nowhere.crt", "cannot open the certificate authority"),
        ("  root:", "\troot:", "tab characters"),
    ],
)
def test_a_configuration_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = ours(tmp_path)
    assert old in text
    with pytest.raises(config.Invalid, match=words):
        load(tmp_path, text.replace(old, new, 1))


# --- saved objects ----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return objects.Store(str(tmp_path / "objects.json"))


def imported(store: Any, items: list[dict[str, Any]], overwrite: bool = True) -> dict[str, Any]:
    return dict(store.bring_in(objects.read_ndjson("\n".join(map(json.dumps, items)).encode()), overwrite))


def test_our_objects_are_taken_and_complete(store: Any) -> None:
    answer = imported(store, saved_objects.objects())
    assert answer["success"] and answer["successCount"] == len(saved_objects.objects())
    found, missing = store.export([{"type": "dashboard", "id": "knockmap-dashboard"}], deep=True)
    assert missing == [] and len(found) == answer["successCount"]


def test_objects_are_there_after_a_restart(store: Any) -> None:
    imported(store, saved_objects.objects())
    assert objects.Store(store.path).items == store.items


def change(id: str, key: str, value: Any) -> list[dict[str, Any]]:
    """Our objects, one of them with something else at a dotted key; `...` removes it."""
    items = copy.deepcopy(saved_objects.objects())
    at: Any = next(item for item in items if item["id"] == id)
    *way, last = key.split(".")
    for step in way:
        at = at[int(step) if isinstance(at, list) else step]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return items


@pytest.mark.parametrize(
    ("id", "key", "value", "kind", "words"),
    [
        ("knockmap-timeline", "type", "tile_map", "unsupported_type", ""),
        ("knockmap-timeline", "references.0.id", "gone", "missing_references", "gone"),
        ("knockmap-dashboard", "typeMigrationVersion", "11.0.0", "unknown", "more recent version of Kibana"),
        ("knockmap-dashboard", "attributes.panelsJSON", [], "unknown", r"\[string\] but got \[Array\]"),
        ("knockmap-dashboard", "attributes.refreshInterval", {"value": 1}, "unknown", "both pause and value"),
        ("knockmap-dashboard", "attributes.colour", "red", "unknown", "definition for this key is missing"),
        ("knockmap-map", "attributes.layerListJSON", {}, "unknown", r"\[string\] but got \[Object\]"),
        (
            "knockmap-map",
            "references.0.name",
            "layer_9_source_index_pattern",
            "unknown",
            "Could not find reference",
        ),
        ("knockmap-lines", "attributes.kibanaSavedObjectMeta", ..., "unknown", "searchSourceJSON"),
        ("knockmap-lines", "attributes.title", ..., "unknown", "title"),
        ("knockmap-networks", "references.0.name", "layer1", "unknown", "Could not find reference"),
    ],
)
def test_an_object_is_refused(store: Any, id: str, key: str, value: Any, kind: str, words: str) -> None:
    answer = imported(store, change(id, key, value))
    assert not answer["success"]
    (error, *_) = (error for error in answer["errors"] if error["id"] == id)
    assert error["error"]["type"] == kind
    assert re.search(words, json.dumps(error["error"]).replace("\\\\", "\\"))


def test_an_object_without_its_version_breaks_the_whole_import(store: Any) -> None:
    with pytest.raises(objects.Bad) as refused:
        imported(store, change("knockmap-timeline", "typeMigrationVersion", ...))
    assert refused.value.status == 500


def test_what_is_there_already_is_a_conflict_unless_it_may_be_overwritten(store: Any) -> None:
    imported(store, saved_objects.objects())
    again = imported(store, saved_objects.objects(), overwrite=False)
    assert {error["error"]["type"] for error in again["errors"]} == {"conflict"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "Unexpected token"),
        (b'{"type":"map","id":"a"}\n{"type":"map","id":"a"}', "Non-unique import objects"),
    ],
)
def test_a_file_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(objects.Bad, match=words):
        objects.read_ndjson(raw)


def test_an_export_of_what_is_not_there_names_it(store: Any) -> None:
    with pytest.raises(objects.Bad) as refused:
        store.export([{"type": "map", "id": "gone"}], deep=False)
    assert refused.value.status == 400 and refused.value.more["attributes"]["objects"][0]["id"] == "gone"


def test_it_calls_itself_a_double() -> None:
    root = DOUBLE.parents[4]
    for path in (
        "debian/control",
        "root/lib/systemd/system/kibana.service",
        "root/usr/share/kibana/double/main.py",
    ):
        assert "DOUBLE" in (root / path).read_text()
