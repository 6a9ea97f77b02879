"""The doubles' packages and how their parts are brought: no Docker, no network."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import deb, download, elasticsearch_package
from tests.doubles.deb import Entry

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CONTROL = "Package: thing\nVersion: 1:2-1\nDescription: first\n second\n"


def members(package: bytes) -> dict[str, bytes]:
    """The files of an ar archive."""
    found, at = {}, len(b"!<arch>\n")
    while at < len(package):
        name, size = package[at : at + 16].decode().strip(), int(package[at + 48 : at + 58])
        found[name] = package[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return found


def data(package: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(members(package)["data.tar.gz"])) as archive:
        return {entry.name: entry for entry in archive}


def test_a_package_names_owners_by_name_and_has_every_folder_above() -> None:
    made = data(deb.build(CONTROL, {}, [Entry("etc/thing/x", b"1", mode=0o660, group="thing")]))
    assert list(made) == ["./etc", "./etc/thing", "./etc/thing/x"]
    file = made["./etc/thing/x"]
    assert (file.uname, file.gname, file.mode, file.size) == ("root", "thing", 0o660, 1)


def test_a_package_is_the_same_whenever_it_is_made() -> None:
    assert deb.build(CONTROL, {"postinst": b"#!/bin/sh\n"}, []) == deb.build(
        CONTROL, {"postinst": b"#!/bin/sh\n"}, []
    )


def test_the_index_says_what_the_package_says_of_itself(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(deb.build(CONTROL, {}, [Entry("usr/x", b"1" * 5000)]))
    assert deb.control_of(tmp_path / "x.deb") == CONTROL + "Installed-Size: 6\n"


def test_a_tree_keeps_links_and_rights_and_stands_on_a_merged_system(tmp_path: Path) -> None:
    (tmp_path / "lib/systemd").mkdir(parents=True)
    (tmp_path / "lib/systemd/x.service").write_text("[Unit]\n")
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "link").symlink_to("run")
    found = {entry.path: entry for entry in deb.folder(tmp_path)}
    assert {"usr/lib", "usr/lib/systemd", "usr/lib/systemd/x.service", "run", "link"} == set(found)
    assert found["run"].mode == 0o755 and found["link"].link == "run"


def test_a_version_that_changed_what_we_edit_is_an_error() -> None:
    with pytest.raises(ValueError, match="exactly once"):
        elasticsearch_package.edited("bin/elasticsearch-env", b"ES_DISTRIBUTION_TYPE=zip\n")


class Flaky(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, and breaks off in the middle of its first answer."""

    asked: list[str | None]

    def do_GET(self) -> None:
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        end = None if self.asked else len(CONTENT) // 2
        self.asked.append(self.headers["Range"])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_: Any) -> None:
        """Nothing to say."""


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(download, "WAIT", 0.0)
    Flaky.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/x"
        server.shutdown()


def test_a_download_goes_on_where_it_broke_off(flaky: str, tmp_path: Path) -> None:
    assert download.bring(flaky, SHA256, tmp_path / "x").read_bytes() == CONTENT
    assert Flaky.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_what_is_not_what_was_pinned_is_not_taken(flaky: str, tmp_path: Path) -> None:
    with pytest.raises(download.DownloadError, match="its SHA-256 is not 0000"):
        download.bring(flaky, "0000", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_where_nobody_answers_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "WAIT", 0.0)
    with pytest.raises(download.DownloadError, match="Is there a network, or a proxy"):
        download.bring("http://127.0.0.1:9/x", SHA256, tmp_path / "x")
