"""Logstash: from the lines of the log to events in the data stream, here or in a cluster elsewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from fabfile import elastic_source
from fabfile.elastic_store import FOLDER, LOGSTASH, UNITS
from fabfile.engine.resources import ROOT, Directory, File, Requirement, Resource, Service, render
from fabfile.settings import SettingError, Settings
from fabfile.syslog_route import LOG, READER

ETC = "/etc/logstash"
UNIT = "logstash.service"
LOCAL = ("https://127.0.0.1:9200",)
OWN_CA = f"{ETC}/certs/http_ca.crt"
PATTERNS = f"{ETC}/patterns"
# Not the collector's folder: while both stacks are deployed, neither takes away what the other looks into.
GEO = "/var/lib/knockmap/logstash-geo"
REPLAY = "/var/lib/knockmap/replay"  # where `migrate` puts what it brings
# What Logstash's geoip filter can read, by what the kind's name holds; others end it at the first event.
GEO_KINDS = {"city": re.compile(r".*City.*"), "asn": re.compile(r".*(GeoLite2-ASN|GeoIP2-ISP).*")}


def elsewhere(settings: Settings) -> bool:
    """True where events are shipped to a cluster that is not this box."""
    return bool(settings.elastic_hosts or settings.elastic_cloud_id)


def requirements(settings: Settings) -> list[Resource]:
    """What must hold where Logstash is alone on the box."""
    return [
        Requirement("elastic_machine"),
        Requirement(
            "elastic_memory", given=(str(settings.elastic_heap), str(settings.kibana_heap), "elsewhere")
        ),
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


def own_databases(settings: Settings) -> dict[str, Path]:
    """The operator's .mmdb files by kind, for `logstash_geoip = own`. Raises SettingError for what Logstash cannot read."""
    if settings.logstash_geoip != "own":
        return {}
    found = {}
    for path in (Path(name).expanduser() for name in settings.geo_databases):
        kind = database_kind(path)
        fits = [name for name, kinds in GEO_KINDS.items() if kinds.fullmatch(kind)]
        if not fits:
            raise SettingError(
                f"geo_databases: {path} is of the kind {kind!r}, and Logstash reads City and ASN databases like MaxMind's only; "
                "give those, or set logstash_geoip = bundled"
            )
        found[fits[0]] = path
    return found


def database_kind(path: Path) -> str:
    """What an .mmdb file says it is, such as GeoLite2-City, by the reader that the target has; "" if it is none."""
    reader = runpy.run_path(str(ROOT / "files" / "install_elk" / "mmdb.py"))
    return str(reader["metadata"](str(path))[1])


def databases(settings: Settings) -> tuple[File, ...]:
    return tuple(File(f"{GEO}/{path.name}", source=path) for path in own_databases(settings).values())


def pipeline(settings: Settings) -> tuple[File, ...]:
    """The pipeline's files; each is in place only if Logstash takes all of them together."""
    tested = (LOGSTASH, "test")
    filters = pipeline_text(settings)
    output = render(
        "install_elk/output.conf.j2",
        hosts=settings.elastic_hosts or LOCAL,
        cloud_id=settings.elastic_cloud_id,
        ca=OWN_CA if authority(settings) else "",
    )
    return (
        owned(f"{PATTERNS}/knockmap", render("install_elk/patterns/knockmap")),
        owned(f"{ETC}/conf.d/knockmap-2-output.conf", output, verify=tested),
        owned(f"{ETC}/conf.d/knockmap-1-pipeline.conf", filters, verify=tested),
    )


def pipeline_text(settings: Settings) -> str:
    own = own_databases(settings)
    paths = {f"geoip_{kind}": f"{GEO}/{own[kind].name}" if kind in own else "" for kind in GEO_KINDS}
    return render("install_elk/pipeline.conf.j2", log=LOG.path, replay=REPLAY, patterns=PATTERNS, **paths)


def debugging(settings: Settings) -> File:
    """The same filters for `pipeline_debug`; @LINES@ is where the program puts the lines to look at."""
    filters = "".join(re.findall(r"^filter \{\n.*?^\}\n", pipeline_text(settings), re.M | re.S))
    text = render("install_elk/debug.conf.j2", lines="@LINES@", filters=filters)
    return File(f"{FOLDER}/debug.conf", text=text)


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
    trusted, files, geo = authority(settings), pipeline(settings), databases(settings)
    return [
        elastic_source.package(settings, "logstash"),
        READER,
        *(Directory(f"{ETC}/{name}", mode=0o750, group="logstash") for name in ("certs", "patterns")),
        Directory(REPLAY, mode=0o750, group="logstash"),
        *(Directory(GEO, tidy=True), *geo),
        *(config, *trusted, writer_key(settings), debugging(settings), *files),
        *(Directory(f"/etc/systemd/system/{UNIT}.d"), drop_in),
        service(settings, config, *trusted, *geo, *files, drop_in),
    ]
