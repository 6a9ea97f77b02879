"""From the embedded stack to Elasticsearch without losing the past: its raw lines go through Logstash once more."""

from __future__ import annotations

import json
from typing import Any

from fabric import Connection  # type: ignore[import-untyped]

from fabfile.elastic_store import FOLDER
from fabfile.engine.errors import HostError
from fabfile.engine.fleet import host_task, refuse_dry, settings
from fabfile.engine.root_channel import RootChannel
from fabfile.scanners import refuse_elsewhere, thin

PROGRAM = ("/usr/bin/python3", "-B", f"{FOLDER}/migrate.py")
NEXT = "the embedded stack is still there: `fab undo --task dashboard`, then `--task collector --data`, takes it away"


@host_task
def migrate(c: Connection) -> str:
    """Bring what the embedded stack has stored into Elasticsearch, and count it there."""
    refuse_dry(c, "migrate")
    refuse_elsewhere(settings(c), "migrate", "what comes there cannot be counted from here; nothing was done")
    found: dict[str, Any] = {}
    complaint = b""
    with RootChannel(c, PROGRAM, "the replay") as channel:
        channel.begin(b"", more=False)
        rest = b""
        for out, err in channel.receive():
            complaint += err
            *lines, rest = (rest + out).split(b"\n")
            for line in lines:
                found = json.loads(line)
                if "progress" in found:
                    c.tell(found["progress"])
        status = channel.exit_status()
    if status or "lines" not in found:
        said = complaint.decode(errors="replace").strip()[-400:]
        if "can't open file" in said:
            said = "there is no Elasticsearch of knockmap's to take the past to"
        raise HostError(
            f"{c.original_host}: {said}\nIs stack = elastic deployed there? `fab -H … deploy` brings it."
        )
    return text(str(c.original_host), **found)


def text(host: str, lines: int, new: int, lacking: int) -> str:
    """Raises HostError when Elasticsearch lacks some of the lines."""
    if lacking:
        raise HostError(
            f"{host}: {thin(lacking)} of the {thin(lines)} lines that were tried did not come to Elasticsearch; nothing of the "
            "embedded stack was changed. `fab doctor` says what Logstash lacks; then run migrate again"
        )
    there = f" ({thin(lines - new)} were there already)" if lines > new else ""
    return f"{host}: {thin(lines)} lines{there} of the embedded stack are in Elasticsearch, each one seen there; {NEXT}"
