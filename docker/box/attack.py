"""SYNs to port 22 of a box from source addresses of the real internet, without a packet leaving this machine.

In the box's network namespace, from the relay's container: a second namespace is made, joined by a veth pair. The
sources are addresses of that namespace's interface, and the box has a route to each of them over the pair, so replies
(RST, SYN-ACK) go back where they came from. A counting drop rule on every other way out proves that none went there.
"""

from __future__ import annotations

import collections
import io
import itertools
import json
import re
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from docker.models.containers import Container

from . import images, state
from .images import BoxError, inside
from .machine import Box, attacked, relay_name

MOST_COUNT, MOST_SECONDS = 100_000, 60
# SYNs per second from which on an attack is alone: it may overwrite the kernel's ring, in which all boxes' lines are.
FLOOD = 2_000
SETUP = """
set -eu
ip netns add attacker
ip link add syn0 type veth peer name syn1 netns attacker
ip addr add {v4}/32 dev syn0
ip -6 addr add {v6}/128 dev syn0 nodad
sysctl -q -w net.ipv6.conf.syn0.accept_dad=0 2>/dev/null || true
ip link set syn0 up
ip -n attacker link set lo up
ip -n attacker link set syn1 up
ip -n attacker route add {v4}/32 dev syn1
ip -n attacker -6 route add {v6}/128 dev syn1
ip -n attacker -batch /tmp/addresses
ip -batch /tmp/routes
nft -f /tmp/guard
"""
UNLINK = "ip link del syn0 2>/dev/null; ip netns del attacker 2>/dev/null; true"
UNGUARD = "nft delete table inet box_guard 2>/dev/null; true"


@dataclass(frozen=True)
class Attack:
    """What was sent: SYNs by family, by country (ISO code) and by source; replies that left by another way (0); and
    kernel lines that were overwritten meanwhile before the relay read them (if not 0, counts of lines are not true)."""

    v4: int
    v6: int
    sources: int
    seconds: float
    countries: dict[str, int]
    by_source: dict[str, int]
    leaked: int
    overruns: int


def attack(box: Box, sources: int = 40, count: int = 200, rate: int = 100) -> Attack:
    """Send `count` SYNs, `rate` a second, from `sources` addresses in turn. Raises BoxError."""
    if not 1 <= count <= MOST_COUNT or rate < 1 or count / rate > MOST_SECONDS:
        raise BoxError(
            f"at most {MOST_COUNT} SYNs and {MOST_SECONDS} s: {count} at {rate} a second are too many"
        )
    if not 2 <= sources <= 2000:
        raise BoxError(f"from 2 to 2000 sources, not {sources}")
    hand = images.client().containers.get(relay_name(box.name))
    overruns, chosen = box.overruns(), choose(sources)
    with state.lock(state.attack_lock(box.name).name), state.lock("floods", shared=rate < FLOOD):
        if inside(hand, ["nft", "list", "table", "inet", "box_guard"])[0] == 0:  # one broke off
            settle(hand)
        shell(hand, f"{UNLINK}; {UNGUARD}")
        try:
            prepare(hand, box, chosen, count, rate)
            sent = json.loads(shell(hand, "ip netns exec attacker python3 /tmp/syn.py </tmp/job.json"))
            settle(hand)
            leaked = counted(hand)
            shell(hand, UNGUARD)  # and not where it broke off: replies may still be on their way
        finally:
            shell(hand, UNLINK)
    if leaked:
        raise BoxError(
            f"{leaked} replies of {box.name} were about to leave by another way than they came; they were dropped"
        )
    return summary(chosen, sent["sent"], sent["seconds"], leaked, box.overruns() - overruns)


def summary(
    chosen: dict[str, str], sent: dict[str, int], seconds: float, leaked: int, overruns: int
) -> Attack:
    """What was sent (SYNs for each source), by family and by country (`chosen`: source -> ISO code)."""
    countries: collections.Counter[str] = collections.Counter()
    for source, number in sent.items():
        countries[chosen[source]] += number
    v6 = sum(number for source, number in sent.items() if ":" in source)
    return Attack(
        v4=sum(sent.values()) - v6,
        v6=v6,
        sources=len(sent),
        seconds=seconds,
        countries={country: number for country, number in countries.most_common() if number},
        by_source=sent,
        leaked=leaked,
        overruns=overruns,
    )


def networks() -> list[tuple[str, str]]:
    """(network prefix up to its last part, ISO country), interleaved over families and countries."""
    lines = (Path(__file__).parent / "sources.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return [(network, country) for network, country in rows]


def choose(number: int) -> dict[str, str]:
    """Address -> country: `number` addresses, taking the networks in turn, always some of each family."""
    chosen: dict[str, str] = {}
    for round_ in itertools.count(1):
        for network, country in networks():
            host = f"{network}{round_ * 7 % 250 + 2}" if ":" not in network else f"{network}{round_ * 7:x}"
            chosen[host] = country
            if len(chosen) == number:
                return chosen
    raise AssertionError("unreachable")


def prepare(hand: Container, box: Box, chosen: dict[str, str], count: int, rate: int) -> None:
    """The namespace with its addresses, a route to each of them, and the guard on every other way out."""
    v4, v6 = attacked(box.address)
    addresses = {"v4": [a for a in chosen if ":" not in a], "v6": [a for a in chosen if ":" in a]}
    mine = [f"addr add {a}/32 dev syn1" for a in addresses["v4"]]
    mine += [f"addr add {a}/128 dev syn1 nodad" for a in addresses["v6"]]
    routes = [f"route add {a}/32 dev syn0 src {v4}" for a in addresses["v4"]]
    routes += [f"route add {a}/128 dev syn0" for a in addresses["v6"]]
    job = {
        "v4": {"target": v4, "sources": addresses["v4"]},
        "v6": {"target": v6, "sources": addresses["v6"]},
        "count": count,
        "rate": rate,
    }
    files = {
        "addresses": "\n".join(mine) + "\n",
        "routes": "\n".join(routes) + "\n",
        "guard": guard(addresses),
        "job.json": json.dumps(job),
        "syn.py": (images.SOURCE / "syn.py").read_text(),
    }
    hand.put_archive("/tmp", archive(files))
    shell(hand, SETUP.format(v4=v4, v6=v6))


def archive(files: dict[str, str]) -> bytes:
    """A tar of these files: name -> text."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def guard(addresses: dict[str, list[str]]) -> str:
    rules = [
        f'{family} daddr {{ {", ".join(addresses[key])} }} oifname != "syn0" counter drop'
        for family, key in (("ip", "v4"), ("ip6", "v6"))
        if addresses[key]
    ]
    body = "\n".join(rules)
    return f"table inet box_guard {{ chain out {{ type filter hook output priority 300;\n{body}\n}}\n}}\n"


def counted(hand: Container) -> int:
    """Packets that the guard stopped. Raises BoxError if somebody flushed it meanwhile."""
    shown = shell(hand, "nft list table inet box_guard 2>&1 || true")
    packets = re.findall(r"counter packets (\d+)", shown)
    if not packets:
        raise BoxError(
            "the guard on the way out is gone (was `nft flush ruleset` run?), so nothing is proven; attack again"
        )
    return sum(map(int, packets))


def settle(hand: Container, seconds: float = 3) -> None:
    """Wait until no half-open connection is left whose SYN-ACK would be sent again when the guard is gone."""
    half_open = "ss -Htn state syn-recv '( sport = :22 )' | grep -c . || true"
    deadline = time.monotonic() + seconds
    while shell(hand, half_open).strip() != "0":  # on a busy machine Docker may lose what a command said
        if time.monotonic() > deadline:
            raise BoxError(
                f"the box still answers SYNs {seconds:.0f} s after the last one: its replies are not at an end"
            )
        time.sleep(0.1)


def shell(hand: Container, script: str) -> str:
    status, output = inside(hand, ["sh", "-c", script])
    if status:
        raise BoxError(f"the attack could not be made ready: {output.strip()[-400:]}")
    return output
