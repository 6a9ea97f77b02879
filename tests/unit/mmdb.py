"""Writes a tiny database in MaxMind's format (version 2.0), so that tests need none of the real ones."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path
from typing import Any

Tree = list[list[int | None]]


def write(path: Path, networks: dict[str, dict[str, Any]], kind: str = "Test-City", built: int = 1) -> None:
    """A database of IPv4 and IPv6 networks (none inside another) and their records."""
    tree: Tree = [[None, None]]
    data, offsets = b"", []
    for number, (network, record) in enumerate(networks.items()):
        insert(tree, ipaddress.ip_network(network), -1 - number)
        offsets.append(len(data))
        data += encode(record)
    size = len(tree)

    def pointer(child: int | None) -> bytes:
        """Of 32 bits: another node, nothing, or a record behind the tree and 16 zero bytes."""
        target = size if child is None else child if child >= 0 else size + 16 + offsets[-1 - child]
        return target.to_bytes(4, "big")

    shorts = {
        "record_size": 32,
        "ip_version": 6,
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
    }
    about: dict[str, Any] = {
        key: bytes([5 << 5 | 2]) + value.to_bytes(2, "big") for key, value in shorts.items()
    }
    about |= {
        "node_count": bytes([6 << 5 | 4]) + size.to_bytes(4, "big"),
        "database_type": kind,
        "description": {},
    }
    about |= {"build_epoch": bytes([8, 9 - 7]) + built.to_bytes(8, "big"), "languages": bytes([0, 11 - 7])}
    nodes = b"".join(pointer(child) for node in tree for child in node)
    path.write_bytes(nodes + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + encode(about))


def insert(tree: Tree, network: ipaddress.IPv4Network | ipaddress.IPv6Network, leaf: int) -> None:
    """IPv4 is the part of the tree below 96 zero bits."""
    bits = f"{int(network.network_address):0128b}"[: network.prefixlen + (96 if network.version == 4 else 0)]
    node = 0
    for bit in bits[:-1]:
        child = tree[node][int(bit)]
        if child is None:
            child = tree[node][int(bit)] = len(tree)
            tree.append([None, None])
        node = child
    tree[node][int(bits[-1])] = leaf


def encode(value: Any) -> bytes:
    """Text shorter than 285 bytes, floats and maps; bytes are taken for encoded (numbers of a certain width, lists)."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        text = value.encode()
        size = bytes([2 << 5 | len(text)]) if len(text) < 29 else bytes([2 << 5 | 29, len(text) - 29])
        return size + text
    if isinstance(value, float):
        return bytes([3 << 5 | 8]) + struct.pack(">d", value)
    return bytes([7 << 5 | len(value)]) + b"".join(encode(key) + encode(item) for key, item in value.items())
