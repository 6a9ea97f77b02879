#!/usr/bin/python3 -Bs
"""On the target: Logstash's own word on our pipeline, as its own user, beside the one that runs.

test         succeed if Logstash takes the pipeline that is in place
debug N      what it makes of the last N lines of the log; nothing is stored
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque

LOGSTASH, ETC = "/usr/share/logstash/bin/logstash", "/etc/logstash"
LOG = "/var/log/iptables.log"
PIPELINE = f"{ETC}/conf.d/knockmap-1-pipeline.conf"
SECRETS = f"{ETC}/knockmap.env"
ENDS = "input { stdin { codec => plain } }\noutput { stdout { codec => rubydebug } }\n"
# What is about Logstash itself.
NOISE = re.compile(r"\[\d{4}-|Using |Sending Logstash|OpenJDK|WARNING|The stdin plugin")


def environment() -> dict[str, str]:
    """With what systemd hands over; only Logstash's user and root can see it in a process."""
    with open(SECRETS, encoding="utf-8") as file:
        pairs = (line.strip().split("=", 1) for line in file if "=" in line and not line.startswith("#"))
        given = dict(pairs)
    return {**os.environ, "LC_ALL": "C.UTF-8", "LS_JAVA_OPTS": "-Xms256m -Xmx256m", **given}


def logstash(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """As its own user: it refuses root, and what root leaves behind would hinder the service."""
    argv = ["runuser", "-u", "logstash", "--", LOGSTASH, "--path.settings", ETC, *words]
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        errors="replace",
        input=stdin,
        env=environment(),
        cwd="/",
        check=False,
    )


def test() -> None:
    done = logstash("-t")
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise SystemExit("\n".join(line[:400] for line in said[-8:]))


def debug(count: int) -> None:
    with open(LOG, encoding="utf-8", errors="replace") as file:
        lines = list(deque(file, count))
    if not lines:
        raise SystemExit(f"{LOG} is empty: nobody knocked yet")
    folder = tempfile.mkdtemp(prefix="knockmap-")
    try:
        owner = pwd.getpwnam("logstash")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        done = logstash(
            "--path.data",
            f"{folder}/data",
            "--api.enabled",
            "false",
            "-f",
            prepare(folder),
            stdin="".join(lines),
        )
    finally:
        shutil.rmtree(folder)
    shown = [line for line in done.stdout.splitlines() if line.strip() and not NOISE.match(line)]
    if done.returncode or not shown:
        raise SystemExit("\n".join((done.stdout + done.stderr).strip().splitlines()[-8:]))
    print("\n".join(shown))


def prepare(folder: str) -> str:
    """Our filters between the standard streams. A block of ours ends with the first brace at the start of a line."""
    with open(PIPELINE, encoding="utf-8") as file:
        filters = "".join(re.findall(r"^filter \{\n.*?^\}\n", file.read(), re.M | re.S))
    path = f"{folder}/debug.conf"
    with open(path, "w", encoding="utf-8") as file:
        file.write(ENDS + filters)
    os.chmod(path, 0o644)
    return path


if __name__ == "__main__":
    test() if sys.argv[1] == "test" else debug(int(sys.argv[2]))
