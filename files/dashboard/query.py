"""What a browser may ask: a span of time and a few filters, validated before anything looks at them.

since, until   epoch seconds, at most ten years apart
where          `name:value`, each name once; all must hold:
  country:CN   city:CN/Beijing   network:192.0.2.0/24   address:192.0.2.7   family:4|6   seen:new|returning
  ttl:32|64|128|255 (what a packet probably set out with)   window:1024   port:40000 (of the source)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LONGEST = 3660 * 86400
LATEST = 1 << 33  # year 2242
TTLS = {32: (0, 32), 64: (33, 64), 128: (65, 128), 255: (129, 255)}
PACKET = ("ttl", "window", "port")  # filters that only single events can answer, no sums


class BadRequest(ValueError):
    """What was asked cannot be: the message says which parameter, and what would do."""


@dataclass(frozen=True)
class Query:
    since: int
    until: int
    where: tuple[tuple[str, str], ...] = ()

    @property
    def of_packets(self) -> bool:
        return any(name in PACKET for name, _ in self.where)

    @property
    def of_sources(self) -> bool:
        return any(name not in PACKET for name, _ in self.where)

    @property
    def only_country(self) -> bool:
        return all(name == "country" for name, _ in self.where)

    def sources_sql(self) -> str:
        """What of `where` is about the columns `source` and `place`, which event, day and month have. Values are in values()."""
        return "".join(f" AND {SOURCE_SQL[name]}" for name, _ in self.where if name in SOURCE_SQL)

    def events_sql(self) -> str:
        """All of `where`, on `event`."""
        packet = "".join(f" AND {PACKET_SQL[name]}" for name, _ in self.where if name in PACKET_SQL)
        return self.sources_sql() + packet

    def values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"since": self.since, "until": self.until}
        for name, value in self.where:
            values[name] = value
            if name == "city":
                values["city_country"], values["city"] = value.split("/", 1)
            if name == "ttl":
                values["ttl_least"], values["ttl_most"] = TTLS[int(value)]
        return values


SOURCE_SQL = {
    "country": "place IN (SELECT id FROM place WHERE country = :country)",
    "city": "place IN (SELECT id FROM place WHERE country = :city_country AND city = :city)",
    "network": "source IN (SELECT id FROM source WHERE network = :network)",
    "address": "source = (SELECT id FROM source WHERE address = :address)",
    "family": "source IN (SELECT id FROM source WHERE (instr(address, ':') > 0) = (:family = '6'))",
    "seen": "source IN (SELECT id FROM source WHERE (first_seen >= :since) = (:seen = 'new'))",
}
PACKET_SQL = {
    "ttl": "ttl BETWEEN :ttl_least AND :ttl_most",
    "window": "window = CAST(:window AS INTEGER)",
    "port": "source_port = CAST(:port AS INTEGER)",
}


def _matches(pattern: str) -> Callable[[str], str | None]:
    return lambda value: value if re.fullmatch(pattern, value, re.ASCII) else None


def _city(value: str) -> str | None:
    country, _, city = value.partition("/")
    good = re.fullmatch(r"[A-Z]{2}", country) and 0 < len(city) <= 100 and city.isprintable()
    return value if good else None


def _address(value: str) -> str | None:
    try:
        return None if "%" in value else ipaddress.ip_address(value).compressed
    except ValueError:
        return None


def _network(value: str) -> str | None:
    """A /24 or /48, as the collector groups sources."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        return None
    return str(network) if network.prefixlen == (24 if network.version == 4 else 48) else None


def _number(value: str) -> str | None:
    return str(int(value)) if re.fullmatch(r"[0-9]{1,5}", value, re.ASCII) and int(value) <= 65535 else None


FILTERS: dict[str, tuple[Callable[[str], str | None], str]] = {
    "country": (
        _matches(r"[A-Z]{2}|"),
        "two capital letters, such as country:CN; country: alone where it is unknown",
    ),
    "city": (_city, "a country and a city, such as city:CN/Beijing"),
    "network": (_network, "a /24 of IPv4 or a /48 of IPv6, such as network:192.0.2.0/24"),
    "address": (_address, "an IP address, such as address:192.0.2.7"),
    "family": (_matches("[46]"), "family:4 or family:6"),
    "seen": (_matches("new|returning"), "seen:new or seen:returning"),
    "ttl": (_matches("|".join(map(str, TTLS))), "one of ttl:32, ttl:64, ttl:128, ttl:255"),
    "window": (_number, "a number up to 65535, such as window:1024"),
    "port": (_number, "a number up to 65535, such as port:40000"),
}


def query(since: str, until: str, where: list[str]) -> Query:
    """Raises BadRequest."""
    start, end = _epoch("since", since), _epoch("until", until)
    if not 0 < end - start <= LONGEST:
        raise BadRequest("until must be after since, and at most ten years")
    found: dict[str, str] = {}
    for item in where:
        name, colon, value = item.partition(":")
        if name not in FILTERS or not colon:
            raise BadRequest(f"where must begin with one of {', '.join(f'{name}:' for name in FILTERS)}")
        if name in found:
            raise BadRequest(f"where has {name} twice; one of each is possible")
        good, wanted = FILTERS[name]
        valid = good(value)
        if valid is None:
            raise BadRequest(f"where={name}: must be {wanted}")
        found[name] = valid
    return Query(start, end, tuple(sorted(found.items())))


def _epoch(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", value, re.ASCII) or int(value) > LATEST:
        raise BadRequest(f"{name} must be seconds since 1970, such as {name}=1764000000")
    return int(value)


def search(text: str) -> str:
    """The filter that a searched text stands for: an address, a network or a country's code. Raises BadRequest."""
    text = text.strip()
    if (found := _network(text)) and "/" in text:
        return f"network:{found}"
    if found := _address(text):
        return f"address:{found}"
    if re.fullmatch(r"[A-Za-z]{2}", text, re.ASCII):
        return f"country:{text.upper()}"
    raise BadRequest("q must be an address, a /24 or /48 network, or a country's two letters")
