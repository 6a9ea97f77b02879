#!/usr/bin/python3 -Bs
"""On the target: is Kibana there, and if it does not come, why?

readiness.py check    exit 0 if Kibana says that it is available; else how far it is
readiness.py why      the likely causes
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import access
import kibana_api
import units
from kibana_api import Refused, elasticsearch

PATIENCE = 300  # seconds, for a Kibana that is on its way already
UNIT = "kibana.service"
# What Kibana says, and what that means.
WORDS = (
    ("heap out of memory", "memory: its heap was too small; set kibana_heap higher"),
    ("EADDRINUSE", "port: 5601 is taken"),
    ("EACCES", "rights: it may not read or write a file that it needs"),
    ("config validation of", "configuration: it does not take /etc/kibana/kibana.yml"),
    ("Unknown configuration key", "configuration: it does not take /etc/kibana/kibana.yml"),
    ("is incompatible with", "version: it does not fit Elasticsearch's"),
)


def check() -> int:
    unmet = units.kibana()
    if unmet:
        print(unmet, file=sys.stderr)
    return 1 if unmet else 0


def log() -> str:
    argv = ["journalctl", "-u", UNIT, "-n", "40", "--no-pager", "-o", "cat"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def causes() -> Iterator[str]:
    """The likeliest first; then what is looked at for every unit."""
    try:
        if not access.token_works():
            yield "token: Elasticsearch does not take Kibana's; `fab -H … kibana` makes another"
    except elasticsearch.Unreachable as error:
        yield f"Elasticsearch: {error}"
    lines = log()
    yield from (meaning for words, meaning in WORDS if words in lines)
    yield from units.why("kibana")


def why() -> None:
    print("\n".join(dict.fromkeys(causes())))


def wait() -> None:
    """For who needs it now. Raises Refused with the reason."""
    deadline = time.monotonic() + PATIENCE
    while unmet := units.kibana():
        if time.monotonic() > deadline or units.run("systemctl", "is-active", UNIT).strip() != "active":
            raise Refused("\n".join([unmet, *dict.fromkeys(causes())]))
        time.sleep(2)


if __name__ == "__main__":
    sys.exit(kibana_api.run("readiness.py", {"check": check, "why": why}))
