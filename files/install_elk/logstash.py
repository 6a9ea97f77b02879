#!/usr/bin/python3 -Bs
"""On the target: Logstash's own word on our pipeline, as its own user, beside the one that runs.

test         succeed if Logstash takes the pipeline that is in place
debug N      what it makes of the last N lines of the log; nothing is stored
"""

from __future__ import annotations

import contextlib
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
# What is about Logstash itself.
NOISE = re.compile(r"\[\d{4}-|Using |Sending Logstash|OpenJDK|WARNING")


def environment() -> dict[str, str]:
    """With what systemd hands over; only Logstash's user and root can see it in a process."""
    with open(SECRETS, encoding="utf-8") as file:
        pairs = (line.strip().split("=", 1) for line in file if "=" in line and not line.startswith("#"))
        given = dict(pairs)
    return {**os.environ, "LC_ALL": "C.UTF-8", "LS_JAVA_OPTS": "-Xms256m -Xmx256m", **given}


def logstash(*words: str) -> subprocess.CompletedProcess[str]:
    """As its own user: it refuses root, and what root leaves behind would hinder the service."""
    argv = ["runuser", "-u", "logstash", "--", LOGSTASH, "--path.settings", ETC, *words]
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


@contextlib.contextmanager
def folder_of_its_own() -> Iterator[str]:
    """A folder for Logstash's user alone, gone afterwards."""
    owner = pwd.getpwnam("logstash")
    folder = tempfile.mkdtemp(prefix="knockmap-")
    try:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder)


def test() -> None:
    """With a folder of data of its own: even a test opens the queue, and the one that runs holds that of the service."""
    with folder_of_its_own() as folder:
        done = logstash("--path.data", f"{folder}/data", "-t")
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise SystemExit("\n".join(line[:400] for line in said[-8:]))


def debug(count: int) -> None:
    with open(LOG, encoding="utf-8", errors="replace") as file:
        lines = list(deque(file, count))
    if not lines:
        raise SystemExit(f"{LOG} is empty: nobody knocked yet")
    with folder_of_its_own() as folder:
        path = prepare(folder, lines)
        done = logstash("--path.data", f"{folder}/data", "--api.enabled", "false", "-f", path)
    shown = [line for line in done.stdout.splitlines() if line.strip() and not NOISE.match(line)]
    if done.returncode or not shown:
        raise SystemExit("\n".join((done.stdout + done.stderr).strip().splitlines()[-8:]))
    print("\n".join(shown))


def prepare(folder: str, lines: list[str]) -> str:
    """The lines in a file, and the pipeline that reads them from there, both for Logstash's user alone."""
    with open(DEBUG, encoding="utf-8") as file:
        pipeline = file.read().replace("@LINES@", f"{folder}/lines.log")
    owner = pwd.getpwnam("logstash")
    for name, text in (("lines.log", "".join(lines)), ("debug.conf", pipeline)):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
            os.fchown(file.fileno(), owner.pw_uid, owner.pw_gid)
    return f"{folder}/debug.conf"


if __name__ == "__main__":
    test() if sys.argv[1] == "test" else debug(int(sys.argv[2]))
