"""What goes over the channel: frames from the operator, one JSON object per line back."""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

Want = dict[str, Any]  # a resource as it came over the wire
Have = dict[str, Any]  # what was observed


class Failure(Exception):
    """A resource cannot be what it shall be; the message is one sentence for a person."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = "\n".join(output.strip().splitlines()[-12:])


gone = False  # the operator's end is closed, or we were told to stop


def emit(event: str, **fields: Any) -> None:
    """One line to the operator. A closed connection is remembered, never raised: the work at hand goes on."""
    global gone
    try:
        sys.stdout.write(json.dumps({"event": event, **fields}, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    except OSError:
        gone = True


def read_frame(stream: BinaryIO) -> bytes:
    size = stream.readline()
    data = stream.read(int(size)) if size.strip().isdigit() else b""
    if not size or len(data) != int(size):
        raise Failure("the connection broke while data was sent; run again, it goes on from there")
    return data
