"""Beside a box: gives it the kernel's netfilter lines that are about its own addresses, and no others.

Every open /dev/kmsg has a position of its own, so that relays do not take each other's lines (as readers of
/proc/kmsg do). Runs in the network namespace of its box. What the kernel overwrote before it was read is counted in
/.box/overruns: then a count in that box is not to be trusted.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import re
import subprocess
import time

PIPE, OVERRUNS = "/.box/kmsg", "/.box/overruns"
DST = re.compile(rb" DST=([0-9a-f.:]+) ")
F_SETPIPE_SZ = 1031
RING = 128 * 1024  # as much as an ordinary kernel keeps for a syslog daemon that is away


def addresses() -> set[bytes]:
    """The box's addresses as the kernel prints them: IPv6 in full length. Loopback is in every box, so in none."""
    shown = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True).stdout)
    found = (ipaddress.ip_address(info["local"]) for link in shown for info in link.get("addr_info", []))
    return {ip.exploded.encode() for ip in found if not ip.is_loopback}


def main() -> None:
    while not os.path.exists(PIPE):
        time.sleep(0.02)
    pipe = os.open(PIPE, os.O_RDWR)  # reading end too: a daemon that restarts finds what came meanwhile
    fcntl.fcntl(pipe, F_SETPIPE_SZ, RING)
    kmsg = os.open("/dev/kmsg", os.O_RDONLY)
    os.lseek(kmsg, 0, os.SEEK_END)
    with open(OVERRUNS, "w", encoding="ascii") as file:
        file.write("0")
    own, overruns = addresses(), 0
    foreign: dict[bytes, float] = {}  # an address that is not ours, and until when we believe that
    while True:
        try:
            head, _, text = os.read(kmsg, 8192).partition(b";")
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            overruns += 1
            with open(OVERRUNS, "w", encoding="ascii") as file:
                file.write(str(overruns))
            continue
        found = DST.search(text)
        if not found:
            continue
        # The first line for an address that is new to us must not be lost, and a flood on another box must not keep us
        # busy with asking.
        if found[1] not in own and time.monotonic() > foreign.get(found[1], 0):
            own = addresses()
            foreign[found[1]] = time.monotonic() + 5
        if found[1] in own:
            priority, _, microseconds, *_ = head.split(b",")
            stamp = int(microseconds) / 1e6
            os.write(pipe, b"<%s>[%12.6f] %s\n" % (priority, stamp, text.split(b"\n", 1)[0]))


main()
