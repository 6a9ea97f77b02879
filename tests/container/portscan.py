"""A connect scan of every TCP port of an address, as `nmap -sT -p-` does it: prints the open ones as JSON.

Run where the address is to be reached: `python3 portscan.py 172.17.0.2 fe80::1%docker0`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

AT_ONCE = 500
SECONDS = 3.0


async def is_open(info: tuple[socket.AddressFamily, tuple[object, ...]], port: int) -> bool:
    family, address = info
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        where = (address[0], port, *address[2:])
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(probe, where), SECONDS)
        except (OSError, asyncio.TimeoutError):
            return False
        return True


async def scan(host: str) -> list[int]:
    """Open ports; 65,535 connects, `AT_ONCE` at a time."""
    found = socket.getaddrinfo(host, 1, type=socket.SOCK_STREAM)[0]
    open_ports: list[int] = []
    ports = iter(range(1, 65536))

    async def worker() -> None:
        for port in ports:
            if await is_open((found[0], found[4]), port):
                open_ports.append(port)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return sorted(open_ports)


async def main(hosts: list[str]) -> None:
    print(json.dumps({host: await scan(host) for host in hosts}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
