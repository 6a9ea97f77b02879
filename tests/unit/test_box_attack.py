"""Who attacks a box: sources of the real internet, SYNs with true checksums, sums that add up."""

from __future__ import annotations

import ipaddress
import json
import random
import socket
import struct
import sys
from pathlib import Path

import pytest
from box.attack import choose, guard, networks, summary
from hypothesis import given, settings
from hypothesis import strategies as st

IMAGE = Path(__file__).parents[2] / "docker" / "image"
sys.path.append(str(IMAGE))

import syn  # noqa: E402  (a program of the attacker, not of a package)


def test_the_networks_are_of_both_families_and_of_at_least_forty_countries() -> None:
    families = [":" in network for network, _ in networks()]
    assert families.count(False) >= 60 and families.count(True) >= 25
    countries = {country for _, country in networks()}
    assert len(countries) >= 40 and {"SG", "HK", "IS", "MT"} <= countries
    assert all(len(country) == 2 and country.isupper() for country in countries)


@settings(max_examples=40)  # a larger number begins with the same sources
@given(st.integers(2, 2000))
def test_any_number_of_sources_are_public_addresses_of_both_families(number: int) -> None:
    addresses = [ipaddress.ip_address(address) for address in choose(number)]
    assert len(set(addresses)) == number
    assert {address.version for address in addresses} == {4, 6}
    assert all(address.is_global and not address.is_multicast for address in addresses)


def test_the_first_sources_are_spread_over_continents() -> None:
    assert {"US", "CN", "DE", "BR", "ZA", "AU"} <= set(choose(40).values())


def test_the_guard_counts_and_drops_every_source_on_every_other_way_out() -> None:
    rules = guard({"v4": ["192.0.2.1", "192.0.2.2"], "v6": ["2001:db8::1"]})
    assert 'ip daddr { 192.0.2.1, 192.0.2.2 } oifname != "syn0" counter drop' in rules
    assert 'ip6 daddr { 2001:db8::1 } oifname != "syn0" counter drop' in rules


def test_an_attack_is_summed_by_family_and_by_country_in_syns() -> None:
    chosen = {"192.0.2.1": "MT", "192.0.2.2": "SG", "2001:db8::1": "SG"}
    sent = {"192.0.2.1": 3, "192.0.2.2": 2, "2001:db8::1": 2}
    done = summary(chosen, sent, 0.5, 0, 0)
    assert (done.v4, done.v6, done.sources, done.leaked) == (5, 2, 3, 0)
    assert done.countries == {"SG": 4, "MT": 3}
    assert json.loads(json.dumps(done.by_source)) == sent


def ones_complement(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


@pytest.mark.parametrize(
    ("family", "source", "target"),
    [(socket.AF_INET, "170.118.124.9", "198.18.22.7"), (socket.AF_INET6, "2001:250::22:7", "fd22:22::7")],
)
def test_a_syn_has_a_true_checksum_and_no_other_flag(family: int, source: str, target: str) -> None:
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    half = len(ends) // 2
    for _ in range(200):
        packet = syn.syn(family, ends[:half], ends[half:], random.randrange(1024, 65536), 64240)
        tail = (
            struct.pack("!BBH", 0, 6, len(packet))
            if half == 4
            else struct.pack("!IHBB", len(packet), 0, 0, 6)
        )
        assert ones_complement(ends + tail + packet) == 0xFFFF
        assert packet[13] == 0x02 and struct.unpack("!H", packet[2:4]) == (22,)
