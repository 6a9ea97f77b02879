"""What is replayed when the stack changes: what Elasticsearch lacks, by a file that Logstash takes for new."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "files/install_elk"), str(ROOT / "files/collector")]

import documents  # noqa: E402
import migrate  # noqa: E402

LINES = [b"line %d" % number for number in range(7)]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The ids in Elasticsearch: at first one of the lines; what is replayed comes there when it is asked for next."""
    ids = {hashlib.sha256(LINES[2]).hexdigest()}
    replayed: list[str] = []

    def search(question: dict[str, Any]) -> dict[str, Any]:
        asked = question["query"]["ids"]["values"]
        assert len(asked) <= migrate.IDS
        found = {"hits": {"hits": [{"_id": id} for id in asked if id in ids]}}
        for file in tmp_path.glob("*.log"):
            replayed[:] = file.read_text().splitlines()
            ids.update(hashlib.sha256(line.encode()).hexdigest() for line in replayed if line != "line 5")
        return found

    monkeypatch.setattr(migrate, "search", search)
    monkeypatch.setattr(migrate, "REPLAY", str(tmp_path))
    monkeypatch.setattr(migrate, "SINCEDB", str(tmp_path / "sincedb"))
    monkeypatch.setattr(migrate, "BATCH", 3)
    monkeypatch.setattr(migrate, "IDS", 2)
    monkeypatch.setattr(migrate, "STALLED", 4)
    monkeypatch.setattr(migrate, "SETTLED", 3)
    monkeypatch.setattr(
        migrate, "time", SimpleNamespace(time=lambda: 1, monotonic=iter(range(99)).__next__, sleep=id)
    )
    monkeypatch.setattr(shutil, "chown", lambda *given: None)
    return ids


def last(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_only_what_is_lacking_is_replayed(
    there: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate.bring(iter(LINES[:5] + LINES[:1]))
    assert last(capsys) == {"lines": 6, "new": 4, "lacking": 0}
    assert len(there) == 5 and not list(tmp_path.iterdir())
    migrate.bring(iter(LINES[:5]))
    assert last(capsys) == {"lines": 5, "new": 0, "lacking": 0}


def test_a_line_that_does_not_come_is_counted_and_the_rest_comes(
    there: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate.bring(iter(LINES))
    assert last(capsys) == {"lines": 7, "new": 6, "lacking": 1}
    assert not list(tmp_path.iterdir())


def test_stamps_of_logstashs_own_clock_are_read() -> None:
    assert documents.epoch({"@timestamp": "2026-11-24T10:00:00.123456789Z"}) == 1795514400
    assert documents.epoch({"@timestamp": "2026-11-24T10:00:00Z"}) == 1795514400


def test_where_nothing_comes_no_more_is_tried(
    there: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate.Replay, "write", lambda self, lines: None)
    migrate.bring(iter(LINES))
    assert last(capsys) == {"lines": 3, "new": 2, "lacking": 2}


def test_an_index_that_is_just_being_made_is_waited_for(
    there: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([migrate.SearchError("503: all shards failed"), {"hits": {"hits": []}}])

    def search(question: dict[str, Any]) -> dict[str, Any]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(migrate, "search", search)
    assert migrate.missing(["a"]) == ["a"]


def test_what_is_stored_is_read_in_pages(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "knockmap.db")
    db.execute("CREATE TABLE line(first INTEGER PRIMARY KEY, count INTEGER NOT NULL, text BLOB NOT NULL)")
    db.execute("CREATE TABLE unparsed(id INTEGER PRIMARY KEY, ts INTEGER, reason TEXT, line BLOB NOT NULL)")
    lines = [b"%d" % number for number in range(500)]
    for first in range(0, 500, 2):
        db.execute(
            "INSERT INTO line VALUES(?, 2, ?)", (first, zlib.compress(b"\n".join(lines[first : first + 2])))
        )
    db.execute("INSERT INTO unparsed VALUES(1, 0, '', ?)", (b"no packet",))
    assert list(migrate.stored(db)) == [*lines, b"no packet"]


def test_a_file_whose_inode_logstash_knows_is_not_taken(
    there: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sincedb").write_text("7 0 65024 4711 1764500000.1 /var/lib/knockmap/replay/1.log\n")
    given = iter("779")
    monkeypatch.setattr(migrate, "inode", lambda file: next(given))
    with migrate.unread(str(tmp_path / "1.log")) as file:
        assert file.name.endswith("1.log.2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.log", "sincedb"]
