"""One line of an iptables log → what was seen, or why it cannot be said.

Any prefix, IPv4 and IPv6, TCP, UDP, ICMP and others, with or without MAC and kernel stamp, RFC 3339 and BSD time.
Format: the kernel's nf_log_syslog, behind rsyslog's or syslog-ng's header.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
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
    rb"(?:(?:PHYSIN|PHYSOUT|MAC\w*|VPROTO|VID|TUNNEL)=\S* )*SRC=([0-9a-f.:]+) DST=\S+ LEN=\d+ "
    rb"[^\[]*?(?:TTL|HOPLIMIT)=(\d+) [^\[]*?PROTO=(\w+)(?: SPT=(\d+) DPT=(\d+))?(?:[^\[]*? WINDOW=(\d+))?"
)
# What nearly every line looks like: a TCP packet, its time in UTC as our own rules for rsyslog and syslog-ng write it.
# Groups: date to hour, minute and second; source, TTL, ports, window. [^ ] is quicker than \S.
_USUAL = (
    rb"^([^ ]{13}):([^ ]{5})\.\d{6}\+00:00 [^ ]+ [^ ]+: (?:\[ *\d+\.\d{6}\] )?[^=\[\n]*IN=[^ ]+ OUT= MAC=[^ ]* "
    rb"SRC=([^ ]+) DST=[^ ]+ LEN=\d+ (?:TOS=[^ ]+ PREC=[^ ]+ TTL|TC=\d+ HOPLIMIT)=(\d{1,3}) (?:ID|FLOWLBL)=\d+ (?:DF )?"
    rb"PROTO=TCP SPT=(\d{1,5}) DPT=(\d{1,5}) WINDOW=(\d{1,5}) "
)
USUAL = re.compile(_USUAL)
USUAL_LINES = re.compile(_USUAL + rb".*\n?", re.MULTILINE)
SECONDS = {b"%02d:%02d" % divmod(second, 60): second for second in range(3600)}
REPEATED = re.compile(rb"message repeated (\d+) times: \[ ?")
BSD = re.compile(rb"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d$")
LONGEST = 8192  # a longer line is not from the kernel
MOST_REPEATS = 100_000  # rsyslog counts to far less; more is a forged line

MOST_CACHED = 20_000


class Hours(dict[bytes, int]):
    """Date and hour of a stamp, and zone if that is not UTC, such as `2026-11-24T03+05:30` → epoch of that hour."""

    def __missing__(self, key: bytes) -> int:
        hour, zone = key[:13].decode("ascii"), key[13:].decode("ascii")
        moment = datetime.fromisoformat(f"{hour}:00:00{zone.replace('Z', '+00:00') or '+00:00'}")
        if len(self) >= MOST_CACHED:
            self.clear()
        self[key] = int(moment.timestamp())
        return self[key]


class Numbers(dict[bytes, int]):
    """The value of decimal digits up to 65535: to look it up is quicker than int()."""

    def __missing__(self, digits: bytes) -> int:
        value = int(digits)
        if value > 65535:
            raise ValueError("too large")
        if len(self) >= MOST_CACHED:
            self.clear()
        self[digits] = value
        return value


hours = Hours()
numbers = Numbers()


def parse(line: bytes, now: float | None = None) -> Event | Unparsed:
    """One line without its newline. `now` (epoch) tells the year of a BSD stamp, which has none."""
    found = USUAL.match(line)
    if found and (usual := usual_event(found.groups())):
        return usual
    return parse_any(line, now)


def usual_event(fields: Sequence[bytes]) -> Event | None:
    """The event of a usual line; None leaves it to `parse_any`."""
    hour, second, source, *digits = fields
    ts, address = epoch(hour + b":" + second + b"Z"), address_of(source)
    ttl, source_port, target_port, window = map(int, digits)
    if ts is None or address is None or ttl > 255 or max(source_port, target_port, window) > 65535:
        return None
    return Event(ts, address, "TCP", source_port, target_port, ttl, window)


def usual_columns(text: bytes) -> list[list[bytes]] | None:
    """The groups of USUAL, each of all lines; None if one line is unusual. One search for all is much quicker."""
    width = USUAL.groups + 1
    found = USUAL_LINES.split(text)  # what stands between two matches, and then the next one's groups
    if len(found) != width * (text.count(b"\n") + 1) + 1 or any(found[::width]):
        return None
    return [found[group::width] for group in range(1, width)]


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
        return socket.inet_ntop(family, socket.inet_pton(family, text.decode("ascii")))
    except (OSError, ValueError):
        return None


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
        minute, second = int(stamp[14:16]), int(stamp[17:19])
        if minute > 59 or second > 60 or stamp[13:14] + stamp[16:17] != b"::":
            return None
        zone = stamp[19:].lstrip(b".0123456789")
        return hours[stamp[:13] + zone] + 60 * minute + second if zone else None
    except (ValueError, OverflowError):
        return None


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
