"""What one sees of a run: lines, the count, the live line of a terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from fabfile.engine.report import LiveLine, Report, Result, Screen, colourful, failure_document


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(out: io.StringIO | None = None, **options: Any) -> Screen:
    out = out or io.StringIO()
    return Screen("vps", out, LiveLine(out), **options)


def shown(*events: dict[str, Any], check: bool = False, **options: Any) -> str:
    one = screen(**options)
    for event in events:
        one.event(event, check)
    return str(one.out.getvalue())  # type: ignore[attr-defined]


def result(status: str, id: str = "file:/etc/x", **more: str) -> dict[str, Any]:
    return {"event": "result", "id": id, "task": "t", "status": status, **more}


def test_counts_are_the_last_line() -> None:
    results = [Result("a", "t", "ok"), Result("b", "t", "ok"), Result("c", "t", "changed")]
    report = Report("vps", results=tuple(results))
    assert report.summary == "2 ok, 1 changed, 0 failed, 0 skipped"
    assert Report("vps", True, tuple(results)).summary == "2 ok, 1 would change, 0 failed, 0 skipped"


def test_reports_of_stages_add_up() -> None:
    first = Report("vps", results=(Result("a", "t", "changed"),), notices=("one",), data=(1,))
    both = first + Report("vps", check=True, results=(Result("b", "t", "failed"),), notices=("two",))
    assert both == Report("vps", True, (*first.results, Result("b", "t", "failed")), ("one", "two"), (1,))
    assert (both.ok, both.changed, first.ok) == (False, True, True)


@pytest.mark.parametrize(
    ("status", "verbose", "line"),
    [
        ("changed", False, "changed  file:/etc/x  new\n"),
        ("ok", False, ""),
        ("ok", True, "ok       file:/etc/x\n"),
        ("skipped", False, ""),
        ("skipped", True, "skipped  file:/etc/x\n"),
    ],
)
def test_one_line_for_each_resource_that_matters(status: str, verbose: bool, line: str) -> None:
    assert shown(result(status, message="new" if status == "changed" else ""), verbose=verbose) == line


def test_an_ok_that_has_something_to_say_is_shown() -> None:
    assert shown(result("ok", message="kept: tree")) == "ok       file:/etc/x  kept: tree\n"


def test_check_mode_does_not_claim_a_change() -> None:
    assert shown(result("changed"), check=True) == "would change file:/etc/x\n"


def test_diffs_and_output_are_indented_under_their_line() -> None:
    text = shown(result("failed", message="refused", diff="-a\n+b\n", output="E: no\n"))
    assert text.splitlines()[-3:] == ["    -a", "    +b", "    E: no"]


def test_a_target_cannot_steer_the_terminal() -> None:
    text = shown(
        result("changed", message="\x1b]0;x\x07", diff="+\x1b[2J"), {"event": "notice", "text": "\x9b1A"}
    )
    assert not set(text) & {"\x1b", "\x07", "\x9b"}


def test_json_shows_no_lines() -> None:
    assert shown(result("changed"), {"event": "notice", "text": "x"}, silent=True) == ""


def test_the_live_line_is_overwritten_and_gone_before_a_line_is_written() -> None:
    out = Terminal()
    one = screen(out)
    one.event({"event": "start", "id": "package:rsyslog"})
    one.event({"event": "progress", "id": "package:rsyslog", "text": "unpacking"})
    one.event(result("changed"))
    assert out.getvalue().count("\n") == 1
    assert "\r\x1b[Kchanged  file:/etc/x\n" in out.getvalue()
    one.live.drop("vps")
    assert out.getvalue().endswith("\r\x1b[K")


def test_without_a_terminal_there_is_no_live_line() -> None:
    progress = {"event": "progress", "id": "a", "text": "x"}
    assert shown({"event": "start", "id": "a"}, progress) == ""


def test_colours_are_for_terminals_that_want_them() -> None:
    assert colourful(Terminal(), {})
    assert not colourful(Terminal(), {"NO_COLOR": "1"})
    assert not colourful(Terminal(), {"TERM": "dumb"})
    assert not colourful(io.StringIO(), {})
    assert shown(result("changed"), colour=True).startswith("\x1b[33mchanged \x1b[0m ")


def test_the_json_of_a_broken_run_holds_what_was_done_until_then() -> None:
    one = screen(silent=True)
    one.event(result("changed"))
    document = json.loads(failure_document("vps", "the connection broke", one))
    assert document["counts"]["changed"] == 1
    assert (document["ok"], document["error"]) == (False, "the connection broke")
