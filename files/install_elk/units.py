#!/usr/bin/python3 -Bs
"""On the target: whether Elastic's units do their work, and what hinders one that does not.

ready NAME    succeed as soon as elasticsearch (logstash, kibana) answers; else one line on how far it is
why NAME      the usual causes, looked at: memory, rights, port; and the program's own last complaints
secured       succeed if Elasticsearch's package has set up TLS and passwords; else what to type
healthy       succeed if Elasticsearch has all of our data
heal          give it a minute for that, and say what is missing
"""

from __future__ import annotations

import glob
import http.client
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from elasticsearch import CA, DATA_STREAMS, Unreachable, call

LOGSTASH = "9600"
PORTS = {"elasticsearch": ("9200", "9300"), "logstash": (LOGSTASH,), "kibana": ("5601",)}
READS = {
    "elasticsearch": (
        "/etc/elasticsearch/elasticsearch.yml",
        "/etc/elasticsearch/elasticsearch.keystore",
        "/etc/elasticsearch/certs/*",
        "/etc/elasticsearch/jvm.options.d/*",
    ),
    "logstash": (
        "/etc/logstash/logstash.yml",
        "/etc/logstash/conf.d/*",
        "/etc/logstash/certs/*",
        "/etc/logstash/patterns/*",
    ),
    "kibana": ("/etc/kibana/kibana.yml", "/etc/kibana/certs/*"),
}
LOGS = {
    "elasticsearch": "/var/log/elasticsearch/knockmap.log",
    "logstash": "/var/log/logstash/logstash-plain.log",
    "kibana": "/var/log/kibana/kibana.log",
}

DATA = "/var/lib/elasticsearch"
COPIES = ("/etc/logstash/certs/http_ca.crt", "/etc/kibana/certs/http_ca.crt")


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return done.stdout


def elasticsearch() -> str:
    """Empty as soon as it answers, be it that it wants a password."""
    try:
        call("GET", "/", auth="none", timeout=5)
    except Unreachable as error:
        return str(error)
    return ""


def document(address: str, timeout: float) -> Any:
    """The JSON at this port and path of ours. Raises OSError, also where a program ends in the middle of its answer, and ValueError."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{address}", timeout=timeout) as answer:
            return json.load(answer)
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {type(error).__name__}") from error


def logstash() -> str:
    """Empty as soon as the pipeline runs. The API is there before, and knows the pipeline before its plugins are registered."""
    try:
        report = document(f"{LOGSTASH}/_health_report", timeout=5)
        pipelines = report["indicators"]["pipelines"]["indicators"]
    except (OSError, ValueError, KeyError) as error:
        return f"no answer on port {LOGSTASH} yet ({error})"
    if "main" not in pipelines:
        return "no pipeline is there yet"
    state = pipelines["main"]["details"]["status"]["state"]
    return "" if state == "RUNNING" else f"the pipeline's state is {state}"


def kibana() -> str:
    try:
        level = document("5601/kibana/api/status", timeout=10)["status"]["overall"]["level"]
    except urllib.error.HTTPError as error:
        return f"Kibana is not ready yet ({error.code})"
    except (OSError, ValueError, KeyError) as error:
        return f"no answer on port 5601 yet ({error})"
    return "" if level == "available" else f"Kibana is {level}"


READY = {"elasticsearch": elasticsearch, "logstash": logstash, "kibana": kibana}


def why(name: str) -> Iterator[str]:
    yield from complaints(name)
    yield from memory(name)
    yield from rights(name)
    yield from ports(name)


def complaints(name: str) -> Iterator[str]:
    """The last errors in the program's own log."""
    try:
        with open(LOGS[name], encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.readlines()[-400:]]
    except OSError:
        return
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.search(r"\bERROR\b|\bFATAL\b|fatal exception", line):
            yield line[:300]
            if following and following[0] not in "[{":  # what Java says of the cause begins on the next line
                yield following[:300]


def memory(name: str) -> Iterator[str]:
    if run("systemctl", "show", "-P", "Result", f"{name}.service").strip() == "oom-kill":
        yield "memory: the kernel ended it for want of memory; set elastic_heap lower, or take a larger box"
    with open("/proc/meminfo", encoding="ascii") as file:
        found = re.search(r"^MemAvailable:\s+(\d+)", file.read(), re.M)
    free = int(found[1]) >> 10 if found else 0
    yield f"memory: {free} MiB available" + (", which is little for a JVM" if free < 600 else "")


def rights(name: str) -> Iterator[str]:
    for path in (path for pattern in READS[name] for path in sorted(glob.glob(pattern))):
        argv = ("runuser", "-u", name, "--", "test", "-r", path)
        if subprocess.run(argv, capture_output=True, check=False).returncode:
            yield f"rights: user {name} cannot read {path}"
    foreign = run("find", f"/var/lib/{name}", f"/var/log/{name}", "!", "-user", name).split()
    if foreign:
        yield f"rights: {foreign[0]} does not belong to {name} (a run as root left it?): chown it"


def ports(name: str) -> Iterator[str]:
    for line in run("ss", "-Hltnp").splitlines():
        words = line.split()
        if words[3].rpartition(":")[2] in PORTS[name]:
            yield f"port: {words[3]} is held by {words[-1][:80]}"


def unsecured() -> str:
    """Empty if the certificate authority is there. Where its making failed, the package is installed all the same."""
    copies = list(filter(filled, COPIES))
    if os.path.exists(CA):
        return ""
    if filled(f"{os.path.dirname(CA)}/http.p12") and copies:
        return f"{CA} is gone, and has a copy: `install -g elasticsearch -m 660 {copies[0]} {CA}`, and deploy again"
    past = f"mv {DATA} {DATA}.former; " if filled(DATA) else ""
    return (
        f"{CA} is not there: Elasticsearch's package did not set up TLS and passwords, and does so only where nothing "
        "is left of a former one. /var/log/apt/term.log says what failed; put that right, then "
        f"`dpkg --purge elasticsearch; {past}rm -r /etc/elasticsearch`, and deploy again"
    )


def filled(path: str) -> bool:
    return (
        bool(os.listdir(path)) if os.path.isdir(path) else os.path.exists(path) and os.path.getsize(path) > 0
    )


def health(patience: str) -> str:
    """Empty if the cluster is there and our data are whole; a copy less of somebody else's index is not our matter."""
    path = f"/_cluster/health/{DATA_STREAMS}?wait_for_status=green&timeout={patience}"
    answer = call("GET", path, timeout=120)[1]
    status = answer.get("status") if isinstance(answer, dict) else None
    return "" if status == "green" else f"the health of {DATA_STREAMS} is {status or answer}"


ASKED: dict[str, Callable[..., str]] = {
    "ready": lambda name: READY[name](),
    "secured": unsecured,
    "healthy": lambda: health("1s"),
    "heal": lambda: health("60s"),
}


def main() -> None:
    verb, *words = sys.argv[1:]
    if verb == "why":
        print("\n".join(list(why(words[0]))[-9:]))
        return
    try:
        unmet = ASKED[verb](*words)
    except Unreachable as error:
        unmet = str(error)
    if unmet:
        raise SystemExit(unmet)


if __name__ == "__main__":
    main()
