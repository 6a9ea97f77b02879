"""Debian packages, and what can go wrong with apt."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from . import wire
from .files import receive
from .item import Item, forget_observations, observed
from .machine import ENVIRONMENT, at, must, read_text, run
from .wire import Failure, Have, Want, emit

LOCK_SECONDS = 600  # how long we wait for apt, dpkg and another run of ours


# What we hold is ours to move or remove; a lower version still is refused.
INSTALL = ("--no-install-recommends", "--allow-change-held-packages")
INSTALLED = ("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev} ${Version}\n")
ARCHIVES = "/var/cache/apt/archives"

to_come: list[Want] = []  # all packages of this run, since what one of them stops shall wait for no download
arrived: dict[
    str, str
] = {}  # and for no operator who is gone meanwhile: SHA-256 of a .deb file -> where it is


class Package(Item):
    def questions(self) -> list[tuple[str, ...]]:
        return [INSTALLED]

    def wanted(self) -> Have:
        return {"missing": [], **({"unheld": []} if self.want["hold"] else {})}

    def observe(self) -> Have:
        bare = [name.partition("=")[0] for name in self.want["names"]]
        return {
            "missing": [name for name in self.want["names"] if not is_installed(name)],
            "unheld": [name for name in bare if name not in held()],
        }

    def prepare(self, have: Have) -> None:
        if self.stopped(have["missing"]):
            fetch(self.want["id"])

    def apply(self, have: Have) -> None:
        if have["missing"]:
            self.install(have["missing"])
        if self.want["hold"]:
            must("the packages were not held", "apt-mark", "hold", *self.observe()["unheld"])
            forget_observations()

    def install(self, missing: list[str]) -> None:
        entry = self.journal.entries[self.want["id"]]
        # Written down before apt runs, so that what comes with it is known also if we are killed meanwhile.
        entry.setdefault("former", sorted(installed()))
        self.journal.save()
        for unit in self.stopped(missing):
            run("systemctl", "stop", unit)  # it may not be there (yet)
        debs = brought(self.want)
        # Named though it is there, apt would upgrade it, which nobody asked for and nobody could take back.
        apt_get(self.want["id"], "install", *(debs or missing))
        for deb in debs:
            os.unlink(deb)
        forget_observations()

    def stopped(self, missing: list[str]) -> list[str]:
        """The units that must not run meanwhile, where one of these is installed in another version."""
        replaced = any(name.partition("=")[0] in installed() for name in missing)
        return list(self.want["stops"]) if replaced else []

    def finish(self) -> None:
        drop_archives(self.want["names"])
        entry = self.journal.entries[self.want["id"]]
        added = installed() - set(entry.pop("former", installed()))
        entry["added"] = [*entry.get("added", []), *sorted(added)]

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True  # a package that the operator removed himself needs no undoing

    def added(self) -> list[str]:
        """What we brought and is still there."""
        return [
            name for name in self.journal.entries[self.want["id"]].get("added", []) if name in installed()
        ]

    def keeps(self, before: Have, options: dict[str, Any]) -> str:
        added = self.added()
        return (
            f"kept: {' '.join(added)} (--packages removes them)" if added and not options["packages"] else ""
        )

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        added = self.added()
        if not added:
            return ""
        removed = re.findall(r"^(?:Remv|Purg) (\S+)", run("apt-get", "-s", "purge", *added).stdout, re.M)
        if others := sorted(set(removed) - set(added)):
            return f"kept: {' '.join(added)}, since {' '.join(others)} needs them by now"
        apt_get(self.want["id"], "purge", *added)
        forget_observations()
        import shutil

        folders = self.want.get("remains", []) + (self.want.get("stores", []) if options["data"] else [])
        for folder in folders:
            shutil.rmtree(at(folder), ignore_errors=True)
        left = [folder for folder in self.want.get("stores", []) if os.path.isdir(at(folder))]
        if left:
            emit("notice", text=f"{' '.join(left)} stay, since they hold data (--data removes them)")
        return ""


def dpkg() -> dict[str, tuple[str, str]]:
    """name -> (state such as "ii", or "hi" where it is held; version) of all that is installed."""
    if "dpkg" not in observed:
        lines = (line.split() for line in run(*INSTALLED).stdout.splitlines())
        observed["dpkg"] = {
            words[0]: (words[1], words[2]) for words in lines if len(words) == 3 and words[1][1:] == "i"
        }
    return observed["dpkg"]  # type: ignore[no-any-return]


def installed() -> set[str]:
    return set(dpkg())


def held() -> set[str]:
    return {name for name, (state, _) in dpkg().items() if state[0] == "h"}


def is_installed(name: str) -> bool:
    """True for a `name`, or exactly a `name=version`, that is there."""
    name, _, version = name.partition("=")
    return name in dpkg() and version in ("", dpkg()[name][1])


def will_bring(wants: list[Want]) -> None:
    to_come[:] = [want for want in wants if want["kind"] == "package"]


def brought(want: Want) -> list[str]:
    """The .deb files of a package that come from the operator, each asked for once."""
    for deb in want["debs"]:
        if not os.path.exists(arrived.get(deb["sha256"], "")):
            arrived[deb["sha256"]] = receive(want["id"], deb, f".{deb['name']}")
    return [arrived[deb["sha256"]] for deb in want["debs"]]


def fetch(id: str) -> None:
    """Have here whatever this run is to install in an exact version: what cannot be had is found while all still runs."""
    due = [want for want in to_come if any("=" in name and not is_installed(name) for name in want["names"])]
    try:
        names = [name for want in due for name in brought(want) or want["names"]]
        apt_get(id, "install", "--download-only", *names)
    except Failure as failure:
        raise Failure(f"{failure}; nothing was stopped", failure.output) from None


def drop_archives(names: Sequence[str]) -> None:
    """Take what was installed in an exact version out of apt's cache: it is large, and apt keeps it for good."""
    ours = tuple(f"{name.partition('=')[0]}_" for name in names if "=" in name)
    there = os.listdir(at(ARCHIVES)) if ours and os.path.isdir(at(ARCHIVES)) else []
    for file in there:
        if file.startswith(ours) and file.endswith(".deb"):
            os.unlink(at(f"{ARCHIVES}/{file}"))


def refuse_removals(names: Sequence[str]) -> None:
    """Say why apt-get refused by --no-remove."""
    plan = run("apt-get", "-s", "install", *INSTALL, *names).stdout
    if removed := re.findall(r"^Remv (\S+)", plan, re.M):
        raise Failure(
            f"installing {' '.join(names)} would remove {' '.join(removed)}, so nothing was installed; "
            "settle that by hand first"
        )


LOCKED = re.compile(r"Could not get lock ([^\s.]+)|Unable to (?:lock|acquire)")
APT_CAUSES = (  # what apt prints -> what it means to the operator
    (LOCKED.pattern, f"another program held apt's lock {{0}} for {LOCK_SECONDS} s"),
    (
        r"Temporary failure resolving '?([^' \n]*)",
        "the target cannot resolve {0}: check its DNS (/etc/resolv.conf)",
    ),
    (r"Could not resolve '?([^' \n]*)", "the target cannot resolve {0}: check its DNS (/etc/resolv.conf)"),
    (
        r"is not valid yet|not live until|invalid for another",
        "the target's clock is wrong (see `timedatectl`), so apt trusts no archive",
    ),
    (r"No space left on device|enough free space", "the target's disk is full (see `df -h`)"),
    (
        r"Network is unreachable|[Cc]onnection timed out|Unable to connect to (\S+)|Could not connect to (\S+)",
        "the target does not reach its apt archive: check its network, or its sources in /etc/apt",
    ),
    (
        r"Version '(\S+)' for '(\S+)' was not found",
        "its apt sources have no version {0} of {1}: check the setting and /etc/apt/sources.list.d",
    ),
    (
        r"NO_PUBKEY|is not signed|is not bound|couldn't be verified|EXPKEYSIG|No good signature",
        "an apt source is not signed by the key that it shall be signed by, so it is not trusted",
    ),
    (
        r"403 +Forbidden",
        "the apt archive refuses this target (some countries are): set an own mirror, or bring the .deb files",
    ),
    (r"Unable to locate package (\S+)", "its apt sources have no package {0}: check /etc/apt/sources.list.d"),
)


def apt_get(id: str, *argv: str) -> None:
    """Run apt-get with its output as progress; waits for locks, refreshes old package lists, explains failures."""
    said = ""  # apt-get update may fail and still exit with 0: what it said names the cause of what follows
    if argv[0] == "install" and not lists_are_fresh():
        said += apt_run(id, "update")[1]
    rc, output = apt_run(id, *argv)
    if rc and "remove is disabled" in output:
        refuse_removals([word for word in argv[1:] if not word.startswith("-")])
    if rc and argv[0] == "install":  # the lists can be older than the archive: look again, once
        said += apt_run(id, "update")[1]
        rc, output = apt_run(id, *argv)
    if rc:
        raise Failure(f"apt-get {argv[0]} failed: {apt_cause(said + output)}{versions_there(output)}", output)


def apt_cause(output: str) -> str:
    for pattern, meaning in APT_CAUSES:
        if found := re.search(pattern, output):
            return meaning.format(*(group or "" for group in found.groups()))
    return "its last lines follow"


def versions_there(output: str) -> str:
    """Where apt lacks a version: which ones it has, the newest first."""
    lacking = re.search(r"^E: Version '\S+' for '(\S+)' was not found", output, re.M)
    if not lacking:
        return ""
    rows = (line.split("|") for line in run("apt-cache", "madison", lacking[1]).stdout.splitlines())
    found = list(dict.fromkeys(row[1].strip() for row in rows if len(row) == 3))
    return f"; there {'is' if len(found) < 2 else 'are'} {', '.join(found[:8]) or 'none'}"


def lists_are_fresh() -> bool:
    lists = at("/var/lib/apt/lists")
    names = [name for name in os.listdir(lists) if name.endswith(("_Packages", "_Packages.lz4", "Release"))]
    return any(time.time() - os.path.getmtime(f"{lists}/{name}") < 86400 for name in names)


def apt_run(id: str, *argv: str) -> tuple[int, str]:
    """apt-get once all of its locks are free. Another may take one right before it does, as on a machine's first day."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        wait_for_locks(id)
        rc, output = apt_run_once(id, *argv)
        if not rc or not LOCKED.search(output) or time.monotonic() > deadline:
            return rc, output
        time.sleep(1)


def apt_run_once(id: str, *argv: str) -> tuple[int, str]:
    options = (
        "-q",
        "-y",
        "-o",
        f"DPkg::Lock::Timeout={LOCK_SECONDS}",
        "-o",
        "Dpkg::Options::=--force-confdef",
        "-o",
        "Dpkg::Options::=--force-confold",
    )
    extra = {
        "install": (*INSTALL, "--no-remove"),
        "purge": ("--allow-change-held-packages",),
    }.get(argv[0], ("-o", "Acquire::Retries=1"))
    process = subprocess.Popen(
        ["apt-get", *options, *extra, *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=ENVIRONMENT,
        start_new_session=True,  # a hang-up of our channel must not reach dpkg in the middle of its work
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        if "password" in line.lower():
            continue  # Elasticsearch's package prints one, and nobody shall see it
        lines.append(line)
        emit("progress", id=id, text=f"apt-get {argv[0]}: {line.strip()[:100]}")
    return process.wait(), "".join(lines)


def wait_for_locks(id: str) -> None:
    """apt-get itself waits for dpkg's lock only, and says nothing meanwhile."""
    deadline = time.monotonic() + LOCK_SECONDS
    told = ""
    for path in ("/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock", f"{ARCHIVES}/lock"):
        while (holder := lock_holder(path)) is not None:
            if time.monotonic() > deadline:
                raise Failure(
                    f"{path} is still held by {holder} after {LOCK_SECONDS} s; nothing was installed"
                )
            if holder != told:
                told = holder
                emit("notice", text=f"waiting for apt's lock, held by {holder}")
            emit("progress", id=id, text=f"waiting for apt's lock, held by {holder}")
            if wire.gone:
                raise Failure("stopped while waiting for apt's lock")
            time.sleep(1)


def lock_holder(path: str) -> str | None:
    """Who holds the fcntl lock on `path`, such as "process 812 (apt-get)"; None if it is free."""
    try:
        with open(at(path), "rb") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return None
    return (
        None
        if kind == fcntl.F_UNLCK
        else f"process {pid} ({read_text(f'/proc/{pid}/comm').strip() or 'unknown'})"
    )
