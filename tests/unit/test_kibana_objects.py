"""What counts as an operator's edit, and how outlines are made fit for Elasticsearch: the programs on the target."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fabfile.kibana import WORLD
from fabfile.saved_objects import objects as built

FILES = Path(__file__).parents[2] / "files"


@pytest.fixture(scope="module", autouse=True)
def neighbours() -> Any:
    """The programs import each other by bare name."""
    folders = [str(FILES / name) for name in ("kibana", "install_elk", "collector")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"knockmap_kibana_{name}", FILES / "kibana" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ITEM = next(item for item in built() if item["id"] == "knockmap-timeline")
SAVED = {**ITEM, "created_at": "2026-11-24T10:00:00.000Z", "updated_at": "2026-11-24T10:00:00.000Z"}


def changed(**more: Any) -> dict[str, Any]:
    return {**SAVED, "attributes": {**ITEM["attributes"], "title": "Another"}, **more}


def known() -> dict[str, str]:
    stored = program("objects").fingerprint(SAVED)
    return {"ours": stored, "stored": stored, "updated_at": SAVED["updated_at"]}


def test_an_object_that_was_saved_with_another_content_is_edited() -> None:
    edited = program("objects").edited
    assert edited(changed(updated_at="2026-11-24T11:00:00.000Z"), known())


def test_an_upgrade_of_kibana_is_no_edit() -> None:
    """It changes attributes and versions, and not when an object was saved."""
    edited = program("objects").edited
    assert not edited(changed(typeMigrationVersion="10.9.0"), known())


def test_saving_without_a_change_is_no_edit() -> None:
    edited = program("objects").edited
    assert not edited({**SAVED, "updated_at": "2026-11-24T11:00:00.000Z"}, known())


def test_what_we_do_not_remember_is_his_if_he_saved_it() -> None:
    edited = program("objects").edited
    assert not edited(SAVED, None) and not edited(None, None)
    assert edited({**SAVED, "updated_at": "2026-11-24T11:00:00.000Z"}, None)


def test_a_new_version_beside_an_edited_one_has_an_id_and_a_title_of_its_own() -> None:
    copy = program("objects").beside(ITEM)
    assert copy["id"] == "knockmap-timeline-new" and copy["attributes"]["title"] == "Timeline (new)"
    assert copy["references"] == ITEM["references"] and ITEM["attributes"]["title"] == "Timeline"


def test_the_form_of_the_import_is_one_that_a_form_reader_understands() -> None:
    body, kind = program("objects").multipart('{"a": 1}\n')
    assert kind.startswith("multipart/form-data; boundary=") and b'filename="knockmap.ndjson"' in body
    assert body.endswith(b"--\r\n") and b'\r\n\r\n{"a": 1}\n\r\n' in body


def test_outlines_run_as_elasticsearch_wants_them() -> None:
    """Counter-clockwise outside, clockwise inside: a wide ring that runs the other way goes over the date line."""
    outlines = program("outlines")
    clockwise = [[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]
    shape = {"type": "Polygon", "coordinates": [clockwise, clockwise[::-1]]}
    turned = outlines.geometry(shape)
    assert turned == {"type": "MultiPolygon", "coordinates": [[clockwise[::-1], clockwise]]}
    assert outlines.geometry(turned) == turned


def test_every_country_is_one_document_with_its_name() -> None:
    outlines = program("outlines")
    features = json.loads(WORLD.read_text())["features"]
    lines = [json.loads(line) for line in outlines.lines(features).splitlines()]
    actions, documents = lines[::2], lines[1::2]
    ids = [action["index"]["_id"] for action in actions]
    assert len(ids) == len(set(ids)) == outlines.number(features) > 200
    names = {document["iso_code"]: document["name"] for document in documents}
    assert names["DE"] == "Germany" and names["US"] == "United States"
