"""What happened on a host, and how it is shown: one line per resource, diffs below it, a last line that counts.

`Result` and `Report` are values; `Screen` shows the events of one host as they come. `LiveLine` is the one line of a
terminal that says what is going on right now; where no terminal is, there is none of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

STATUSES = ("ok", "changed", "failed", "skipped")
COLOURS = {"ok": "32", "changed": "33", "failed": "31", "skipped": "2", "note": "36"}
DIFF_COLOURS = {"+": "32", "-": "31", "@": "36"}

# Who holds it may write on the terminal: several hosts report at once, and one may have a question.
terminal = threading.RLock()


@dataclass(frozen=True)
class Result:
    """What became of one resource; `diff` is unified text, `output` the last lines of a command that failed."""

    id: str
    task: str
    status: str
    message: str = ""
    diff: str = ""
    output: str = ""


@dataclass(frozen=True)
class Report:
    """All that one task did on one host. In check mode `changed` means "would change". Reports of stages add up."""

    host: str
    check: bool = False
    results: tuple[Result, ...] = ()
    notices: tuple[str, ...] = ()
    data: tuple[Any, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        return {status: sum(r.status == status for r in self.results) for status in STATUSES}

    @property
    def ok(self) -> bool:
        return not self.counts["failed"]

    @property
    def changed(self) -> bool:
        return bool(self.counts["changed"])

    @property
    def summary(self) -> str:
        """The last line: `31 ok, 4 changed, 0 failed, 0 skipped`."""
        words = {"changed": "would change"} if self.check else {}
        return ", ".join(f"{number} {words.get(status, status)}" for status, number in self.counts.items())

    def __add__(self, later: Report) -> Report:
        return Report(
            self.host,
            self.check or later.check,
            self.results + later.results,
            self.notices + later.notices,
            self.data + later.data,
        )

    def document(self) -> dict[str, Any]:
        """The JSON document of --json."""
        results = [asdict(result) for result in self.results]
        head = {"host": self.host, "ok": self.ok, "check": self.check, "counts": self.counts}
        return {**head, "results": results, "notices": list(self.notices), "error": None}


@dataclass(frozen=True)
class Answer:
    """What a task found out, ready to print; one that is not `ok` ends with exit code 1. `summary` is its last line."""

    text: str
    ok: bool = True
    summary: str = ""


def result(event: Mapping[str, Any]) -> Result:
    """The Result of a `result` event."""
    return Result(**{key: str(event.get(key, "")) for key in Result.__dataclass_fields__})


def colourful(out: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Colours on a terminal, unless NO_COLOR is set (to anything)."""
    return out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class LiveLine:
    """The line at the bottom of a terminal: what each host is at. Does nothing where `out` is no terminal."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.works = out, out.isatty() and os.environ.get("TERM") != "dumb"
        self.doing: dict[str, str] = {}

    def show(self, host: str, text: str) -> None:
        with terminal:
            self.doing[host] = text
            self.draw()

    def drop(self, host: str) -> None:
        """The host is done and is not spoken of any more."""
        with terminal:
            self.clear()
            self.doing.pop(host, None)
            self.draw()

    def draw(self) -> None:
        if not self.works or not self.doing:
            return
        width = shutil.get_terminal_size().columns - 1
        if len(self.doing) > 1:  # every host gets its share of the line
            share = max(12, (width + 5) // len(self.doing) - 5)
            text = "  ·  ".join(f"{host}: {what}"[:share] for host, what in self.doing.items())
        else:
            (text,) = self.doing.values()
        self.out.write("\r\x1b[K\x1b[2m" + printable(text)[:width] + "\x1b[0m")
        self.out.flush()

    def clear(self) -> None:
        if self.works and self.doing:
            self.out.write("\r\x1b[K")
            self.out.flush()


def printable(text: str) -> str:
    """Text of a target without control characters: it must not steer the operator's terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)


@dataclass
class Screen:
    """Shows one host's events. `out` is the terminal itself, or a buffer while several hosts are at work."""

    host: str
    out: TextIO
    live: LiveLine
    verbose: bool = False
    colour: bool = False
    silent: bool = False  # --json: only the document is printed
    results: list[Result] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def event(self, event: Mapping[str, Any], check: bool = False) -> None:
        """Show one event of the agent (see transport.py); unknown ones are passed over."""
        kind = event["event"]
        if kind == "start":
            self.live.show(self.host, event["id"])
        elif kind == "progress":
            self.live.show(self.host, f"{event['id']}  {event['text']}")
        elif kind == "notice":
            self.notice(event["text"])
        elif kind == "result":
            self.results.append(result(event))
            self.show(self.results[-1], check)

    def show(self, one: Result, check: bool) -> None:
        if one.status in ("ok", "skipped") and not self.verbose and not (one.status == "ok" and one.message):
            return
        word = "would change" if check and one.status == "changed" else one.status
        line = f"{self.paint(f'{word:<8}', COLOURS[one.status])} {one.id}"
        separator = "\n         " if one.status == "failed" else "  "
        self.line(line + (separator + printable(one.message) if one.message else ""))
        for text in one.diff.splitlines():
            self.line("    " + self.paint(printable(text), DIFF_COLOURS.get(text[:1], "")))
        for text in one.output.splitlines():
            self.line("    " + self.paint(printable(text), "2"))

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self.line(f"{self.paint('note    ', COLOURS['note'])} {printable(text)}")

    def line(self, text: str) -> None:
        """One line, above the live line."""
        if self.silent:
            return
        with terminal:
            self.live.clear()
            self.out.write(text + "\n")
            self.out.flush()
            self.live.draw()

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code else text


def failure_document(host: str, error: str, screen: Screen) -> str:
    """--json for a host that did not come to its end."""
    report = Report(host, results=tuple(screen.results), notices=tuple(screen.notices))
    return json.dumps({**report.document(), "ok": False, "error": error}, ensure_ascii=False)
