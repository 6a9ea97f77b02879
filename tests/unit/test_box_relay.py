"""Which kernel lines a box gets, and in which form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

IMAGE = Path(__file__).parents[2] / "docker" / "image"
sys.path.append(str(IMAGE))

import relay  # noqa: E402  (a program that runs beside a box, not of a package)

V4 = b"4,543672,6780028458,-;knockmap IN=syn0 OUT= MAC=de:f7 SRC=82.140.40.9 DST=198.18.22.6 LEN=44 PROTO=TCP \n"
V6 = (
    b"4,543671,6780027741,-;knockmap IN=syn0 OUT= SRC=2001:0640:0100:0000:0000:0000:0022:0007 "
    b"DST=fd22:0022:0000:0000:0000:0000:0000:0006 LEN=64 TC=0 PROTO=TCP \n"
)


def test_a_line_is_shown_as_the_kernel_shows_it_to_a_syslog_daemon() -> None:
    number, destination, line = relay.entry(V4)
    assert (number, destination) == (543672, b"198.18.22.6")
    assert line == b"<4>[ 6780.028458] " + V4.split(b";", 1)[1]


def test_an_ipv6_destination_is_in_full_length_like_the_addresses_it_is_compared_with() -> None:
    assert relay.entry(V6)[1] == b"fd22:0022:0000:0000:0000:0000:0000:0006"


def test_a_line_without_a_destination_is_nobodys() -> None:
    assert relay.entry(b"6,1,5,-;usb 1-1: new device\n SUBSYSTEM=usb\n") == (
        1,
        b"",
        b"<6>[    0.000005] usb 1-1: new device\n",
    )


def test_the_first_destination_counts_where_an_icmp_error_quotes_a_packet() -> None:
    record = b"4,9,5,-;knockmap IN=eth0 SRC=1.1.1.1 DST=2.2.2.2 LEN=9 PROTO=ICMP [SRC=2.2.2.2 DST=3.3.3.3 LEN=9 ]\n"
    assert relay.entry(record)[1] == b"2.2.2.2"


def test_a_line_that_is_read_after_its_attack_is_the_boxs_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = {b"172.17.0.2"}
    monkeypatch.setattr(relay, "addresses", lambda: set(now))
    own = relay.Own(["198.18.22.6", "fd22:22::6"])
    assert b"203.0.113.1" not in own  # another box's line, for which it is asked
    assert b"198.18.22.6" in own and b"fd22:0022:0000:0000:0000:0000:0000:0006" in own
    now.add(b"198.18.33.1")
    assert b"198.18.33.1" in own
    now.clear()
    assert b"203.0.113.2" not in own and b"198.18.33.1" in own
