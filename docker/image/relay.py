"""Beside a box: gives it the kernel's netfilter lines that are about its own addresses, and no others.

Every open /dev/kmsg has a position of its own, so that relays do not take each other's lines (as readers of
/proc/kmsg do). Runs in the network namespace of its box. How many lines, of whichever box, the kernel overwrote before
they were read stands in /.box/overruns: if it is not 0, a count in that box is not to be trusted. The file is there as soon
as the relay listens.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Iterable

PIPE, OVERRUNS = "/.box/kmsg", "/.box/overruns"
DST = re.compile(rb" DST=([0-9a-f.:]+) ")
F_SETPIPE_SZ = 1031
MOST = 8 * 1024 * 1024  # bytes, or 40,000 lines: a flood is to show the limits of the box, not ours


def printed(addresses: Iterable[str]) -> set[bytes]:
    """As the kernel prints them: IPv6 in full length. Loopback is in every box, so in none."""
    found = map(ipaddress.ip_address, addresses)
    return {ip.exploded.encode() for ip in found if not ip.is_loopback}


def addresses() -> set[bytes]:
    """The box's addresses at this moment."""
    shown = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True).stdout)
    return printed(info["local"] for link in shown for info in link.get("addr_info", []))


class Own:
    """Tells whether a line's destination is an address of this box.

    Those that attacks give it are `known` beforehand, since a line may be read when its attack is over. The first line
    for another that is new must not be lost either, so it is asked for; but a flood on another box must not keep us busy
    with asking, so what was foreign is for 5 s.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.own = printed(known) | addresses()
        self.foreign: dict[bytes, float] = {}

    def __contains__(self, address: bytes) -> bool:
        if address not in self.own and time.monotonic() > self.foreign.get(address, 0):
            self.own |= addresses()
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
    with open(f"{OVERRUNS}.new", "w", encoding="ascii") as file:
        file.write(str(lost))
    os.rename(f"{OVERRUNS}.new", OVERRUNS)  # whoever reads it finds a number


class Relay:
    """Reads what the kernel logs as soon as it does, and keeps what the box has not read yet, up to `MOST` bytes."""

    def __init__(self) -> None:
        self.pipe = os.open(
            PIPE, os.O_RDWR | os.O_NONBLOCK
        )  # to read, too: a daemon that restarts loses nothing
        fcntl.fcntl(self.pipe, F_SETPIPE_SZ, 1024 * 1024)
        self.kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.kmsg, 0, os.SEEK_END)
        self.own, self.unread = Own(os.environ["ATTACKED"].split()), bytearray()
        self.lost, self.expected = 0, 0
        note(0)

    def read(self) -> None:
        """Take up to 100 records, as many as there are."""
        for _ in range(100):
            try:
                self.take(os.read(self.kmsg, 8192))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                # Overwritten before we read it: the next record's number tells how many.

    def take(self, record: bytes) -> None:
        number, destination, line = entry(record)
        if self.expected and number > self.expected:
            self.lost += number - self.expected
            note(self.lost)
        self.expected = number + 1
        if destination and destination in self.own:
            self.unread += line

    def write(self) -> None:
        """Give the box as much as its pipe takes now."""
        with contextlib.suppress(BlockingIOError):
            del self.unread[: os.write(self.pipe, self.unread)]


def main() -> None:
    while not os.path.exists(PIPE):
        time.sleep(0.02)
    os.nice(-15)  # in a flood the kernel's ring lasts 20 ms
    relay = Relay()
    while True:
        # A box that does not read for long makes us wait, as the kernel's own queue would.
        read = [relay.kmsg] if len(relay.unread) < MOST else []
        write = [relay.pipe] if relay.unread else []
        readable, writable, _ = select.select(read, write, [])
        if readable:
            relay.read()
        if writable:
            relay.write()


if __name__ == "__main__":
    main()
