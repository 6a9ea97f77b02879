"""Beside a box: gives it the kernel's netfilter lines that are about its own addresses, and no others.

Every open /dev/kmsg has a position of its own, so that relays do not take each other's lines (as readers of
/proc/kmsg do). Runs in the network namespace of its box. How many lines, of whichever box, the kernel overwrote before
they were read stands in /.box/overruns: if it is not 0, a count in that box is not to be trusted. The file is there as soon
as the relay listens.
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
RING = 1024 * 1024  # what any process may have; a flood is to show the limits of the box, not ours


def addresses() -> set[bytes]:
    """The box's addresses as the kernel prints them: IPv6 in full length. Loopback is in every box, so in none."""
    shown = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True).stdout)
    found = (ipaddress.ip_address(info["local"]) for link in shown for info in link.get("addr_info", []))
    return {ip.exploded.encode() for ip in found if not ip.is_loopback}


class Own:
    """Tells whether a line's destination is an address of this box, which gets addresses while an attack lasts.

    The first line for an address that is new must not be lost, so it is asked for; but a flood on another box must not
    keep us busy with asking, so what was foreign is for 5 s.
    """

    def __init__(self) -> None:
        self.own = addresses()
        self.foreign: dict[bytes, float] = {}

    def __contains__(self, address: bytes) -> bool:
        if address not in self.own and time.monotonic() > self.foreign.get(address, 0):
            self.own = addresses()
            self.foreign[address] = time.monotonic() + 5
        return address in self.own


def entry(record: bytes) -> tuple[int, bytes, bytes]:
    """Of a record of /dev/kmsg: its number, its destination (empty if it has none), and it as /proc/kmsg shows it."""
    head, _, text = record.partition(b";")
    priority, number, microseconds, *_ = head.split(b",")
    found = DST.search(text)
    line = b"<%s>[%12.6f] %s\n" % (priority, int(microseconds) / 1e6, text.split(b"\n", 1)[0])
    return int(number), found[1] if found else b"", line


def note(lost: int) -> None:
    with open(OVERRUNS, "w", encoding="ascii") as file:
        file.write(str(lost))


def main() -> None:
    os.nice(-15)  # the kernel's ring lasts 20 ms in a flood
    while not os.path.exists(PIPE):
        time.sleep(0.02)
    pipe = os.open(PIPE, os.O_RDWR)  # reading end too: a daemon that restarts finds what came meanwhile
    fcntl.fcntl(pipe, F_SETPIPE_SZ, RING)
    kmsg = os.open("/dev/kmsg", os.O_RDONLY)
    os.lseek(kmsg, 0, os.SEEK_END)
    own, lost, expected = Own(), 0, 0
    note(lost)
    while True:
        try:
            record = os.read(kmsg, 8192)
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            continue  # overwritten before we read it; the next record's number tells how many
        number, destination, line = entry(record)
        if expected and number > expected:
            lost += number - expected
            note(lost)
        expected = number + 1
        if destination and destination in own:
            os.write(pipe, line)  # waits while the box does not read, as the kernel's own queue would


if __name__ == "__main__":
    main()
