"""Kibana shows who knocked: the map SSH Scanners, countries, a timeline, the lines. It listens on loopback, behind Apache.

Small programs on the target keep what is not a file: its token and users in Elasticsearch, and the objects it shows.
"""

from __future__ import annotations

from fabric import Connection  # type: ignore[import-untyped]

from fabfile import elastic_source, saved_objects
from fabfile.elastic_pipeline import elsewhere
from fabfile.engine import fleet
from fabfile.engine.converge import converge
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import (
    ROOT,
    Command,
    Directory,
    File,
    Requirement,
    Resource,
    Secret,
    Service,
    render,
)
from fabfile.iptables_log import PROGRAMS
from fabfile.settings import Settings

FOLDER, ETC, UNIT = "/usr/local/lib/knockmap/kibana", "/etc/kibana", "kibana.service"
ACCESS, READINESS, OUTLINES, OBJECTS = (
    f"{FOLDER}/{name}.py" for name in ("access", "readiness", "outlines", "objects")
)
WORLD = ROOT / "files/dashboard/static/vendor/world-2.0.2.json"
DROP_IN = "/etc/systemd/system/kibana.service.d"
KEYS = ("kibana_encryption_objects", "kibana_encryption_sessions", "kibana_encryption_reports")


def programs() -> tuple[File, ...]:
    names = sorted(path.name for path in (ROOT / "files/kibana").glob("*.py"))
    own = (File(f"{FOLDER}/{name}", text=render(f"kibana/{name}"), mode=0o755) for name in names)
    return (*own, File(f"{FOLDER}/countries.py", text=render("collector/countries.py")))


def configuration(settings: Settings) -> tuple[File, File]:
    """kibana.yml, and what systemd gives Kibana along."""
    named = "" if "own" in settings.apache_names else settings.apache_names[0]
    text = render("kibana/kibana.yml.j2", name=named, maps_service=settings.kibana_maps_service)
    return (
        File(f"{ETC}/kibana.yml", text=text, mode=0o640, group="kibana", secret=True),
        File(
            f"{DROP_IN}/knockmap.conf",
            text=render("kibana/knockmap.conf.j2", heap=settings.kibana_heap or "@@fact.kibana_heap@@"),
        ),
    )


def kept(title: str, program: str, verb: str, *undo: str) -> Command:
    """What a program of ours looks after."""
    return Command(title, (program, verb), unless=(program, "check"), undo=(program, *undo) if undo else ())


def resources(settings: Settings) -> list[Resource]:
    """In order of application; Elasticsearch is there and set up. Where it is elsewhere, so is its Kibana."""
    if elsewhere(settings):
        return []
    names = ("elasticsearch", "logstash", "kibana")  # in this order they come
    versions = tuple(elastic_source.versioned(settings, name) for name in names)
    package = elastic_source.package(settings, "kibana")
    authority = File(f"{ETC}/certs/http_ca.crt", text="@@fact.elasticsearch_ca@@", group="kibana", mode=0o640)
    yml, drop_in = configuration(settings)
    shown = File(
        f"{FOLDER}/objects.ndjson", text=saved_objects.ndjson(maps_service=settings.kibana_maps_service)
    )
    return [
        Requirement("kibana_disk", given=versions),
        package,
        *(PROGRAMS, Directory(FOLDER), *programs(), File(f"{FOLDER}/world.json", source=WORLD), shown),
        Directory("/var/lib/knockmap/kibana", mode=0o700),  # which objects are as we brought them
        *(Secret(name, bits=256, data=True) for name in KEYS),  # of what Kibana keeps in Elasticsearch
        Secret("kibana_viewer_password", bits=160),
        kept("Kibana's token, its viewers' role and user", ACCESS, "ensure", "remove"),
        *(Directory(f"{ETC}/certs", mode=0o750, group="kibana"), authority),
        *(yml, Directory(DROP_IN), drop_in),
        Service(
            UNIT,
            restart_on=(package, authority, yml, drop_in),
            ready=(READINESS, "check"),
            why=(READINESS, "why"),
        ),
        kept("outlines of the countries", OUTLINES, "load", "remove"),
        kept("map, charts and lines in Kibana", OBJECTS, "import"),
    ]


def upgraded(settings: Settings) -> list[Resource]:
    """What follows a newer Elasticsearch, for which Kibana is stopped: its own newer version, and its start."""
    wanted = ("requirement:kibana_disk", "package:kibana", f"service:{UNIT}")
    return [r for r in resources(settings) if r.id in wanted]


def renewed(settings: Settings) -> list[Resource]:
    """What follows a new token and a new viewer's password: Kibana starts with them."""
    return [r for r in resources(settings) if r.id in (f"file:{ETC}/kibana.yml", f"service:{UNIT}")]


def alone(settings: Settings) -> list[Resource]:
    """What must hold where nothing but Kibana is deployed."""
    needed = Requirement("kibana_alone", given=(elastic_source.versioned(settings, "elasticsearch"),))
    return [] if elsewhere(settings) else [needed]


@host_task
def kibana(c: Connection, check: bool = False, diff: bool = False) -> Report:
    """Show who knocked in Kibana, on the box's loopback."""
    chosen = fleet.settings(c)
    return converge(c, {"kibana": [*alone(chosen), *resources(chosen)]}, check=check, diff=diff)
