"""Logstash: from the lines of the log to events in the data stream, here or in a cluster elsewhere."""

from __future__ import annotations

from pathlib import Path

from fabfile import elastic_source
from fabfile.elastic_store import LOGSTASH, UNITS
from fabfile.engine.resources import Directory, File, Requirement, Resource, Service, render
from fabfile.settings import SettingError, Settings
from fabfile.syslog_route import READER

ETC = "/etc/logstash"
UNIT = "logstash.service"
LOCAL = ("https://127.0.0.1:9200",)
OWN_CA = f"{ETC}/certs/http_ca.crt"


def elsewhere(settings: Settings) -> bool:
    """True where events are shipped to a cluster that is not this box."""
    return bool(settings.elastic_hosts or settings.elastic_cloud_id)


def requirements(settings: Settings) -> list[Resource]:
    """What must hold where Logstash is alone on the box."""
    return [
        Requirement("elastic_machine"),
        Requirement("elastic_memory", given=(str(settings.elastic_heap), "elsewhere")),
        Requirement("elastic_disk", given=(elastic_source.versioned(settings, "logstash"),)),
        Requirement("elastic_ports", given=("9600",)),
        Requirement("elastic_versions", given=(settings.elastic_version, "logstash")),
    ]


def owned(path: str, text: str, verify: tuple[str, ...] = ()) -> File:
    """A file of ours that only root and Logstash read."""
    return File(path, text=text, mode=0o640, group="logstash", verify=verify)


def authority(settings: Settings) -> tuple[File, ...]:
    """The certificate authority that Logstash trusts: the local node's, the operator's, or the system's."""
    if not elsewhere(settings):
        return (owned(OWN_CA, "@@fact.elasticsearch_ca@@"),)
    if settings.elastic_ca:
        return (owned(OWN_CA, Path(settings.elastic_ca).expanduser().read_text(encoding="utf-8")),)
    return ()


def writer_key(settings: Settings) -> File:
    """The key to write with, for systemd to hand over: root alone can read it."""
    key = "@@secret.writer_key@@"
    if elsewhere(settings):
        path = Path(settings.elastic_api_key_file).expanduser()
        key = path.read_text(encoding="utf-8").strip()
        if key.count(":") != 1:
            raise SettingError(f"elastic_api_key_file = {str(path)!r}: must hold an API key as id:key")
    text = f"# Managed by knockmap.\nKNOCKMAP_WRITER_KEY={key}\n"
    return File(f"{ETC}/knockmap.env", text=text, mode=0o600, secret=True)


def pipeline(settings: Settings) -> tuple[File, ...]:
    """The pipeline's files; each is in place only if Logstash takes all of them together."""
    tested = (LOGSTASH, "test")
    output = render(
        "install_elk/output.conf.j2",
        hosts=settings.elastic_hosts or LOCAL,
        cloud_id=settings.elastic_cloud_id,
        ca=OWN_CA if authority(settings) else "",
    )
    return (
        owned(f"{ETC}/patterns/knockmap", render("install_elk/patterns")),
        owned(f"{ETC}/conf.d/knockmap-2-output.conf", output, verify=tested),
        owned(f"{ETC}/conf.d/knockmap-1-pipeline.conf", render("install_elk/pipeline.conf"), verify=tested),
    )


def service(settings: Settings, *files: Resource) -> Service:
    return Service(
        UNIT,
        restart_on=(elastic_source.package(settings, "logstash"), writer_key(settings), *files),
        ready=(UNITS, "ready", "logstash"),
        why=(UNITS, "why", "logstash"),
    )


def renewed(settings: Settings) -> list[Resource]:
    """What follows a new key: Logstash gets it, and starts with it."""
    return [r for r in resources(settings) if r.id in (writer_key(settings).id, f"service:{UNIT}")]


def resources(settings: Settings) -> list[Resource]:
    """In order of application."""
    config = File(f"{ETC}/logstash.yml", text=render("install_elk/logstash.yml"))
    drop_in = File(
        f"/etc/systemd/system/{UNIT}.d/knockmap.conf",
        text=render("install_elk/logstash.service.j2", group=READER.user, env=writer_key(settings).path),
    )
    trusted, files = authority(settings), pipeline(settings)
    return [
        elastic_source.package(settings, "logstash"),
        READER,
        *(Directory(f"{ETC}/{name}", mode=0o750, group="logstash") for name in ("certs", "patterns")),
        *(config, *trusted, writer_key(settings), *files),
        *(Directory(f"/etc/systemd/system/{UNIT}.d"), drop_in),
        service(settings, config, *trusted, *files, drop_in),
    ]
