"""The parser on real kernel lines, and on anything else."""

from __future__ import annotations

import calendar
import json
import os
import re
import time
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iptables_line import USUAL, Event, Unparsed, parse, parse_any, usual_columns, usual_event

DATA = Path(__file__).parents[1] / "data"
LINES = (DATA / "iptables-lines.log").read_bytes().splitlines()
OWN = (DATA / "iptables-own-prefix.log").read_bytes().splitlines()


def line_with(text: bytes) -> bytes:
    (found,) = [line for line in LINES if text in line]
    return found


def test_every_real_line_is_a_packet_or_says_why_not() -> None:
    parsed = [parse(line) for line in LINES]
    why = [p.reason for p in parsed if isinstance(p, Unparsed)]
    assert sorted(why) == ["outgoing packet"] * 6
    assert all(b"IN= " in line for line, p in zip(LINES, parsed, strict=True) if isinstance(p, Unparsed))


@pytest.mark.parametrize("line", LINES + OWN, ids=lambda line: line[:32].decode())
def test_each_real_line_says_what_stands_in_it(line: bytes) -> None:
    """By another way than the parser's: the words KEY=VALUE behind the last IN=, without what is in brackets."""
    packet = line.decode()[line.rindex(b" IN=") :].split("[")[0]
    said = dict(re.findall(r"(\w+)=(\S*)", packet))
    found = parse(line)
    if said["OUT"] and not said["IN"]:
        assert found == Unparsed("outgoing packet")
        return
    assert isinstance(found, Event)
    assert found.ts == datetime.fromisoformat(line.decode().split()[0][:19] + "+00:00").timestamp()
    assert ip_address(found.source) == ip_address(said["SRC"]) and found.protocol == said["PROTO"]
    assert found.ttl == int(said.get("TTL") or said["HOPLIMIT"])
    numbers = (found.source_port, found.target_port, found.window)
    assert numbers == tuple(int(said[key]) if key in said else None for key in ("SPT", "DPT", "WINDOW"))


def test_all_lines_of_our_own_rule_are_tcp_to_port_22() -> None:
    events = [parse(line) for line in OWN]
    assert len(events) == 18
    for event in events:
        assert isinstance(event, Event) and (event.protocol, event.target_port) == ("TCP", 22)
    assert sum(":" in event.source for event in events if isinstance(event, Event)) == 9


@pytest.mark.parametrize(
    ("text", "source", "protocol", "source_port", "target_port", "ttl", "window"),
    [
        (b"22.310682", "172.30.0.3", "TCP", 59990, 22, 64, 64240),
        (b"22.307524", "fd00:30::3", "TCP", 48644, 22, 64, 64800),
        (b"22.327007", "fd77::3", "TCP", 48638, 22, 64, 64800),  # no MAC
        (b"27.545215", "172.30.0.3", "UDP", 57364, 5353, 64, None),
        (b"27.612893", "172.30.0.2", "ICMP", None, None, 64, None),
        (b"27.609132", "fd00:30::3", "ICMPv6", None, None, 64, None),
        (b"IPT-GRE", "172.30.0.3", "47", None, None, 64, None),
        (b"IPT-ESP", "172.30.0.3", "ESP", None, None, 64, None),
        (b"30.913089", "172.30.0.3", "TCP", 1372, 22, 63, 512),  # forwarded
        (b"27.838928", "172.30.0.3", "TCP", 49350, 2207, 64, 64240),  # a prefix that pretends
        (b"nft-native", "172.30.0.3", "TCP", 44382, 2209, 64, 64240),
        (b"27.548955", "10.77.0.2", "ICMP", None, None, 64, None),  # holds another packet in brackets
    ],
)
def test_reads_each_kind_of_line(
    text: bytes,
    source: str,
    protocol: str,
    source_port: int | None,
    target_port: int | None,
    ttl: int,
    window: int | None,
) -> None:
    event = parse(next(line for line in LINES if text in line))
    assert isinstance(event, Event)
    assert event[1:7] == (source, protocol, source_port, target_port, ttl, window)


def test_stamps_in_any_zone_are_seconds_since_the_epoch() -> None:
    line = line_with(b"22.310682")
    at = calendar.timegm((2026, 11, 24, 3, 50, 22))
    for stamp, shift in ((b"+00:00", 0), (b"Z", 0), (b"+02:00", -7200), (b"-05:30", 19800)):
        event = parse(line.replace(b"+00:00", stamp))
        assert isinstance(event, Event) and event.ts == at + shift
    assert parse(line.replace(b"T03:50", b"T25:50")) == Unparsed("time not understood")


def test_a_bsd_stamp_gets_the_year_that_is_not_in_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        line = line_with(b"22.310682").split(b" ", 1)[1]
        new_year = calendar.timegm((2027, 1, 1, 0, 5, 0))
        old = parse(b"Dec 31 23:59:59 " + line, new_year)
        new = parse(b"Jan  1 00:01:00 " + line, new_year)
        assert isinstance(old, Event) and old.ts == calendar.timegm((2026, 12, 31, 23, 59, 59))
        assert isinstance(new, Event) and new.ts == calendar.timegm((2027, 1, 1, 0, 1, 0))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_lines_of_bridges_and_tunnels_are_read_as_logstash_reads_them() -> None:
    """The golden events of the Elastic stack say what such lines mean; what it takes for a scan is one here, too."""
    lines = (DATA / "iptables-more.log").read_bytes().splitlines()
    events = [json.loads(line) for line in (DATA / "iptables-events.ndjson").read_text().splitlines()]
    scans = {event["message"]: event for event in events if event["event"].get("action") == "ssh-scan"}
    known = [(line, scans[line.decode()]) for line in lines if line.decode(errors="replace") in scans]
    assert sum(b"PHYSIN=" in line for line, _ in known) > 0
    for line, event in known:
        found = parse(line, calendar.timegm((2026, 12, 1, 0, 0, 0)))
        if found == Unparsed("time not understood"):  # Logstash takes the time of reading
            continue
        assert isinstance(found, Event), (line, found)
        source = event["source"]
        assert (found.source, found.source_port) == (ip_address(source["ip"]).compressed, source["port"]), (
            line
        )
    tunnel = parse(known[0][0].replace(b" SRC=", b" MAC=00:01 TUNNEL=192.0.2.1->198.51.100.1 SRC=", 1))
    assert isinstance(tunnel, Event)


def test_lines_that_rsyslog_folded_count_as_often_as_they_came() -> None:
    head, text = OWN[5].split(b"kernel: ")
    event = parse(head + b"kernel: message repeated 5 times: [ " + text + b"]")
    assert isinstance(event, Event) and event.times == 5
    assert isinstance(parse(head + b"kernel: message repeated 999999999 times: [ " + text + b"]"), Unparsed)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"2026-11-24T03:51:27.838928+00:00 t kernel: something else",
        LINES[0][:100],
        LINES[0].replace(b"172.30.0.3", b"999.1.1.1"),
        LINES[0].replace(b"SRC=172.30.0.3", b"SRC=:::"),
        b"\x00\xff" * 5000,
    ],
)
def test_what_is_no_packet_says_why(line: bytes) -> None:
    found = parse(line)
    assert isinstance(found, Unparsed) and found.reason


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from(LINES + OWN).flatmap(
            lambda line: st.integers(0, len(line)).map(lambda cut: line[:cut] + b"9" + line[cut:])
        ),
    )
)
def test_any_bytes_are_an_event_or_unparsed(line: bytes) -> None:
    found = parse(line, 1_800_000_000)
    assert isinstance(found, (Event, Unparsed))
    if isinstance(found, Event):
        assert found.source.count(".") == 3 or ":" in found.source


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(LINES + OWN).flatmap(
        lambda line: st.integers(0, len(line)).map(lambda cut: line[:cut] + os.urandom(1) + line[cut + 1 :])
    )
)
def test_the_quick_way_never_says_other_than_the_slow_one(line: bytes) -> None:
    found, slow = USUAL.match(line), parse_any(line, None)
    quick = usual_event(found.groups()) if found else None
    if quick and isinstance(slow, Event):
        assert quick[:2] == slow[:2] and (quick.ttl, quick.times) == (slow.ttl, 1)
        for fast, careful in zip(quick[3:7], slow[3:7], strict=True):
            assert fast == careful or (careful is None and int(fast or 0) > 65535)


def test_all_lines_at_once_and_each_by_itself_have_the_same_fields() -> None:
    usual = [line for line in OWN if USUAL.match(line)]
    assert len(usual) == 18
    alone = [match.groups() for line in usual if (match := USUAL.match(line))]
    columns = usual_columns(b"\n".join(usual))
    assert columns and list(zip(*columns, strict=True)) == alone
    assert usual_columns(b"\n".join([*usual, b"garbage"])) is None
