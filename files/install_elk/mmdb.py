"""What a MaxMind database says of itself, without a library: by the map at its end (MaxMind DB format 2.0)."""

from __future__ import annotations

import os

MARKER = b"\xab\xcd\xefMaxMind.com"
LONGEST = 128 << 10  # bytes that this map may have


def metadata(path: str) -> tuple[int, str]:
    """(build_epoch, database_type); (0, "") of what is no such database. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - LONGEST))
        about = file.read().rpartition(MARKER)[2]
    at, kind = value_of(about, b"build_epoch"), value_of(about, b"database_type")
    return int.from_bytes(at, "big"), kind.decode(errors="replace")


def value_of(about: bytes, key: bytes) -> bytes:
    """The bytes of a number or text: its size stands in the low five bits before it, its type in the others."""
    _, _, value = about.partition(key)
    if len(value) < 2:
        return b""
    size, start = value[0] & 31, 1
    if not value[0] >> 5:  # the types above 7, such as uint64, have a byte of their own
        start += 1
    if size == 29:  # longer than 28: another byte says by how much
        size, start = 29 + value[start], start + 1
    return value[start : start + size]
