#!/usr/bin/python3 -Bs
"""On the target: Logstash's own word on our pipeline, as its own user, beside the one that runs.

test         succeed if Logstash takes the pipeline that is in place
debug N      what it makes of the last N lines of the log; nothing is stored
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator

LOGSTASH, ETC = "/usr/share/logstash/bin/logstash", "/etc/logstash"
LOG = "/var/log/iptables.log"
DEBUG = "/usr/local/lib/knockmap/install_elk/debug.conf"
SECRETS = f"{ETC}/knockmap.env"
DISK = "/var/tmp"  # noqa: S108 - mkdtemp makes a folder of our own there
# What is about Logstash itself.
NOISE = re.compile(r"\[\d{4}-|Using |Sending Logstash|OpenJDK|WARNING")


def environment() -> dict[str, str]:
    """With what systemd hands over; only Logstash's user and root can see it in a process."""
    with open(SECRETS, encoding="utf-8") as file:
        pairs = (line.strip().split("=", 1) for line in file if "=" in line and not line.startswith("#"))
        given = dict(pairs)
    return {**os.environ, "LC_ALL": "C.UTF-8", "LS_JAVA_OPTS": "-Xms256m -Xmx256m", **given}


@contextlib.contextmanager
def workplace() -> Iterator[str]:
    """A folder that nobody else looks into, removed afterwards.

    On the disk: Logstash wants room for a whole queue there, and /tmp may be memory.
    """
    folder = tempfile.mkdtemp(prefix="knockmap-", dir=DISK)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def hand_over(folder: str) -> None:
    """To Logstash's user, with what is in it; from then on it is no place for root to write to."""
    owner = pwd.getpwnam("logstash")
    for path in (*glob.glob(f"{folder}/*"), folder):
        os.chown(path, owner.pw_uid, owner.pw_gid)


def logstash(folder: str, *words: str) -> subprocess.CompletedProcess[str]:
    """As its own user: it refuses root, and what root leaves behind would hinder the service.

    With data of its own: also a mere test opens the queue, and that of the service is locked while it runs.
    """
    hand_over(folder)
    settings = ("--path.settings", ETC, "--path.data", f"{folder}/data")
    argv = ["runuser", "-u", "logstash", "--", LOGSTASH, *settings, *words]
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env=environment(),
        cwd="/",
        check=False,
    )


def test() -> None:
    with workplace() as folder:
        done = logstash(folder, "-t")
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise SystemExit("\n".join(line[:400] for line in said[-8:]))


def debug(count: int) -> None:
    with open(LOG, encoding="utf-8", errors="replace") as file:
        lines = list(deque(file, count))
    if not lines:
        raise SystemExit(f"{LOG} is empty: nobody knocked yet")
    with workplace() as folder:
        done = logstash(folder, "--api.enabled", "false", "-f", prepare(folder, lines))
    shown = [line for line in done.stdout.splitlines() if line.strip() and not NOISE.match(line)]
    if done.returncode or not shown:
        raise SystemExit("\n".join((done.stdout + done.stderr).strip().splitlines()[-8:]))
    print("\n".join(shown))


def prepare(folder: str, lines: list[str]) -> str:
    """The lines in a file, and the path of the pipeline that reads them from there."""
    with open(DEBUG, encoding="utf-8") as file:
        pipeline = file.read().replace("@LINES@", f"{folder}/lines.log")
    for name, text in (("lines.log", "".join(lines)), ("debug.conf", pipeline)):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    return f"{folder}/debug.conf"


if __name__ == "__main__":
    test() if sys.argv[1] == "test" else debug(int(sys.argv[2]))
