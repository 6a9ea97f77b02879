"""Every line of the log becomes a row with its country and city, on the box itself, and `fab scanners` shows them.

The collector is a small service of its own user, fenced in: it reads the log and the GeoIP files, and writes its
SQLite database. Position and rows are one transaction, so nothing is lost and nothing doubled.
"""

from __future__ import annotations

from fabric import Connection  # type: ignore[import-untyped]

from fabfile import geo
from fabfile.engine import fleet
from fabfile.engine.converge import converge
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import ROOT, Directory, File, Package, Resource, Service, render
from fabfile.iptables_log import PROGRAMS
from fabfile.settings import Settings
from fabfile.syslog_route import READER

FOLDER = "/usr/local/lib/knockmap/collector"
GEO = "/var/lib/knockmap/geo"
PROGRAM_FILES = sorted(path.name for path in (ROOT / "files" / "collector").glob("*.py"))
UNIT = "knockmap-collector.service"


def resources(settings: Settings) -> list[Resource]:
    """In order of application; the GeoIP files come before the service, so that the first line has a country."""
    programs = tuple(File(f"{FOLDER}/{name}", text=render(f"collector/{name}")) for name in PROGRAM_FILES)
    unit = File(
        f"/etc/systemd/system/{UNIT}",
        text=render(
            f"collector/{UNIT}.j2",
            retention_days=settings.collector_retention_days,
            retention_bytes=settings.collector_retention_megabytes << 20,
        ),
        verify=("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}"),
    )
    return [
        Package("python3", "python3-maxminddb"),
        *(READER, PROGRAMS, Directory(FOLDER), *programs),
        Directory("/var/lib/knockmap/collector", mode=0o750, owner="knockmap", group="knockmap"),
        # Tidy, since the collector looks into every database there; their names differ from version to version.
        Directory(GEO, tidy=True),
        *(
            File(f"{GEO}/{path.name}", source=path, sha256=sha256)
            for path, sha256 in geo.databases(settings).items()
        ),
        unit,
        Service(UNIT, restart_on=(unit, *programs)),
    ]


@host_task
def collector(c: Connection, check: bool = False, diff: bool = False) -> Report:
    """Collect who knocked, with country and city, on the box itself."""
    return converge(c, {"collector": resources(fleet.settings(c))}, check=check, diff=diff)
