"""A target without python3, or with python3-minimal only, gets Debian's python3 before the agent can start.

The one thing that is done there without the agent; `bootstrap.sh` does it, over the connection that is open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fabfile.engine.agent.packages import apt_cause
from fabfile.engine.errors import BootstrapError
from fabfile.engine.root_channel import OnEvent, RootChannel

ID = "package:python3"
SCRIPT = Path(__file__).with_name("bootstrap.sh")
RESULT = {"event": "result", "id": ID, "task": "engine", "status": "changed"}


def would_install(on_event: OnEvent) -> None:
    """Check mode: say it, and guess nothing of what could only be looked at with Python."""
    on_event({"event": "start", "id": ID, "task": "engine"})
    on_event({**RESULT, "message": "install python3"})
    on_event(
        {"event": "notice", "text": "the target has no usable python3 yet, so the rest cannot be looked at"}
    )


def install(c: Any, on_event: OnEvent) -> list[str]:
    """Install it and give the names of all packages that came with it. Raises BootstrapError."""
    on_event({"event": "start", "id": ID, "task": "engine"})
    added: list[str] = []
    said = []
    status = "unknown"
    with RootChannel(c, ("/bin/sh", "-c", SCRIPT.read_text(encoding="utf-8")), ID) as channel:
        channel.begin(b"", more=False)
        for line in channel.lines():
            text = line.decode(errors="replace")
            if text.startswith("knockmap added"):
                added = text.split()[2:]
            elif text.startswith("knockmap exit"):
                status = text.split()[2]
            else:
                said.append(text)
                on_event({"event": "progress", "id": ID, "text": text[:100]})
    if status != "0":
        raise BootstrapError(_failed(c, status, said))
    on_event({**RESULT, "message": "install python3"})
    return added


def _failed(c: Any, status: str, said: list[str]) -> str:
    output = "\n".join(said[-8:])
    return (
        f"{c.original_host}: the target has no usable python3, and apt-get could not install it (exit {status}): "
        f"{apt_cause(output)}\n{output}"
    )
