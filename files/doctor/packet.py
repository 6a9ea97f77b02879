"""The proof packet on the target: from the rule's counter to the line to the row or document, with the time of each."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import elastic
from look import LOG, Target, run
from sensor import counts
from storage import row_of

PACKET = re.compile(
    rb"knockmap IN=\S+ .*?SRC=([0-9a-f.:]+) .*?PROTO=TCP SPT=(\d+) DPT=22 (?:.*?WINDOW=(\d+))?"
)


class Seen(NamedTuple):
    """The source of a SYN as it came in: behind NAT it is another than what the operator's machine thinks."""

    address: str
    port: int
    window: int


class LogEnd:
    """What comes to the log from now on, also over a rotation."""

    def __init__(self, path: str = LOG) -> None:
        self.path = path
        self.rest = b""
        self.file: Any = None
        self.reopen(at_end=True)

    def reopen(self, at_end: bool = False) -> None:
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115 # it stays open
        except OSError:
            self.file = None
        if self.file and at_end:
            self.file.seek(0, os.SEEK_END)

    def lines(self) -> list[bytes]:
        """Complete lines that are new."""
        if self.file is None:
            self.reopen()
        if self.file is None:
            return []
        more: bytes = self.file.read()
        *whole, self.rest = (self.rest + more).split(b"\n")
        if self.replaced():
            self.reopen()
        return whole

    def replaced(self) -> bool:
        try:
            return os.stat(self.path).st_ino != os.fstat(self.file.fileno()).st_ino
        except FileNotFoundError:
            return False


def seen_in(line: bytes) -> Seen | None:
    found = PACKET.search(line)
    if not found:
        return None
    return Seen(str(ipaddress.ip_address(found[1].decode())), int(found[2]), int(found[3] or 0))


def likeness(seen: Seen, packet: dict[str, Any]) -> int:
    """How sure it is that this is ours: 0 is no. A proxy or NAT in between keeps some of the marks, not all."""
    window, port = int(seen.window == packet["window"]), int(seen.port == packet["port"])
    return 4 * window + 2 * port + int(seen.address in packet["from"])


class Watch:
    """One packet's way. Each stage gives what it found, or None while it is not there."""

    def __init__(self, packet: dict[str, Any]) -> None:
        self.packet = packet
        self.family = f"v{packet['family']}"
        self.log = LogEnd()
        self.others = 0
        self.ours: Seen | None = None
        self.began = int(time.time()) - 2
        self.before = self.count()

    def count(self) -> dict[str, int]:
        return counts().get(self.family) or {"seen": 0, "logged": 0, "over_limit": 0}

    def counted(self) -> int:
        return self.count()["seen"] - self.before["seen"]

    def counter(self) -> str | None:
        """Only what is not another's: so the log is read along."""
        counted = self.counted()
        self.read()
        return "counted" if self.ours or counted > self.others else None

    def all_of_others(self, counted: int) -> str | None:
        """Whether every one of the SYNs `counted` so far has its line by now, and none is ours."""
        self.read()
        return "others" if self.ours is None and self.others >= counted else None

    def log_line(self) -> str | None:
        self.read()
        return f"{self.ours.address} port {self.ours.port}" if self.ours else None

    def row(self) -> str | None:
        assert self.ours is not None
        id = row_of(self.ours.address, self.ours.port, self.began)
        return f"event {id}" if id else None

    def document(self) -> str | None:
        """Not asked too often, since Elasticsearch makes it visible every two seconds."""
        assert self.ours is not None
        time.sleep(0.1)
        return elastic.document_of(self.ours.address, self.ours.port, self.began) or None

    def read(self) -> None:
        v6 = self.family == "v6"
        found = [seen for line in self.log.lines() if (seen := seen_in(line)) and (":" in seen.address) == v6]
        best = max(found, key=lambda seen: likeness(seen, self.packet), default=None)
        if self.ours is None and best and likeness(best, self.packet):
            self.ours = best
            found.remove(best)
        self.others += len(found)

    def over_limit(self) -> bool:
        return self.count()["over_limit"] > self.before["over_limit"]


def follow(target: Target, packet: dict[str, Any], emit: Callable[..., None], patience: float) -> None:
    """Say that we watch, then each hop with its milliseconds since then, and where it stopped."""
    addresses = packet["to"] or own_addresses(packet["family"])
    if not addresses:
        return emit("passed", family=packet["family"], why="this host has no global IPv6 address")
    try:
        watch = Watch(packet)
    except (OSError, ValueError) as error:
        return emit("passed", family=packet["family"], why=f"counter: it cannot be read: {error}")
    start = time.monotonic()
    emit("ready", family=packet["family"], to=addresses[0])
    found: str | None = None
    hops: list[dict[str, Any]] = []
    for name, task, look, seconds in stages(target, watch, patience):
        if task not in target.tasks:
            tell(hops, emit)
            return emit("passed", family=packet["family"], why=f"{name}: not deployed")
        found = wait_for(look, seconds)
        if found is None:
            all_of_others = functools.partial(watch.all_of_others, watch.counted())
            if name == "log line" and wait_for(all_of_others, patience):
                name = "counter"
                hops.clear()
            tell(hops, emit)
            return emit("stopped", family=packet["family"], name=name, over_limit=watch.over_limit())
        ms = round((time.monotonic() - start) * 1000)
        hops.append({"family": packet["family"], "name": name, "ms": ms, "found": found})
        if name != "counter":  # which may have counted another's, as long as ours was not seen
            tell(hops, emit)
    if "install_elk" in target.tasks and not elastic.here(target):
        return emit("passed", family=packet["family"], why="document: events go to a cluster elsewhere")
    if watch.ours:
        seen = {"address": watch.ours.address, "port": watch.ours.port, "at": watch.began}
        emit("stored", family=packet["family"], id=found, **seen)
    return None


def tell(hops: list[dict[str, Any]], emit: Callable[..., None]) -> None:
    """The hops that were found, each once."""
    for hop in hops:
        emit("hop", **hop)
    hops.clear()


Stage = tuple[str, str, Callable[[], "str | None"], float]


def stages(target: Target, watch: Watch, patience: float) -> list[Stage]:
    """Name, task, what to look for and how long. Logstash reads every second, and what it stores shows later still."""
    first: list[Stage] = [
        ("counter", "iptables_log", watch.counter, patience),
        ("log line", "syslog_route", watch.log_line, patience),
    ]
    if "install_elk" not in target.tasks:
        return [*first, ("database row", "collector", watch.row, patience)]
    if elastic.here(target):
        first.append(("document", "install_elk", watch.document, 5 * patience))
    return first


def wait_for(look: Callable[[], str | None], seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def own_addresses(family: int) -> list[str]:
    """The global addresses of this host that do not change by themselves."""
    if family != 6:
        return []
    shown = run("ip", "-6", "-o", "addr", "show", "scope", "global", "-temporary", "-deprecated").stdout
    found = [line.split()[3].split("/")[0] for line in shown.splitlines()]
    return [address for address in found if ipaddress.ip_address(address).is_global]
