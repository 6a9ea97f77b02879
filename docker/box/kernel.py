"""The one thing a box needs of the host's kernel: that LOG works in network namespaces other than the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docker.client import DockerClient
from docker.errors import DockerException

from . import state

SYSCTL = Path("/proc/sys/net/netfilter/nf_log_all_netns")
# Written by root on this machine, else through a container that shares the host's network and its /proc/sys.
OPEN = {
    "network_mode": "host",
    "cap_add": ["SYS_ADMIN", "NET_ADMIN"],
    "security_opt": ["systempaths=unconfined"],
}


def open_log(engine: DockerClient, tools: str) -> bool:
    """Let LOG lines out of network namespaces; remembers what it was. True if they come out now."""
    value = access(engine, tools, None)
    if value == "0":
        state.store("nf_log_all_netns.json", {"before": value})
        access(engine, tools, "1")
        value = access(engine, tools, None)
    return value == "1"


def close_log(engine: DockerClient, tools: str) -> None:
    """Put back what it was before the first box."""
    path = state.FOLDER / "nf_log_all_netns.json"
    if path.exists():
        access(engine, tools, state.load(path.name)["before"])
        path.unlink()


def access(engine: DockerClient, tools: str, value: str | None) -> str | None:
    """Write the sysctl (if `value`), then read it; None where it cannot be had."""
    try:
        if value is not None:
            SYSCTL.write_text(value)
        return SYSCTL.read_text().strip()
    except OSError:
        pass
    script = f"echo {value} >{SYSCTL}; cat {SYSCTL}" if value is not None else f"cat {SYSCTL}"
    try:
        options: dict[str, Any] = {
            "entrypoint": "/bin/sh",
            "remove": True,
            "labels": {"knockmap.box": "kernel"},
            **OPEN,
        }
        shown = engine.containers.run(tools, ["-c", script], **options)
        return bytes(shown).decode().strip()
    except DockerException:
        return None
