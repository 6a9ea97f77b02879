"""What every check needs: a verdict, the journal of what was deployed here, and commands of the target."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import pwd
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

JOURNAL = "/var/lib/knockmap/journal/journal.json"
LOG = "/var/log/iptables.log"
READER = "knockmap"  # user and group of those who read the log


class Link(NamedTuple):
    """ok, warn, bad, or absent (not deployed here); why in one sentence; the command that one types next.

    `{fab}` and `{ssh}` in `next` stand for what leads to this host, which only the operator's side knows.
    A `symptom` may come from another link further down, and is then told as that one's.
    """

    state: str
    cause: str
    next: str = ""
    symptom: bool = False


def ok(text: str) -> Link:
    return Link("ok", text)


def warn(cause: str, next: str) -> Link:
    return Link("warn", cause, next)


def bad(cause: str, next: str, symptom: bool = False) -> Link:
    return Link("bad", cause, next, symptom)


ABSENT = Link("absent", "not deployed")


class Target:
    """What was deployed here, by the journal; `job` is what the operator's side says and asks."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.entries: dict[str, dict[str, Any]] = json.loads(text_of(JOURNAL) or "{}")
        # What an undo keeps (packages, data, users) is no task that is deployed.
        ours = (e for e in self.entries.values() if e["kind"] == "file" and not e["want"].get("data"))
        self.tasks = {str(entry["task"]) for entry in ours}
        self.elastic = bool(self.tasks & {"install_elk", "kibana"})

    def files(self, task: str) -> dict[str, dict[str, Any]]:
        """Path → what we left there, for the files of a task; data such as the log are left out."""
        ours = (e for e in self.entries.values() if e["task"] == task and e["kind"] == "file")
        return {e["want"]["path"]: e["after"] for e in ours if not e["want"].get("data")}

    def gone(self, task: str, under: str = "/") -> str:
        """The first file of a task below a folder that is not there any more; "" if all are."""
        files = {p: after for p, after in self.files(task).items() if p.startswith(under)}
        return next((p for p in files if files[p].get("type") == "file" and not os.path.exists(p)), "")

    def edited(self, task: str, under: str = "/") -> str:
        """The first such file that is not as we left it, large ones aside; "" if all are."""
        files = {p: after for p, after in self.files(task).items() if p.startswith(under)}
        small = {p: a for p, a in files.items() if os.path.isfile(p) and os.path.getsize(p) < 1 << 20}
        return next((p for p, a in small.items() if sha256(p) != a.get("sha256")), "")


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def text_of(path: str) -> str:
    """The text of a file; "" if it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def run(*argv: str, seconds: float = 10) -> subprocess.CompletedProcess[str]:
    """A command's end; exit status 127 where it does not exist, 124 where it takes too long."""
    try:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"{argv[0]} did not end within {seconds:.0f} s")


PROPERTIES = (
    "ActiveState,SubState,UnitFileState,MainPID,Result,NRestarts,InvocationID,ExecMainStartTimestampMonotonic"
)


def unit(name: str) -> dict[str, str]:
    """What systemd says of a unit: these properties, by name."""
    shown = run("systemctl", "show", name, "-p", PROPERTIES)
    return dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)


def settled(name: str) -> dict[str, str]:
    """`unit`, once its process has lived for longer than one that ends at its start.

    To systemd such a process is active until it ends, and again as soon as it is started the next time.
    """
    while True:
        found = unit(name)
        enough = 2 if found.get("NRestarts", "0") == "0" else 5
        if found.get("ActiveState") != "active" or running_for(found) >= enough:
            return found
        time.sleep(0.2)


def running_for(found: dict[str, str]) -> float:
    """For how many seconds the main process of a unit has run."""
    return time.monotonic() - int(found.get("ExecMainStartTimestampMonotonic") or 0) / 1e6


def last_words(name: str) -> str:
    """The last line of a unit in the journal, in brackets; "" if there is none."""
    lines = run("journalctl", "-q", "-u", name, "-n", "20", "-o", "cat", "--no-pager").stdout.splitlines()
    said = [line.strip() for line in lines if line.strip() and "systemd" not in line and name not in line]
    return f" ({said[-1][:200]})" if said else ""


@contextlib.contextmanager
def as_reader() -> Iterator[None]:
    """With the rights of the collector: what it cannot read is found, and SQLite leaves no files of root's behind."""
    user, groups = pwd.getpwnam(READER), os.getgroups()
    os.setgroups([user.pw_gid])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def names_of(info: os.stat_result) -> tuple[str, str]:
    """Owner and group of a file, as numbers where they have no name."""
    owner, group = str(info.st_uid), str(info.st_gid)
    with contextlib.suppress(KeyError):
        owner = pwd.getpwuid(info.st_uid).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(info.st_gid).gr_name
    return owner, group


def first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "it says nothing"
