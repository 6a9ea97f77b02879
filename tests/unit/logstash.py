"""The Logstash double, with our pipeline in it, for unit tests."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from logstash_double import geoip
from logstash_double.event import Event
from logstash_double.filters import Date
from logstash_double.pipeline import Pipeline

from fabfile.engine.resources import ROOT, render

LOG = "/var/log/iptables.log"
PATTERNS = ROOT / "files" / "install_elk" / "patterns"
DATABASES = ROOT / "tests/doubles/logstash/root/usr/share/logstash/vendor/geoip"
READ_AT = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)

geoip.BUNDLED = DATABASES


def text(log: str | Path = LOG, geoip_city: str = "", geoip_asn: str = "") -> str:
    """pipeline.conf as it is on a target."""
    return render(
        "install_elk/pipeline.conf.j2",
        log=str(log),
        patterns=str(PATTERNS),
        replay="/var/lib/knockmap/replay",
        geoip_city=geoip_city,
        geoip_asn=geoip_asn,
    )


@cache
def pipeline() -> Pipeline:
    """Registered; its clock stands still."""
    made = Pipeline(text())
    made.register()
    for plugin in made.filters.values():
        if isinstance(plugin, Date):
            plugin.clock = staticmethod(lambda: READ_AT)  # type: ignore[assignment]
    return made


def read(line: bytes) -> Event:
    """A line as the input file makes an event of it, read at READ_AT, and filtered."""
    event = pipeline().inputs[0].event(line, LOG)
    event.fields["@timestamp"] = READ_AT
    (event,) = pipeline().filter([event])
    return event


def document(line: bytes) -> dict[str, Any]:
    return read(line).document()
