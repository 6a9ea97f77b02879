"""Elasticsearch on the box itself: one node on loopback, closed by TLS and accounts, with its templates before the first document."""

from __future__ import annotations

import json

from fabfile import elastic_source
from fabfile.engine.resources import (
    ROOT,
    Command,
    Directory,
    File,
    Requirement,
    Resource,
    Rest,
    Service,
    render,
)
from fabfile.iptables_log import PROGRAMS
from fabfile.settings import ELASTIC_PORTS, Settings

FOLDER = "/usr/local/lib/knockmap/install_elk"
# In order of need: the first is the client that the others call.
PROGRAM_FILES = ("elasticsearch.py", "security.py", "data_stream.py", "units.py", "logstash.py")
SECURITY, DATA_STREAM, UNITS, LOGSTASH = (f"{FOLDER}/{name}" for name in PROGRAM_FILES[1:])
# What `scanners`, `export` and `migrate` run, and what they share with the embedded stack.
REPORT_FILES = (
    "install_elk/mmdb.py",
    "install_elk/documents.py",
    "install_elk/scanners.py",
    "install_elk/export.py",
    "install_elk/migrate.py",
)
SHARED_FILES = ("dashboard/query.py", "collector/countries.py")
ETC, PORT = "/etc/elasticsearch", 9200
CA = f"{ETC}/certs/http_ca.crt"
UNIT = "elasticsearch.service"


def programs() -> list[Resource]:
    """What runs on the target, for this task and for Kibana's."""
    files = (
        File(f"{FOLDER}/{name}", text=render(f"install_elk/{name}"), mode=0o755) for name in PROGRAM_FILES
    )
    reports = (
        File(f"{FOLDER}/{source.split('/')[1]}", text=render(source))
        for source in REPORT_FILES + SHARED_FILES
    )
    return [PROGRAMS, Directory(FOLDER), *files, *reports]


def requirements(settings: Settings) -> list[Resource]:
    """What must hold before anything changes. Kibana's part is asked for here, since it is in the memory maths."""
    names = ("elasticsearch", "kibana", "logstash")
    return [
        Requirement("elastic_machine"),
        Requirement("elastic_memory", given=(str(settings.elastic_heap), str(settings.kibana_heap), "here")),
        Requirement(
            "elastic_disk", given=tuple(elastic_source.versioned(settings, name) for name in names[::2])
        ),
        Requirement("elastic_ports", given=tuple(map(str, ELASTIC_PORTS))),
        Requirement("elastic_versions", given=(settings.elastic_version, *names)),
    ]


def owned(path: str, template: str, **values: object) -> File:
    """A file of ours among Elasticsearch's, with the rights that its package gives them."""
    return File(path, text=render(template, **values), mode=0o660, group="elasticsearch")


def service(settings: Settings, *files: Resource) -> Service:
    return Service(
        UNIT,
        restart_on=(elastic_source.package(settings, "elasticsearch"), *files),
        ready=(UNITS, "ready", "elasticsearch"),
        why=(UNITS, "why", "elasticsearch"),
    )


def document(path: str, name: str, answer: tuple[str | int, ...], **more: object) -> Rest:
    """A document of files/install_elk/, with `more` in the place of the keys of that name in its template."""
    content = json.loads((ROOT / "files" / "install_elk" / name).read_text(encoding="utf-8"))
    if more:
        content["template"].update(more)
    return Rest(path, json.dumps(content), answer, PORT, CA, "elastic", "elastic_password")


def documents(settings: Settings) -> list[Resource]:
    """The templates, those of which others are composed first.

    The settings name the index mode, since Elasticsearch 9 makes a data stream of such a name one of mode logsdb, which
    drops what does not fit its field in place of refusing the document.
    """
    component = ("component_templates", 0, "component_template")
    lifecycle = {"enabled": True, "data_retention": f"{settings.elastic_retention_days}d"}
    return [
        document("/_component_template/knockmap-mappings", "mappings.json", component),
        document("/_component_template/knockmap-settings", "settings.json", component),
        document(
            "/_index_template/knockmap",
            "template.json",
            ("index_templates", 0, "index_template"),
            lifecycle=lifecycle,
        ),
    ]


def watch(settings: Settings) -> list[Resource]:
    """The watch on size; the lifecycle of a data stream knows ages only."""
    service, timer = (
        File(f"/etc/systemd/system/{name.removesuffix('.j2')}", text=render(f"install_elk/{name}", **values))
        for name, values in (
            (
                "knockmap-data-stream.service.j2",
                {"program": DATA_STREAM, "megabytes": settings.elastic_retention_megabytes},
            ),
            ("knockmap-data-stream.timer", {}),
        )
    )
    return [service, timer, Service("knockmap-data-stream.timer", restart_on=(timer,))]


def resources(settings: Settings) -> list[Resource]:
    """In order of application. The package sets up TLS by itself and starts nothing; nothing listens before our files are there."""
    heap = settings.elastic_heap or "@@fact.elasticsearch_heap@@"
    options = owned(f"{ETC}/jvm.options.d/knockmap.options", "install_elk/jvm.options.j2", heap=heap)
    config = owned(f"{ETC}/elasticsearch.yml", "install_elk/elasticsearch.yml")
    return [
        elastic_source.package(settings, "elasticsearch"),
        # A package that could not set them up is installed all the same, and Elasticsearch would not start.
        Command("TLS and passwords of Elasticsearch", (UNITS, "secured"), unless=(UNITS, "secured")),
        *(options, config, service(settings, options, config)),
        Command(
            "accounts of Elasticsearch",
            (SECURITY, "ensure"),
            unless=(SECURITY, "check"),
            undo=(SECURITY, "remove"),
        ),
        *documents(settings),
        Command(
            "the data stream follows its template", (DATA_STREAM, "follow"), unless=(DATA_STREAM, "check")
        ),
        *watch(settings),
        Command("Elasticsearch is healthy", (UNITS, "heal"), unless=(UNITS, "healthy")),
    ]
