"""The persistent queue and the dead letter queue: files of JSON lines.

An event is acknowledged when the outputs have it. What was put in and not acknowledged is there again after kill -9.
A persistent queue belongs to one Logstash as long as that runs.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import threading
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from . import ConfigurationError
from .event import Event, stamp

Entry = tuple[int, Event]


def locked(folder: Path) -> IO[str]:
    """The folder's lock, held until it is closed. Raises BlockingIOError where somebody holds it."""
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


class MemoryQueue:
    """At most `room` events wait: then the inputs wait, too."""

    def __init__(self, room: int = 2000) -> None:
        self.room, self.entries, self.changed = room, deque[Entry](), threading.Condition()
        self.number = 0
        self.closed = False

    def put(self, events: list[Event]) -> None:
        with self.changed:
            for event in events:
                self.changed.wait_for(lambda: self.has_room() or self.closed)
                self.number += 1
                self.store(self.number, event)
                self.entries.append((self.number, event))
            self.flush()
            self.changed.notify_all()

    def has_room(self) -> bool:
        return len(self.entries) < self.room

    def take(self, most: int, seconds: float) -> list[Entry]:
        """Up to `most`; none if nothing came in time."""
        with self.changed:
            self.changed.wait_for(lambda: self.entries or self.closed, timeout=seconds)
            return [self.entries.popleft() for _ in range(min(most, len(self.entries)))]

    def acknowledge(self, entries: list[Entry]) -> None:
        with self.changed:
            self.forget(entries)
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def release(self) -> None:
        """Let another one have it."""

    def size(self) -> int:
        return 0

    def store(self, number: int, event: Event) -> None:
        pass

    def flush(self) -> None:
        pass

    def forget(self, entries: list[Entry]) -> None:
        pass


class PersistentQueue(MemoryQueue):
    """Pages of JSON lines in a folder, and a checkpoint: the number of the last event that is acknowledged.

    Raises ConfigurationError where another one has the folder, or where the disk has no room for the whole queue.
    """

    def __init__(self, folder: Path, page_bytes: int, most_bytes: int) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.page_bytes, self.most_bytes = folder, page_bytes, most_bytes
        self.lock = self.exclusive()
        self.checkpoint = folder / "checkpoint.head"
        self.done = int(self.checkpoint.read_text() or 0) if self.checkpoint.exists() else 0
        self.number = self.done
        for page in self.pages():
            self.load(page)
        self.page = (folder / f"page.{self.number:020}").open("ab")

    def exclusive(self) -> IO[str]:
        try:
            lock = locked(self.folder)
        except BlockingIOError:
            raise ConfigurationError(
                "org.logstash.LockException: The queue failed to obtain exclusive access, cause: Lock held by another program "
                f"on lock path: {self.folder}/.lock"
            ) from None
        missing = self.most_bytes - self.size()
        if shutil.disk_usage(self.folder).free < missing:
            lock.close()
            raise ConfigurationError(
                f"java.io.IOException: Unable to allocate {missing} more bytes for persisted queue on top of its current usage "
                f"of {self.size()} bytes"
            )
        return lock

    def release(self) -> None:
        self.page.close()
        self.lock.close()

    def pages(self) -> list[Path]:
        return sorted(self.folder.glob("page.*"))

    def load(self, page: Path) -> None:
        """Again what nobody has acknowledged. A line that a crash cut off was never put."""
        for line in page.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                number, fields = json.loads(line)
                self.number = max(self.number, number)
                if number > self.done:
                    fields["@timestamp"] = datetime.fromisoformat(fields["@timestamp"].replace("Z", "+00:00"))
                    self.entries.append((number, Event(fields)))

    def size(self) -> int:
        return sum(page.stat().st_size for page in self.pages())

    def has_room(self) -> bool:
        return super().has_room() and (self.number % 1000 != 0 or self.size() < self.most_bytes)

    def store(self, number: int, event: Event) -> None:
        if self.page.tell() >= self.page_bytes:
            self.page.close()
            self.page = (self.folder / f"page.{number:020}").open("ab")
        fields = event.fields | {"@timestamp": stamp(event.fields["@timestamp"])}
        self.page.write(json.dumps([number, fields]).encode() + b"\n")

    def flush(self) -> None:
        self.page.flush()
        os.fsync(self.page.fileno())

    def forget(self, entries: list[Entry]) -> None:
        """One worker takes and acknowledges in order."""
        self.done = max(number for number, _ in entries)
        beside = self.checkpoint.with_suffix(".new")
        beside.write_text(str(self.done))
        os.replace(beside, self.checkpoint)
        pages = self.pages()
        for page, following in itertools.pairwise(pages):
            if int(following.suffix[1:]) <= self.done + 1:
                page.unlink()


class DeadLetters:
    """What Elasticsearch refused for good. When it is full, the newest are dropped, or the oldest make room."""

    def __init__(self, folder: Path, most_bytes: int, policy: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.most_bytes, self.policy, self.dropped = folder / "1.log", most_bytes, policy, 0

    def write(self, event: Event, plugin: str, reason: str) -> None:
        entry: dict[str, Any] = {"plugin_type": plugin, "reason": reason, "event": event.document()}
        line = json.dumps(entry).encode() + b"\n"
        if self.policy == "drop_older":
            self.make_room(len(line))
        if self.size() + len(line) > self.most_bytes:
            self.dropped += 1
            return
        with self.file.open("ab") as file:
            file.write(line)

    def make_room(self, needed: int) -> None:
        excess = self.size() + needed - self.most_bytes
        if excess <= 0 or not self.size():
            return
        lines = self.file.read_bytes().splitlines(keepends=True)
        while lines and excess > 0:
            excess -= len(lines.pop(0))
            self.dropped += 1
        self.file.write_bytes(b"".join(lines))

    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0
