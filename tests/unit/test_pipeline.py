"""Our pipeline file, run by the Logstash double: which event each line becomes, and what any line becomes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import logstash

DATA = Path(__file__).parents[1] / "data"
FILES = ("iptables-lines", "iptables-own-prefix", "iptables-more")
LINES = {name: (DATA / f"{name}.log").read_bytes().splitlines() for name in FILES}
ALL = [line for lines in LINES.values() for line in lines]
PACKETS = [line for line in ALL if b" LEN=" in line and b"SRC=999" not in line]
# To write them anew: python -m tests.unit.test_pipeline, and read the difference.
GOLDEN = DATA / "iptables-events.ndjson"


def golden() -> list[dict[str, Any]]:
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("line", "expected"), list(zip(ALL, golden(), strict=True)), ids=range(len(ALL)))
def test_each_line_becomes_the_event_that_was_reviewed(line: bytes, expected: dict[str, Any]) -> None:
    assert logstash.document(line) == expected


def words(line: bytes) -> dict[str, str]:
    """KEY=VALUE behind the last IN= that an OUT= follows, without what is quoted in brackets: another way than grok's."""
    text = line.decode()
    start = [found.start() for found in re.finditer(r"\bIN=\S* OUT=", text)][-1]
    packet = text[start:].split("[")[0]
    return dict(re.findall(r"(\w+)=(\S*)", packet)) | {"FLAGS": packet}


@pytest.mark.parametrize("line", PACKETS, ids=range(len(PACKETS)))
def test_each_event_says_what_stands_in_its_line(line: bytes) -> None:
    event, said = logstash.document(line), words(line)
    assert event["message"] == line.decode()
    assert (event["source"]["ip"], event["destination"]["ip"]) == (said["SRC"], said["DST"])
    assert event["related"]["ip"] == [said["SRC"], said["DST"]]
    ports = [event[side].get("port") for side in ("source", "destination")]
    assert ports == [int(said[key]) if key in said else None for key in ("SPT", "DPT")]
    assert event["network"]["transport"] == said["PROTO"].lower()
    assert event["iptables"]["ttl"] == int(said.get("TTL") or said["HOPLIMIT"])
    syn = " SYN " in said["FLAGS"] and " ACK " not in said["FLAGS"]
    scan = syn and (said["PROTO"], said["DPT"]) == ("TCP", "22") and said["IN"] != ""
    assert (event["event"]["action"] == "ssh-scan") == scan


def test_all_lines_of_our_own_rule_are_scans() -> None:
    actions = [logstash.document(line)["event"]["action"] for line in LINES["iptables-own-prefix"]]
    assert actions == ["ssh-scan"] * 18


def test_a_line_that_is_no_packet_is_tagged_and_kept_with_its_own_time() -> None:
    event = logstash.document(b"2026-11-24T10:00:14.000000+00:00 vps kernel: something else")
    assert event["tags"] == ["_grokparsefailure"]
    assert event["@timestamp"] == "2026-11-24T10:00:14.000Z"
    assert event["event"]["original"] == event["message"]
    assert event["host"]["hostname"] == "vps"


def test_a_line_without_a_time_has_the_time_of_reading() -> None:
    event = logstash.document(b"neither a stamp nor a packet")
    assert (event["tags"], event["@timestamp"]) == (["_grokparsefailure"], "2026-11-24T12:00:00.000Z")


def test_an_unknown_network_is_no_failure_where_the_city_is_known(tmp_path: Path) -> None:
    from logstash_double.pipeline import Pipeline

    from tests.unit import mmdb

    empty = tmp_path / "empty.mmdb"
    mmdb.write(empty, {"192.0.2.0/24": {"autonomous_system_organization": "x"}}, kind="GeoLite2-ASN")
    pipeline = Pipeline(logstash.text(geoip_asn=str(empty)))
    pipeline.register()
    (event,) = pipeline.filter([pipeline.inputs[0].event(LINES["iptables-more"][0], logstash.LOG)])
    assert event.get("[source][geo][city_name]") == "Washington"
    assert event.get("tags") is None and event.get("[source][as]") is None


def test_an_own_database_is_asked_in_place_of_the_bundled_one(tmp_path: Path) -> None:
    from logstash_double.pipeline import Pipeline

    from tests.unit import mmdb

    own = tmp_path / "own.mmdb"
    place = {"latitude": 1.5, "longitude": 2.5}
    mmdb.write(own, {"170.118.124.0/24": {"location": place}}, kind="DBIP-City-Lite")
    pipeline = Pipeline(logstash.text(geoip_city=str(own)))
    pipeline.register()
    (event,) = pipeline.filter([pipeline.inputs[0].event(LINES["iptables-more"][0], logstash.LOG)])
    assert event.get("[source][geo]") == {"location": {"lat": 1.5, "lon": 2.5}}


def test_the_same_line_is_the_same_document() -> None:
    first, again, other = (logstash.read(line) for line in (ALL[0], ALL[0], ALL[1]))
    assert (
        first.metadata["id"]
        == hashlib.sha256(ALL[0]).hexdigest()
        == again.metadata["id"]
        != other.metadata["id"]
    )


def check_any(line: bytes) -> None:
    """An event comes out, whose time is one: parsed, or tagged with its line kept."""
    event = logstash.document(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["@timestamp"])
    if "_grokparsefailure" in event.get("tags", []):
        assert event["event"]["original"] == event["message"] and "source" not in event
    else:
        assert event["source"]["ip"] and event["destination"]["ip"] and event["event"]["action"]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300).map(lambda line: line.replace(b"\n", b"")))
def test_any_bytes_become_an_event(line: bytes) -> None:
    check_any(line)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ALL), st.data())
def test_any_damaged_line_becomes_an_event(line: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(line)))
    cut = data.draw(st.integers(0, 40))
    check_any(line[:at] + data.draw(st.binary(max_size=4)).replace(b"\n", b"") + line[at + cut :])


QUOTED = st.sampled_from(
    [line for line in ALL if b"PROTO=TCP SPT=" in line and b"[" not in line.split(b" IN=")[1]]
)
ERRORS = st.sampled_from([line for line in ALL if b"PROTO=ICMP" in line]).map(
    lambda line: line.split(b" TYPE=")[0]
)


@settings(max_examples=200, deadline=None)
@given(ERRORS, QUOTED, st.integers(0, 255), st.integers(0, 255), st.sampled_from([b"[", b" [", b" [ "]))
def test_an_icmp_error_that_quotes_a_syn_is_never_a_scan(
    head: bytes, quoted: bytes, kind: int, code: int, opening: bytes
) -> None:
    packet = quoted[quoted.index(b"SRC=") :].strip()
    event = logstash.document(b"%s TYPE=%d CODE=%d %s%s ] " % (head, kind, code, opening, packet))
    assert event["event"]["action"] == "icmp"
    assert "port" not in event["source"] and "port" not in event["destination"]


HOSTILE = {
    "IN= without end": b"IN=",
    "IN= OUT= without end": b"IN= OUT= ",
    "interfaces": b"IN=eth0 OUT=eth0 MAC= ",
    "blanks": b" ",
    "letters": b"a",
    "addresses": b"SRC=1.2.3.4 DST=1.2.3.4 LEN=1 ",
    "almost a packet": b"IN=eth0 OUT= MAC= SRC=1.2.3.4 DST=1.2.3.4 LEN=1 TOS=0x00 PREC=0x00 TTL=1 ID=1 ",
    "packets without PROTO": b"IN=a OUT= SRC=1.2.3.4 DST=1.2.3.4 LEN=1 TOS=0x00 PREC=0x00 TTL=1 ID=1 a b c d ",
    "bytes that are no UTF-8": b"\xff\xfe",
    "colons": b"a:b: ",
    "brackets": b"[ 1.000000] [",
    "MAC": b"MAC=02:42:",
    "flags": b"SYN ACK ",
}
HEADS = (
    b"",
    b"2026-11-24T10:00:00.000000+00:00 vps kernel: ",
    b"2026-11-24T10:00:00.000000+00:00 vps kernel: knockmap IN=eth0 OUT= MAC= ",
    LINES["iptables-lines"][0].split(b" PROTO=")[0] + b" ",
    LINES["iptables-lines"][0].split(b" SYN ")[0] + b" ",
)


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
@pytest.mark.parametrize("word", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_line_of_10_kb_takes_more_than_25_ms(word: bytes, head: bytes) -> None:
    """Of three runs the quickest: this machine may be busy with other work."""
    line = (head + word * (10_000 // len(word) + 1))[:10_000]
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        logstash.read(line)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.025


if __name__ == "__main__":
    GOLDEN.write_text(
        "".join(json.dumps(logstash.document(line), ensure_ascii=False) + "\n" for line in ALL),
        encoding="utf-8",
    )
