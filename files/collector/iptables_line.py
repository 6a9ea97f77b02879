"""One line of an iptables log → what was seen, or why it cannot be said.

Any prefix, IPv4 and IPv6, TCP, UDP, ICMP and others, with or without MAC and kernel stamp, RFC 3339 and BSD time.
Format: the kernel's nf_log_syslog, behind rsyslog's or syslog-ng's header.
"""

from __future__ import annotations

import re
import socket
import time
from datetime import datetime
from typing import NamedTuple


class Event(NamedTuple):
    """A packet. `ts` is in seconds since the epoch; ports and window are None where the protocol has none.

    `times` is above 1 where rsyslog folded equal lines into one ("message repeated N times").
    """

    ts: int
    source: str
    protocol: str
    source_port: int | None
    target_port: int | None
    ttl: int
    window: int | None
    times: int = 1


class Unparsed(NamedTuple):
    """Why a line is no event."""

    reason: str


# Greedy up to the last " SRC=… DST=…" that follows an OUT=: a prefix may hold anything, also "SRC=1.2.3.4".
PACKET = re.compile(
    rb"^(\S+|[A-Z][a-z]{2} [ \d]\d [\d:]{8}) \S+ \S+: (.*?)\bIN=(\S*) OUT=(\S*) "
    rb"(?:MAC\w*=\S* )*SRC=([0-9a-f.:]+) DST=\S+ LEN=\d+ "
    rb"[^\[]*?(?:TTL|HOPLIMIT)=(\d+) [^\[]*?PROTO=(\w+)(?: SPT=(\d+) DPT=(\d+))?(?:[^\[]*? WINDOW=(\d+))?"
)
# What nearly every line looks like: a TCP packet. Groups: date to minute, second, zone; source, TTL, ports, window.
_USUAL = (
    rb"^(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:)([0-5]\d)\.\d{6}(\S+) \S+ \S+: [^=\[\n]*IN=\S+ OUT= MAC=\S* "
    rb"SRC=(\S+) DST=\S+ LEN=\d+ (?:TOS=\S+ PREC=\S+ TTL|TC=\d+ HOPLIMIT)=(\d{1,3}) (?:ID|FLOWLBL)=\d+ (?:DF )?"
    rb"PROTO=TCP SPT=(\d{1,5}) DPT=(\d{1,5}) WINDOW=(\d{1,5}) "
)
USUAL = re.compile(_USUAL)
USUAL_LINES = re.compile(_USUAL + rb".*$", re.MULTILINE)
REPEATED = re.compile(rb"message repeated (\d+) times: \[ ?")
BSD = re.compile(rb"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d$")
LONGEST = 8192  # a longer line is not from the kernel
MOST_REPEATS = 100_000  # rsyslog counts to far less; more is a forged line

MOST_CACHED = 20_000

minutes: dict[bytes, int] = {}  # date, hour, minute and zone of a stamp → epoch of that minute
Fields = tuple[bytes, ...]  # the groups of USUAL
_addresses: dict[bytes, str] = {}  # as the kernel prints it → as everybody else does


def parse(line: bytes, now: float | None = None) -> Event | Unparsed:
    """One line without its newline. `now` (epoch) tells the year of a BSD stamp, which has none."""
    found = USUAL.match(line)
    if found and (usual := usual_event(found.groups())):
        return usual
    return parse_any(line, now)


def usual_event(fields: Fields) -> Event | None:
    """The event of a usual line; None leaves it to `parse_any`."""
    minute, second, zone, source, ttl, source_port, target_port, window = fields
    ts = epoch(minute + second + zone)
    address = _addresses.get(source) or address_of(source)
    if ts is None or address is None:
        return None
    return Event(ts, address, "TCP", int(source_port), int(target_port), int(ttl), int(window))


def usual_fields(lines: list[bytes]) -> list[Fields] | list[Fields | None]:
    """The fields of each line, None for an unusual one. One search for all is a third faster than one for each."""
    found: list[Fields] = USUAL_LINES.findall(b"\n".join(lines))
    if len(found) == len(lines):
        return found
    return [match.groups() if (match := USUAL.match(line)) else None for line in lines]


def parse_any(line: bytes, now: float | None) -> Event | Unparsed:
    """Any line, slowly."""
    found = PACKET.match(line)
    if not found:
        return Unparsed(why(line))
    stamp, text, inbound, outbound, source, ttl, protocol, source_port, target_port, window = found.groups()
    ts, address = epoch(stamp, now), address_of(source)
    if ts is None:
        return Unparsed("time not understood")
    if outbound and not inbound:
        return Unparsed("outgoing packet")
    if not address:
        return Unparsed("source is no address")
    repeated = REPEATED.search(text)
    times = int(repeated[1][:9]) if repeated else 1
    if not 1 <= times <= MOST_REPEATS:
        return Unparsed("repeated too often to be true")
    ports = number(source_port, 65535), number(target_port, 65535)
    return Event(ts, address, protocol.decode(), *ports, number(ttl, 255) or 0, number(window, 65535), times)


def address_of(text: bytes) -> str | None:
    """The address in its usual form: the kernel prints IPv6 in full length. None if it is none."""
    try:
        family = socket.AF_INET6 if b":" in text else socket.AF_INET
        address = socket.inet_ntop(family, socket.inet_pton(family, text.decode("ascii")))
    except (OSError, ValueError):
        return None
    if len(_addresses) >= MOST_CACHED:
        _addresses.clear()
    _addresses[text] = address
    return address


def number(digits: bytes | None, most: int) -> int | None:
    """A field's value, None if it is missing or cannot be."""
    if digits is None or len(digits) > 5:
        return None
    value = int(digits)
    return value if value <= most else None


def why(line: bytes) -> str:
    """What is wrong with a line that does not look like a packet."""
    if len(line) > LONGEST:
        return "too long"
    if b"SRC=" not in line:
        return "no packet in it"
    return "cut short or of an unknown form"


def epoch(stamp: bytes, now: float | None = None) -> int | None:
    """Seconds since the epoch of an RFC 3339 or BSD stamp, None if it is neither."""
    try:
        if stamp[10:11] != b"T":
            return bsd(stamp, now)
        seconds = int(stamp[17:19])
        if seconds > 60:
            return None
        key = stamp[:17] + stamp[19:].lstrip(b".0123456789")
        minute = minutes.get(key)
        return (rfc3339_minute(key) if minute is None else minute) + seconds
    except (ValueError, OverflowError):
        return None


def rfc3339_minute(key: bytes) -> int:
    """Epoch of a minute with a zone, such as `2026-11-24T03:50:+00:00`."""
    zone = key[17:].decode("ascii").replace("Z", "+00:00")
    moment = datetime.fromisoformat(f"{key[:17].decode('ascii')}00{zone}")
    if moment.tzinfo is None:
        raise ValueError("no time zone")
    if len(minutes) >= MOST_CACHED:
        minutes.clear()
    minutes[key] = int(moment.timestamp())
    return minutes[key]


def bsd(stamp: bytes, now: float | None) -> int:
    """A BSD stamp is local time without a year: the newest such moment that is not after tomorrow."""
    if not BSD.match(stamp):
        raise ValueError("no BSD stamp")
    now = time.time() if now is None else now
    year = time.localtime(now + 86400).tm_year
    for candidate in (year, year - 1):
        try:
            fields = time.strptime(f"{candidate} {stamp.decode('ascii')}", "%Y %b %d %H:%M:%S")
        except ValueError:  # 29 February of another year
            continue
        value = int(time.mktime(fields))
        if value <= now + 86400:
            return value
    raise ValueError("no such day")
