"""The one thing a box needs of the host's kernel: that LOG works in network namespaces other than the first."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from docker.client import DockerClient
from docker.errors import DockerException, NotFound

from .images import LABEL

SYSCTL = Path("/proc/sys/net/netfilter/nf_log_all_netns")
# Where this user may not write it: through a container that shares the host's network, and so its /proc/sys.
OPEN: dict[str, Any] = {
    "network_mode": "host",
    "cap_add": ["SYS_ADMIN", "NET_ADMIN"],  # to make /proc/sys writable; to write what is about netfilter
    "security_opt": ["apparmor=unconfined"],
}
# What it was is a label of this volume: the boxes of all checkouts share one kernel, and one engine.
WITHHELD = "This host's kernel keeps LOG lines of containers to itself (net.netfilter.nf_log_all_netns): none will show."
RECORD, BEFORE = "knockmap-kernel", "knockmap.nf_log_all_netns"


def open_log(engine: DockerClient, tools: str) -> bool:
    """Let LOG lines out of network namespaces; remembers what it was. True if they come out now."""
    value = access(engine, tools, None)
    if value == "0":
        engine.volumes.create(RECORD, labels={LABEL: "kernel", BEFORE: value})
        value = access(engine, tools, "1")
    return value == "1"


def close_log(engine: DockerClient, tools: str) -> None:
    """Put back what it was before the first box."""
    with contextlib.suppress(NotFound):
        record = engine.volumes.get(RECORD)
        access(engine, tools, record.attrs["Labels"][BEFORE])
        record.remove()


def access(engine: DockerClient, tools: str, value: str | None) -> str | None:
    """Write the sysctl (if `value`), then read it; None where it cannot be had."""
    try:
        if value is not None:
            SYSCTL.write_text(value)
        return SYSCTL.read_text().strip()
    except OSError:
        pass
    write = f"mount -o remount,rw /proc/sys && echo {value} >{SYSCTL}; " if value is not None else ""
    options: dict[str, Any] = {"entrypoint": "/bin/sh", "remove": True, "labels": {LABEL: "kernel"}, **OPEN}
    try:
        shown = engine.containers.run(tools, ["-c", f"{write}cat {SYSCTL}"], **options)
        return bytes(shown).decode().strip()
    except DockerException:
        return None
