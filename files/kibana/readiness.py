#!/usr/bin/python3
"""On the target: is Kibana there, and if it does not come, why?

readiness.py check    exit 0 if Kibana says that it is available
readiness.py wait     wait for that, at most ten minutes; else the reason
"""

from __future__ import annotations

import subprocess
import sys
import time

import access
import kibana_api
from kibana_api import Refused, elasticsearch

PATIENCE = 600  # seconds; on a small VPS the first start takes up to five minutes
UNIT = "kibana.service"
# What Kibana says, and what that means.
WORDS = (
    ("heap out of memory", "it had too little memory; set kibana_heap higher"),
    ("EADDRINUSE", "port 5601 is taken: `ss -ltnp 'sport = :5601'` says by whom"),
    ("EACCES", "it may not read or write a file that it needs"),
    ("config validation of", "it does not take kibana.yml"),
    ("Unknown configuration key", "it does not take kibana.yml"),
    ("Unable to retrieve version information", "it cannot talk to Elasticsearch"),
    ("is incompatible with", "its version does not fit Elasticsearch's"),
)


def level() -> str:
    """What Kibana says of itself; empty as long as it says nothing."""
    try:
        status, text = kibana_api.call("GET", "/api/status", timeout=10)
    except Refused:
        return ""
    overall = kibana_api.document(text) if status in (200, 503) else {}
    found = overall.get("status", {}).get("overall", {}).get("level", "") if isinstance(overall, dict) else ""
    return str(found)


def check() -> int:
    return 0 if level() == "available" else 1


def shown(*properties: str) -> list[str]:
    argv = ["systemctl", "show", UNIT, *(f"--property={name}" for name in properties), "--value"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split("\n")


def log() -> str:
    argv = ["journalctl", "-u", UNIT, "-n", "40", "--no-pager", "-o", "cat"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def ended() -> bool:
    """True if systemd has given the unit up: waiting brings nothing."""
    return "failed" in shown("ActiveState")[:1]


def reason() -> str:
    """The likely causes in one line."""
    lines = log()
    causes = [meaning for words, meaning in WORDS if words in lines]
    if "oom-kill" in shown("Result"):
        causes.insert(0, "the kernel killed it for want of memory; `free -m` shows what is left")
    try:
        if not access.token_works():
            causes.insert(0, "Elasticsearch does not take its token; `fab -H … kibana` makes another")
    except elasticsearch.Unreachable as error:
        causes.insert(0, str(error))
    return "; ".join(dict.fromkeys(causes)) or f"no cause was found; `journalctl -u {UNIT}` says more"


def why() -> None:
    print(reason())


def wait() -> None:
    """For who needs it now. Raises Refused with the reason."""
    deadline = time.monotonic() + PATIENCE
    while check():
        if ended():
            raise Refused(f"Kibana ended: {reason()}")
        if time.monotonic() > deadline:
            raise Refused(f"Kibana is not available after {PATIENCE // 60} minutes: {reason()}")
        time.sleep(2)


if __name__ == "__main__":
    sys.exit(kibana_api.run("readiness.py", {"check": check, "why": why}))
