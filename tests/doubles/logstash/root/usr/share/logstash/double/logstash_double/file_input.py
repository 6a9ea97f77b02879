"""The input file: tails a log over rename and truncation, and keeps its position in a sincedb, by inode.

A position is kept every 15 seconds and at the end, so after kill -9 lines are read a second time, as upstream's are.
"""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from . import NotDoubled
from .event import Event
from .language import Plugin as Node
from .options import Option, Options
from .plugins import Plugin, plain_codec

LOG = logging.getLogger("filewatch")
CHUNK = 32 << 10
HOST = os.uname().nodename


@dataclass
class Tail:
    """A file that is open: how far it was read, and what of a line stands there so far."""

    path: str
    file: BinaryIO
    inode: int
    position: int
    rest: bytes = b""


class FileInput(Plugin):
    name = "file"
    shared: ClassVar[Options] = {
        "codec": Option("codec", Node("codec", "plain")),
        "add_field": Option("hash", {}),
        "tags": Option("array"),
        "type": Option(),
        "debug": Option("boolean", obsolete="This setting no longer has any effect."),
        "format": Option(obsolete="You should use the newer 'codec' setting instead."),
        "charset": Option(obsolete="Use the codec setting instead."),
        "message_format": Option(obsolete="Setting is no longer valid."),
    }
    options: ClassVar[Options] = {
        "path": Option("array", required=True),
        "exclude": Option("array", doubled=False),
        "mode": Option(default="tail", choices=("tail", "read")),
        "start_position": Option(default="end", choices=("beginning", "end")),
        "sincedb_path": Option(),
        "sincedb_write_interval": Option("number", 15),
        "sincedb_clean_after": Option("number", 14),
        "stat_interval": Option("number", 1),
        "discover_interval": Option("number", 15),
        "delimiter": Option(default="\n"),
        "close_older": Option("number", 3600),
        "ignore_older": Option("number", doubled=False),
        "max_open_files": Option("number"),
        "exit_after_read": Option("boolean", False),
        "file_completed_action": Option(default="delete", choices=("delete", "log", "log_and_delete")),
        "file_completed_log_path": Option(),
        "file_chunk_size": Option("number", CHUNK),
        "file_chunk_count": Option("number", 1 << 62),
        "file_sort_by": Option(default="last_modified", choices=("last_modified", "path")),
        "file_sort_direction": Option(default="asc", choices=("asc", "desc")),
        "check_archive_validity": Option("boolean", False, doubled=False),
        "ecs_compatibility": Option(choices=("disabled", "v1", "v8"), doubled=False),
    }

    def register(self) -> None:
        plain_codec(self.settings["codec"])
        for path in self.settings["path"]:
            if not path.startswith("/"):
                raise self.refuse(f"File paths must be absolute, relative path specified: {path}")
        self.sincedb = Path(self.settings["sincedb_path"] or NONE)
        if self.sincedb == NONE:
            raise NotDoubled("an input file without sincedb_path")
        if self.sincedb.is_dir():
            raise self.refuse(
                f'The "sincedb_path" argument must point to a file, received a directory: "{self.sincedb}"'
            )
        self.reading = self.settings["mode"] == "read"
        if self.settings["exit_after_read"] and not self.reading:
            raise self.refuse('The "exit_after_read" setting only works when the "mode" is set to "read"')
        if "log" in self.settings["file_completed_action"] and not self.settings["file_completed_log_path"]:
            raise self.refuse(
                'The "file_completed_log_path" setting must be provided when the "file_completed_action" is set to "log" or '
                '"log_and_delete"'
            )
        self.positions = read_sincedb(self.sincedb)
        self.tails: dict[str, Tail] = {}
        self.unreadable: set[str] = set()
        self.first, self.written = True, time.monotonic()

    def step(self, push: Callable[[list[Event]], None]) -> bool:
        """All that is new in every file. False where there will be nothing more (`exit_after_read`)."""
        for path in self.paths():
            self.follow(path, push)
        self.first = False
        if time.monotonic() - self.written >= self.settings["sincedb_write_interval"]:
            self.keep()
        return not (self.reading and self.settings["exit_after_read"])

    def paths(self) -> list[str]:
        return sorted(
            {path for pattern in self.settings["path"] for path in glob.glob(pattern)} | set(self.tails)
        )

    def follow(self, path: str, push: Callable[[list[Event]], None]) -> None:
        tail = self.tails.get(path) or self.open(path)
        if tail is None:
            return
        self.read(tail, push)
        try:
            there = os.stat(path)
        except FileNotFoundError:
            return
        if there.st_ino != tail.inode:  # renamed, and a new one is in its place
            self.read(tail, push)
            tail.file.close()
            del self.tails[path]
            self.follow(path, push)
        elif there.st_size < tail.position:
            tail.file.seek(0)
            tail.position, tail.rest = 0, b""
            self.read(tail, push)
        if self.reading:
            self.complete(tail, push)

    def open(self, path: str) -> Tail | None:
        """At the position known for its inode; a new one at its start, or its end if it was there before us."""
        try:
            file = open(path, "rb")  # noqa: SIM115 - it stays open
        except OSError as error:  # upstream says it once, too, and tries again
            if path not in self.unreadable:
                LOG.warning("failed to open file path=%s exception=%s", path, error)
            self.unreadable.add(path)
            return None
        info = os.fstat(file.fileno())
        end = self.first and self.settings["start_position"] == "end" and not self.reading
        position = self.positions.get(info.st_ino, info.st_size if end else 0)
        position = 0 if position > info.st_size else position
        file.seek(position)
        self.tails[path] = Tail(path, file, info.st_ino, position)
        return self.tails[path]

    def read(self, tail: Tail, push: Callable[[list[Event]], None]) -> None:
        """Only whole lines count: the position is that behind the last one."""
        while chunk := tail.file.read(self.settings["file_chunk_size"]):
            *lines, tail.rest = (tail.rest + chunk).split(self.settings["delimiter"].encode())
            push([self.event(line, tail.path) for line in lines])
            tail.position += len(b"".join(lines)) + len(lines) * len(self.settings["delimiter"])
            self.positions[tail.inode] = tail.position

    def event(self, line: bytes, path: str) -> Event:
        """As the codec plain makes it: bytes that are no UTF-8 stand there escaped. `event.original` is the same text."""
        text = line.decode("utf-8", "backslashreplace")
        event = Event({"message": text, "event": {"original": text}})
        event.set("[host][name]", HOST)
        event.set("[log][file][path]", path)
        for field, value in self.settings["add_field"].items():
            event.set(field, event.fill(value))
        if self.settings["tags"]:
            event.set("tags", list(self.settings["tags"]))
        return event

    def complete(self, tail: Tail, push: Callable[[list[Event]], None]) -> None:
        """Mode read: the last line needs no newline, and then the file is dealt with."""
        if tail.rest:
            push([self.event(tail.rest, tail.path)])
        tail.file.close()
        del self.tails[tail.path]
        if "delete" in self.settings["file_completed_action"]:
            os.unlink(tail.path)
        if "log" in self.settings["file_completed_action"]:
            with open(self.settings["file_completed_log_path"], "a") as log:
                log.write(f"{tail.path}\n")

    def keep(self) -> None:
        """Write the sincedb: inode, device, position, time, path."""
        self.written = time.monotonic()
        if self.sincedb == Path("/dev/null"):
            return
        paths = {tail.inode: tail.path for tail in self.tails.values()}
        lines = [
            f"{inode} 0 0 {at} {time.time():.6f} {paths.get(inode, '')}".rstrip()
            for inode, at in self.positions.items()
        ]
        beside = self.sincedb.with_name(f"{self.sincedb.name}.new")
        beside.write_text("".join(f"{line}\n" for line in lines))
        os.replace(beside, self.sincedb)


NONE = Path()


def read_sincedb(path: Path) -> dict[int, int]:
    """Inode → position."""
    if not path.is_file():
        return {}
    rows = [line.split() for line in path.read_text().splitlines()]
    return {int(row[0]): int(row[3]) for row in rows if len(row) >= 4}
