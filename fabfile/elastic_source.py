"""Where Elastic's packages come from: its apt repository or a mirror, signed by one known key, or .deb files brought along.

One exact version for all three, held, so that neither `apt upgrade` nor unattended-upgrades moves one of them alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

from fabfile.engine.resources import ROOT, File, Package, Requirement, Resource, render
from fabfile.settings import SettingError, Settings

REPOSITORY = "https://artifacts.elastic.co/packages/9.x/apt"
KEYRING = "/usr/share/keyrings/knockmap-elastic.asc"
SOURCE = "/etc/apt/sources.list.d/knockmap-elastic.sources"
SHIPPED_KEY = ROOT / "files" / "install_elk" / "elastic-signing-key.asc"
# Which units must not run while a package is replaced, in the order in which they are stopped.
STOPS = {
    "elasticsearch": ("logstash.service", "kibana.service", "elasticsearch.service"),
    "kibana": ("kibana.service",),
    "logstash": ("logstash.service",),
}


def versioned(settings: Settings, name: str) -> str:
    """`name=version` as Debian writes it: logstash alone has an epoch and a revision."""
    version = settings.elastic_version
    return f"{name}=1:{version}-1" if name == "logstash" else f"{name}={version}"


def package(settings: Settings, name: str) -> Package:
    """One of the three, in exactly this version, held."""
    return Package(
        versioned(settings, name),
        hold=True,
        stops=STOPS[name],
        debs=debs(settings, name),
        remains=(f"/etc/{name}", f"/var/log/{name}"),
        stores=(f"/var/lib/{name}",),
    )


def debs(settings: Settings, name: str) -> tuple[Path, ...]:
    """The operator's own .deb file, whichever architecture is brought. Raises SettingError where it is not there."""
    if not settings.elastic_packages:
        return ()
    folder = Path(settings.elastic_packages).expanduser()
    found = sorted(folder.glob(f"{name}-{settings.elastic_version}*.deb"))
    if len(found) != 1:
        raise SettingError(
            f"elastic_packages = {settings.elastic_packages!r}: must hold one {name}-{settings.elastic_version}-….deb, "
            f"and holds {len(found)}"
        )
    return (found[0],)


def resources(settings: Settings) -> list[Resource]:
    """apt's source, key and preferences; nothing where the packages are brought along."""
    if settings.elastic_packages:
        return []
    url = settings.elastic_mirror or REPOSITORY
    return [
        Requirement("elastic_sources", given=(SOURCE, url)),
        File(KEYRING, text=key(settings)),
        File(SOURCE, text=render("install_elk/elastic.sources.j2", url=url, keyring=KEYRING)),
        File(
            "/etc/apt/preferences.d/knockmap-elastic",
            text=render("install_elk/preferences.j2", version=settings.elastic_version),
        ),
    ]


def key(settings: Settings) -> str:
    """The armoured key. Raises SettingError unless it is one key and has the fingerprint that it shall have."""
    path = Path(settings.elastic_key).expanduser() if settings.elastic_key else SHIPPED_KEY
    text = path.read_text(encoding="ascii", errors="replace")
    wanted = settings.elastic_fingerprint.replace(" ", "").upper()
    try:
        found = fingerprints(text)
    except (ValueError, IndexError):
        raise SettingError(f"{path}: no armoured OpenPGP public key") from None
    if found != [wanted]:
        raise SettingError(
            f"{path}: holds the key {', '.join(found) or '(none)'}, and elastic_fingerprint = {wanted}; nothing was done"
        )
    return text


def fingerprints(armoured: str) -> list[str]:
    """Of every primary key (version 4) in an armoured block. Raises ValueError or IndexError for what is no such block."""
    body = armoured.split("-----BEGIN PGP PUBLIC KEY BLOCK-----")[1].split("-----END")[0]
    encoded = body.replace("\r", "").split("\n\n", 1)[1]
    lines = [line for line in encoded.splitlines() if not line.startswith("=")]  # the last is a checksum
    return [
        hashlib.sha1(b"\x99" + len(packet).to_bytes(2, "big") + packet, usedforsecurity=False)
        .hexdigest()
        .upper()
        for tag, packet in packets(base64.b64decode("".join(lines), validate=True))
        if tag == 6
    ]


def packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of each OpenPGP packet (RFC 9580, 4.2)."""
    at = 0
    while at < len(data):
        head, first = data[at], data[at + 1]
        if head & 0x40:  # new format
            tag = head & 0x3F
            if first < 192:
                size, skip = first, 2
            elif first < 224:
                size, skip = ((first - 192) << 8) + data[at + 2] + 192, 3
            else:
                size, skip = int.from_bytes(data[at + 2 : at + 6], "big"), 6
        else:
            tag, width = (head >> 2) & 0x0F, 1 << (head & 3)
            size, skip = int.from_bytes(data[at + 1 : at + 1 + width], "big"), 1 + width
        yield tag, data[at + skip : at + skip + size]
        at += skip + size
