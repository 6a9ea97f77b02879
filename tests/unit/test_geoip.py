"""Places by real .mmdb files of every layout that we say we read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from geoip import NOWHERE, Atlas, Place

from tests.unit import mmdb

FLAT: dict[str, Any] = {"country_code": "SG", "city": "Singapore", "latitude": 1.29, "longitude": 103.85}
NESTED: dict[str, Any] = {
    "country": {"iso_code": "IS"},
    "city": {"names": {"en": "Reykjavik"}},
    "location": {"latitude": 64.1, "longitude": -21.9},
}


def test_ipv4_and_ipv6_may_come_in_files_of_their_own(tmp_path: Path) -> None:
    mmdb.write(tmp_path / "four.mmdb", {"192.0.2.0/24": FLAT}, "city ipv4", built=1_780_000_000)
    mmdb.write(tmp_path / "six.mmdb", {"2001:db8::/32": NESTED}, "city ipv6", built=1_770_000_000)
    atlas = Atlas(str(tmp_path))
    assert atlas.locate("192.0.2.9") == Place("SG", "Singapore", 1.29, 103.85)
    assert atlas.locate("2001:db8::9") == Place("IS", "Reykjavik", 64.1, -21.9)
    assert atlas.locate("198.51.100.1") == atlas.locate("2001:db9::1") == NOWHERE
    assert atlas.built() == 1_770_000_000 and set(atlas.kinds()) == {"city ipv4", "city ipv6"}


def test_a_database_of_countries_answers_where_that_of_cities_does_not(tmp_path: Path) -> None:
    mmdb.write(tmp_path / "city.mmdb", {"192.0.2.0/24": FLAT, "10.0.0.0/8": FLAT, "11.0.0.0/8": FLAT})
    mmdb.write(tmp_path / "country.mmdb", {"198.51.100.0/24": {"country_code": "DE"}})
    atlas = Atlas(str(tmp_path))
    assert atlas.locate("198.51.100.1") == Place("DE", "", None, None)
    assert atlas.locate("192.0.2.1").city == "Singapore"


@pytest.mark.parametrize("content", [b"", b"no database", b"\xab\xcd\xefMaxMind.com"])
def test_a_broken_file_is_no_database_and_nobody_falls_over_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.mmdb").write_bytes(content)
    atlas = Atlas(str(tmp_path))
    assert atlas.locate("192.0.2.1") == NOWHERE and atlas.kinds() == [] and atlas.built() is None


def test_a_damaged_tree_costs_places_and_never_the_collector(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mmdb"
    mmdb.write(path, {"10.0.0.0/8": FLAT})
    data = bytearray(path.read_bytes())
    data[40] = 0x78  # a pointer to where nothing is
    path.write_bytes(data)
    assert Atlas(str(tmp_path)).locate("172.17.0.1") == NOWHERE


def test_no_folder_is_no_place(tmp_path: Path) -> None:
    assert Atlas(str(tmp_path / "none")).locate("192.0.2.1") == NOWHERE


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    mmdb.write(tmp_path / "a.mmdb", {"192.0.2.0/24": FLAT})
    atlas = Atlas(str(tmp_path))
    assert not atlas.changed()
    mmdb.write(tmp_path / "new", {"192.0.2.0/24": NESTED})
    (tmp_path / "new").rename(tmp_path / "a.mmdb")
    assert atlas.changed() and Atlas(str(tmp_path)).locate("192.0.2.1").country == "IS"
