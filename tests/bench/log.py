"""Generated log lines in the form of the kernel's: public sources, Zipf-distributed, at a steady pace, from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timezone


def lines(
    count: int, sources: int = 40_000, start: int = 1_780_000_000, step: float = 7.8, seed: int = 22
) -> Iterator[bytes]:
    """`count` lines; one in five sources is IPv6. `step` is the mean number of seconds between lines."""
    rng = random.Random(seed)
    addresses = [address(rng) for _ in range(sources)]
    weights = [1 / (rank + 1) for rank in range(sources)]
    now = float(start)
    for picked in rng.choices(addresses, weights, k=count):
        now += rng.random() * 2 * step
        yield line(now, picked, rng)


def address(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return ":".join(
            f"{part:04x}"
            for part in (0x2400 + rng.randrange(0x800), *(rng.randrange(65536) for _ in range(7)))
        )
    first = rng.choice([n for n in range(11, 224) if n not in (100, 127, 169, 172, 192, 198, 203)])
    return f"{first}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


def line(at: float, source: str, rng: random.Random) -> bytes:
    stamp = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="microseconds")
    port, window = rng.randrange(1024, 65536), rng.choice((1024, 14600, 64240, 65535))
    if ":" in source:
        target = "2001:0db8:0000:0000:0000:0000:0000:0022"
        packet = f"LEN=60 TC=0 HOPLIMIT={rng.randrange(40, 250)} FLOWLBL={rng.randrange(1 << 20)}"
        kind = "86:dd"
    else:
        target, kind = "192.0.2.22", "08:00"
        packet = f"LEN=44 TOS=0x00 PREC=0x00 TTL={rng.randrange(40, 250)} ID={rng.randrange(65536)}"
    return (
        f"{stamp} vps kernel: knockmap IN=eth0 OUT= MAC=02:42:ac:1e:00:02:02:42:ac:1e:00:03:{kind} SRC={source} DST={target} "
        f"{packet} PROTO=TCP SPT={port} DPT=22 WINDOW={window} RES=0x00 SYN URGP=0 \n"
    ).encode()
