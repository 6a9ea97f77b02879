"""Sends SYNs to port 22 of the box from addresses that are on this namespace's own interface.

A job on stdin: {"v4": {"target", "sources": [...]}, "v6": {...}, "count": n, "rate": per second}; the answer on
stdout: {"sent": {source: n}, "seconds": s}. Sources take turns; each SYN has the look of a scanner's.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import struct
import sys
import time

# (TTL at the target, window): zmap, masscan, Linux, Windows, a small device
LOOKS = ((242, 65535), (241, 1024), (52, 64240), (114, 8192), (47, 14600))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def syn(family: int, source: bytes, target: bytes, port: int, window: int) -> bytes:
    """A TCP header with the SYN flag and an MSS option, checksum over its pseudo-header included."""
    fields = (port, 22, random.getrandbits(32), 0, 6 << 4, 2, window)
    header = struct.pack("!HHIIBBH", *fields)
    option = struct.pack("!BBH", 2, 4, 1460)
    length = len(header) + 4 + len(option)
    pseudo = (
        source
        + target
        + (
            struct.pack("!BBH", 0, 6, length)
            if family == socket.AF_INET
            else struct.pack("!IHBB", length, 0, 0, 6)
        )
    )
    return header + struct.pack("!HH", checksum(pseudo + header + b"\0\0\0\0" + option), 0) + option


def sender(family: int, source: str, ttl: int) -> socket.socket:
    out = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
    out.setsockopt(
        *(
            (socket.IPPROTO_IP, socket.IP_TTL)
            if family == socket.AF_INET
            else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        ),
        ttl,
    )
    out.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, 2048
    )  # answers go to the kernel's TCP; we do not read them
    out.bind((source, 0))
    return out


def main() -> None:
    job = json.load(sys.stdin)
    senders = []
    for name, family in (("v4", socket.AF_INET), ("v6", socket.AF_INET6)):
        target = job[name]["target"]
        for number, source in enumerate(job[name]["sources"]):
            ttl, window = LOOKS[number % len(LOOKS)]
            packed = socket.inet_pton(family, source), socket.inet_pton(family, target)
            senders.append((source, family, sender(family, source, ttl), packed, (target, 0), window))
    random.shuffle(senders)
    sent, started = dict.fromkeys((source for source, *_ in senders), 0), time.monotonic()
    for number, (name, family, out, (source, target), address, window) in enumerate(
        itertools.islice(itertools.cycle(senders), job["count"])
    ):
        ahead = number / job["rate"] - (time.monotonic() - started)
        if ahead > 0.001:
            time.sleep(ahead)
        out.sendto(syn(family, source, target, random.randrange(1024, 65536), window), address)
        sent[name] += 1
    print(json.dumps({"sent": sent, "seconds": round(time.monotonic() - started, 3)}))


if __name__ == "__main__":
    main()
