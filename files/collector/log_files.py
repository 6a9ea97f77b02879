"""The files of a log that is rotated, and how far each was read.

A file is known by its first line and by what stands before the place where we stopped. So it may be renamed, copied
and truncated, compressed, moved to another inode, while we run or not; no order of time or of names is relied on,
which a wrong clock or a year's end would break.
"""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader

from iptables_line import epoch

CHUNK = 128 << 10  # bytes of log taken at a time: about 500 lines, which the processor has at hand
MOST_IDENTITY = 4096  # bytes of a first line that tell it from others
TAIL = 128

LogReader = BufferedReader | gzip.GzipFile
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
Mark = tuple[int, int, int]  # inode, mtime, size


@dataclass(frozen=True)
class Position:
    """How far a file was read: `first` is its first line, `tail` the bytes before `offset`; `id` is its row."""

    id: int
    first: bytes
    offset: int = 0
    tail: bytes = b""


Chunk = tuple[bytes, Position]


class LogFiles:
    """All files of the log at `path`: itself and whatever begins with its name."""

    def __init__(self, path: str, positions: list[Position]) -> None:
        self.path = path
        self.positions = {position.id: position for position in positions}
        self.finished: set[Mark] = set()  # files read to their end, which need not be opened again
        self.troubles: set[str] = set()

    def unread(self) -> Iterator[str]:
        """Paths that may hold more, the oldest first and the live file last."""
        marks: dict[str, Mark] = {}
        for path in glob.glob(glob.escape(self.path) + "*"):
            try:
                marks[path] = mark_of(os.stat(path))
            except FileNotFoundError:
                continue
        self.finished &= set(marks.values())
        yield from sorted((path for path in marks if marks[path] not in self.finished), key=self.age)

    def age(self, path: str) -> tuple[bool, float, bool]:
        """What to sort by; it need not be right, but rows in order are nicer. Plain files before their .gz."""
        try:
            with opened(path) as file:
                at = epoch(stamp_of(file.readline(MOST_IDENTITY)))
        except (OSError, *DAMAGED):
            at = None
        return path == self.path, float(at or 0), path.endswith(".gz")

    def chunks(self, path: str) -> Iterator[Chunk]:
        """Complete lines, without the last one's newline, that were not read yet, with the position behind them; tell it by `read` once it is stored."""
        try:
            with opened(path) as file:
                mark = mark_of(
                    os.fstat(file.fileno())
                )  # of what is open: the name may be another file's by now
                try:
                    yield from self.complete(path, file)
                except DAMAGED as error:  # or a .gz that is being written; then its mark will be another
                    self.say(f"{path} is damaged, its rest is left out: {error}")
                self.finished.add(mark)
        except FileNotFoundError:
            return  # renamed just now
        except OSError as error:
            self.say(f"{path} cannot be read: {error}")

    def complete(self, path: str, file: LogReader) -> Iterator[Chunk]:
        position, rest = self.position(path, file), b""
        while position and (more := filled(file)):
            chunk = rest + more
            end = chunk.rfind(b"\n") + 1
            if not end and len(chunk) >= CHUNK:
                end = len(chunk)  # a line without end is taken in pieces
            rest = chunk[end:]  # a line that is still being written, or goes on in the next chunk
            if end:
                tail = chunk[max(0, end - TAIL) : end]
                position = replace(position, offset=position.offset + end, tail=tail)
                yield chunk[: end - 1 if chunk[end - 1] == 10 else end], position

    def position(self, path: str, file: LogReader) -> Position | None:
        """Where to go on in an open file, which then stands there; None if there is nothing to take."""
        first = file.readline(MOST_IDENTITY)
        if not first.endswith(b"\n") and len(first) < MOST_IDENTITY:
            return None
        same = sorted((p for p in self.positions.values() if p.first == first), key=lambda p: -p.offset)
        if path.endswith(".gz") and any(p.offset == unpacked_size(path) for p in same):
            return None  # without unpacking it all to find its end
        longer = False
        for position in same:
            file.seek(max(0, position.offset - len(position.tail)))
            before = file.read(len(position.tail))
            if before == position.tail:
                return position
            longer = longer or len(before) < len(position.tail)
        if longer and path != self.path:
            return None  # a copy that is still being made of a file that we know
        file.seek(0)
        return Position(max(self.positions, default=0) + 1, first)

    def read(self, position: Position) -> None:
        self.positions[position.id] = position

    def say(self, trouble: str) -> None:
        if trouble not in self.troubles:
            self.troubles.add(trouble)
            print(trouble, flush=True)


def opened(path: str) -> LogReader:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def mark_of(info: os.stat_result) -> Mark:
    return info.st_ino, info.st_mtime_ns, info.st_size


def filled(file: LogReader) -> bytes:
    """The next CHUNK bytes, fewer before the end or before damage; at damage itself one of DAMAGED is raised."""
    parts: list[bytes] = []
    room = CHUNK
    try:
        while room and (part := file.read1(room)):
            parts.append(part)
            room -= len(part)
    except DAMAGED:
        if not parts:
            raise
    return b"".join(parts)


def unpacked_size(path: str) -> int:
    """What a .gz says of itself in its last four bytes, modulo 2^32; no matter if it is not finished."""
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def stamp_of(line: bytes) -> bytes:
    """The time at the beginning of a log line: one word (RFC 3339) or three (BSD)."""
    return line.split(b" ", 1)[0] if line[:4].isdigit() else line[:15]
