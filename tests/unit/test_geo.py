"""The GeoIP data on the operator's side: pinned, cached, never taken unseen."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from fabfile import geo
from fabfile.engine.errors import UsageError
from fabfile.settings import Settings

GOOD = b"a database"
PACKAGE = geo.GeoPackage(
    "@test/mmdb", "1.0.0", {"a.mmdb": hashlib.sha256(GOOD).hexdigest()}, date.today() - timedelta(40), "by us"
)


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
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [4, 60])
def test_half_a_package_is_refused_and_thrown_away(tmp_path: Path, end: int) -> None:
    whole = archive(tmp_path / "p.tgz", GOOD)
    whole.write_bytes(whole.read_bytes()[:end])
    with pytest.raises(UsageError, match="no whole package"):
        geo.unpack(PACKAGE, whole, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_package_that_lacks_a_database_is_refused(tmp_path: Path) -> None:
    other = replace(PACKAGE, members={"b.mmdb": "0" * 64})
    with pytest.raises(UsageError, match="no whole package"):
        geo.unpack(other, archive(tmp_path / "p.tgz", GOOD), tmp_path)


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without npm, whose home and cache are a new folder."""
    for name in ("HOME", "PATH", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("npm_config_registry", raising=False)
    return tmp_path


def test_without_npm_and_registry_it_says_what_else_one_can_do(no_npm: Path) -> None:
    with pytest.raises(UsageError, match="geo_databases"):
        geo.fetch()


class Registry(BaseHTTPRequestHandler):
    """One package, also from the middle on; every answer ends after `most` bytes, as a bad line does it."""

    content = b""
    most = 1 << 30
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.most])

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Registry]]:
    handler = type("Serving", (Registry,), {"asked": []})
    handler.content = archive(tmp_path / "served.tgz", GOOD).read_bytes()
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setitem(geo.PACKAGES, "test", PACKAGE)
    (tmp_path / ".npmrc").write_text(f"fund=false\nregistry = http://127.0.0.1:{server.server_port}/\n")
    yield handler
    server.shutdown()
    server.server_close()


def test_without_npm_it_comes_from_the_registry_of_the_users_npmrc(
    no_npm: Path, served: type[Registry]
) -> None:
    (path,) = geo.fetch("test")
    assert path.read_bytes() == GOOD and served.asked == [("/@test/mmdb/-/mmdb-1.0.0.tgz", None)]
    assert {item.name for item in geo.cache().iterdir()} == {"lock", path.name}
    assert geo.fetch("test") == [path] and len(served.asked) == 1


def test_a_fetch_that_broke_off_goes_on_from_there(no_npm: Path, served: type[Registry]) -> None:
    served.most = 50
    with pytest.raises(UsageError, match="goes on from there"):
        geo.fetch("test")
    served.most = 1 << 30
    (path,) = geo.fetch("test")
    assert path.read_bytes() == GOOD and [wanted for _, wanted in served.asked] == [None, "bytes=50-"]


def test_what_is_no_package_is_thrown_away(no_npm: Path, served: type[Registry]) -> None:
    served.content = b"<html>sign in to this network</html>"
    with pytest.raises(UsageError, match="no whole package"):
        geo.fetch("test")
    assert [item.name for item in geo.cache().iterdir()] == ["lock"]


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


def test_says_how_old_the_data_are_and_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    built = date.today() - timedelta(40)  # not that of PACKAGE: midnight may have come since
    monkeypatch.setitem(geo.PACKAGES, "test", replace(PACKAGE, built=built))
    assert geo.about("test").endswith("40 days old; by us")
    assert "https://db-ip.com" in geo.about()
