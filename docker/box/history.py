"""A made-up past: log lines as the kernel writes them, as if scanners had knocked for days. The same seed gives the same past.

Sources are real networks of the world (sources.txt) and addresses beside them, Zipf-distributed; each has a tool, by
which it is known (TTL, window); there are busier hours and bursts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import accumulate

from .attack import networks

# What scanners and stolen machines send: TTL at the start, window, share of sources.
TOOLS = ((255, 1024, 30), (255, 65535, 25), (64, 64240, 20), (64, 29200, 10), (64, 42340, 10), (128, 8192, 5))
# Countries knock unevenly: the first of sources.txt more than the rest.
WEIGHTS = {
    "CN": 30,
    "US": 24,
    "NL": 9,
    "RU": 9,
    "IN": 10,
    "DE": 7,
    "SG": 6,
    "HK": 6,
    "BR": 7,
    "VN": 7,
    "KR": 5,
    "FR": 4,
    "GB": 4,
}


@dataclass(frozen=True)
class Scanner:
    address: str
    ttl: int
    window: int
    port: int  # 0: another one for each packet


def scanners(count: int, rng: random.Random) -> list[Scanner]:
    weights = [WEIGHTS.get(country, 1) / (2 if ":" in network else 1) for network, country in networks()]
    made = []
    for network, _ in rng.choices(networks(), weights, k=count):
        start, window, _ = rng.choices(TOOLS, [tool[2] for tool in TOOLS])[0]
        port = rng.choice((0, 0, 0, 0, 61000, 44444)) if start == 255 else 0
        made.append(Scanner(neighbour(network, rng), start - rng.randrange(6, 26), window, port))
    return made


def neighbour(network: str, rng: random.Random) -> str:
    """An address in a network of sources.txt, or of the same provider beside it."""
    if ":" in network:
        prefix = [part or "0" for part in network.split("::")[0].split(":")]
        words = prefix + [f"{rng.randrange(65536):x}" for _ in range(8 - len(prefix))]
        return ":".join(f"{int(word, 16):04x}" for word in words[:8])
    first, second, third, *_ = network.split(".")
    third = third if rng.random() < 0.3 else str(rng.randrange(256))
    return f"{first}.{second}.{third}.{rng.randrange(1, 255)}"


def lines(since: int, until: int, count: int, host: str = "vps", seed: int = 22) -> Iterator[bytes]:
    """About `count` lines between two times (epoch), in order."""
    rng = random.Random(seed)
    known = scanners(min(max(20, count // 8), 40_000), rng)
    shares = list(accumulate(1 / (rank + 3) ** 0.9 for rank in range(len(known))))
    bursts = [
        (rng.uniform(since, until), rng.uniform(600, 2400), rng.choice(known[:30]))
        for _ in range(1 + (until - since) // 28800)
    ]
    moments = sorted((moment(since, until, bursts, rng) for _ in range(count)), key=lambda found: found[0])
    for at, scanner in moments:
        yield line(at, scanner or rng.choices(known, cum_weights=shares)[0], host, rng)


def moment(
    since: int, until: int, bursts: list[tuple[float, float, Scanner]], rng: random.Random
) -> tuple[float, Scanner | None]:
    """When a packet comes, and whose it is if it is part of a burst."""
    if rng.random() < 0.08:
        start, length, scanner = rng.choice(bursts)
        return min(max(start + length * rng.betavariate(1.2, 3), since), until - 1), scanner
    while True:
        at = rng.uniform(since, until)
        if rng.random() < 0.75 + 0.25 * math.sin((at % 86400 - 21600) / 86400 * 2 * math.pi):
            return at, None


def line(at: float, scanner: Scanner, host: str, rng: random.Random) -> bytes:
    stamp = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="microseconds")
    if ":" in scanner.address:
        target = "2001:0db8:0000:0000:0000:0000:0000:0022"
        packet = f"LEN=60 TC=0 HOPLIMIT={scanner.ttl} FLOWLBL={rng.randrange(1 << 20)}"
        kind = "86:dd"
    else:
        target, kind = "192.0.2.22", "08:00"
        packet = f"LEN=44 TOS=0x00 PREC=0x00 TTL={scanner.ttl} ID={rng.randrange(65536)}"
    port = scanner.port or rng.randrange(1024, 65536)
    return (
        f"{stamp} {host} kernel: knockmap IN=eth0 OUT= MAC=02:42:ac:1e:00:02:02:42:ac:1e:00:03:{kind} SRC={scanner.address}"
        f" DST={target} {packet} PROTO=TCP SPT={port} DPT=22 WINDOW={scanner.window} RES=0x00 SYN URGP=0 \n"
    ).encode()
