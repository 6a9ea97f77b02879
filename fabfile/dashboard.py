"""A live page about who knocked: map, countries, timeline, log lines. It listens on loopback; Apache stands in front.

The page needs nothing from outside, and no build on the target. Its server is waitress, a WSGI server that Debian and
Ubuntu package: pure Python, one process, small, and made to be what a proxy talks to.
"""

from __future__ import annotations

from fabric import Connection  # type: ignore[import-untyped]

from fabfile.engine import fleet
from fabfile.engine.converge import converge
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import ROOT, Directory, File, Package, Resource, Service, render
from fabfile.iptables_log import PROGRAMS
from fabfile.settings import Settings
from fabfile.syslog_route import READER

FOLDER = "/usr/local/lib/knockmap/dashboard"
SOURCE = ROOT / "files" / "dashboard"
PROGRAM_FILES = sorted(path.name for path in SOURCE.glob("*.py"))
STATIC = sorted(path.relative_to(SOURCE) for path in SOURCE.glob("static/**/*") if path.is_file())
UNIT = "knockmap-dashboard.service"


def resources(settings: Settings) -> list[Resource]:
    """In order of application; the collector's database and tables are there before."""
    programs = tuple(File(f"{FOLDER}/{name}", text=render(f"dashboard/{name}")) for name in PROGRAM_FILES)
    page = tuple(File(f"{FOLDER}/{path}", source=SOURCE / path) for path in STATIC)
    unit = File(
        f"/etc/systemd/system/{UNIT}",
        text=render(f"dashboard/{UNIT}.j2", port=settings.dashboard_port, public=settings.public_page),
        verify=("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}"),
    )
    folders = (FOLDER, f"{FOLDER}/static", f"{FOLDER}/static/vendor")
    return [
        Package("python3", "python3-waitress"),
        *(READER, PROGRAMS, *map(Directory, folders), *programs, *page),
        unit,
        Service(UNIT, restart_on=(unit, *programs, *page)),
    ]


@host_task
def dashboard(c: Connection, check: bool = False, diff: bool = False) -> Report:
    """Show who knocked as a live page, on the box's loopback."""
    return converge(c, {"dashboard": resources(fleet.settings(c))}, check=check, diff=diff)
