"""Every event of a span as a file on the operator's machine: CSV or NDJSON, streamed, with the raw log lines."""

from __future__ import annotations

import time
from pathlib import Path

from fabric import Connection  # type: ignore[import-untyped]

from fabfile import collector, dashboard, elastic_store
from fabfile.engine.errors import HostError, UsageError
from fabfile.engine.fleet import host_task, settings
from fabfile.engine.root_channel import RootChannel
from fabfile.scanners import of_stack, refuse_elsewhere, span, thin

FORMATS = ("csv", "ndjson")
PROGRAMS = {"elastic": f"{elastic_store.FOLDER}/export.py", "embedded": f"{dashboard.FOLDER}/export.py"}


@host_task(
    iterable=["where"],
    help={
        "since": "How far back, such as 30m, 24h, 7d, 4w.",
        "format": "csv or ndjson.",
        "where": "A filter, such as country:CN or network:192.0.2.0/24; may be given several times.",
        "output": "The file to write; default: scans-HOST-TIME.csv here.",
    },
)
def export(
    c: Connection, since: str = "24h", format: str = "csv", where: list[str] | None = None, output: str = ""
) -> str:
    """Save every event of a time span, with its log line, as CSV or NDJSON."""
    if format not in FORMATS:
        raise UsageError(f"--format {format}: must be one of {', '.join(FORMATS)}")
    refuse_elsewhere(settings(c), "export")
    if output and c.many:
        raise UsageError(
            f"--output {output}: several hosts would write the same file; give one host, or leave --output out"
        )
    host = str(c.original_host)
    path = Path(output or f"scans-{host.replace('/', '_')}-{time.strftime('%Y%m%dT%H%M%S')}.{format}")
    if path.exists():
        raise UsageError(f"--output {path}: is there already, and is left as it is")
    filters = [word for item in where or [] for word in ("--where", item)]
    words = ("--seconds", str(span(since)), "--format", format, *filters)
    argv = of_stack(settings(c), PROGRAMS, *words)
    stream(c, ("/usr/bin/env", f"PYTHONPATH={collector.FOLDER}", *argv), path)
    events = sum(1 for _ in path.open("rb")) - (format == "csv")
    return f"{host}: {thin(events)} events of the last {since} in {path}"


def stream(c: Connection, argv: tuple[str, ...], path: Path) -> None:
    """What a command prints, into a file that is there whole or not at all. Raises HostError, UsageError."""
    part = path.with_name(path.name + ".part")
    try:
        file = part.open("wb")
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror})") from None
    try:
        with file, RootChannel(c, argv, "the export") as channel:
            channel.begin(b"", more=False)
            complaint = b""
            for out, err in channel.receive():
                file.write(out)
                complaint += err
            status = channel.exit_status()
        if status:
            said = complaint.decode(errors="replace").strip()[-300:]
            missing = "\nIs knockmap deployed there? `fab -H … deploy` does it." if "is there" in said else ""
            raise HostError(f"{c.original_host}: {said}{missing}")
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
