"""Resources and their wire form."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from fabfile.engine.resources import INLINE_BYTES, Command, File, Package, Service, blobs, manifest


def test_the_wire_form_keeps_order_and_names_the_task() -> None:
    wire = manifest({"one": [Package("b", "a"), File("/x", text="x")], "two": [File("/y", text="y")]})
    assert [(w["task"], w["id"]) for w in wire] == [
        ("one", "package:b,a"),
        ("one", "file:/x"),
        ("two", "file:/y"),
    ]


def test_a_restart_points_at_the_resource_that_causes_it() -> None:
    drop_in = File("/etc/x.conf", text="x")
    (service,) = manifest({"t": [Service("x.service", restart_on=(drop_in,))]})
    assert service["restart_on"] == ["file:/etc/x.conf"]


def test_a_resource_that_two_tasks_share_travels_once() -> None:
    shared = File("/x", text="x")
    assert len(manifest({"one": [Package("a"), shared], "two": [Package("a"), shared]})) == 2


def test_two_resources_of_one_name_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="already planned"):
        manifest({"one": [File("/x", text="1")], "two": [File("/x", text="2")]})


def test_a_file_has_one_content() -> None:
    with pytest.raises(ValueError, match="one of"):
        File("/x", text="x", absent=True)


def test_a_command_without_a_guard_does_not_exist() -> None:
    with pytest.raises(ValueError, match="guard"):
        Command("x", ("true",), unless=())


def test_resources_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        File("/x").mode = 0  # type: ignore[misc]


def test_large_files_travel_by_their_hash_alone(tmp_path: Path) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    big.write_bytes(b"x" * (INLINE_BYTES + 1))
    small.write_bytes(b"y")
    plan = {"t": [File("/big", source=big), File("/small", source=small)]}
    sha256 = hashlib.sha256(big.read_bytes()).hexdigest()
    first, second = manifest(plan)
    assert first["blob"] == {"sha256": sha256, "size": INLINE_BYTES + 1} and "base64" not in first
    assert second["base64"] == "eQ==" and "blob" not in second
    assert blobs(plan) == {sha256: big}
