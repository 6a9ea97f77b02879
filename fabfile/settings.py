"""Every tunable of knockmap: its default, its reason, and where its value comes from.

In order of strength: the environment (`KNOCKMAP_SSH_PORT=2022`), the `knockmap:` section of fabric.yaml, the
default below. A wrong or unknown setting is refused by name before anything connects.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PREFIX = "KNOCKMAP_"
ELASTIC_PORTS = (9200, 9300, 5601, 9600)


class SettingError(ValueError):
    """A setting that is unknown or cannot be: the message names it, its value and what would do."""


@dataclass(frozen=True)
class Settings:
    """One value for each topic; tasks read nothing else."""

    # What `deploy` installs: Elasticsearch, Logstash and Kibana, or the small collector for small machines.
    stack: Literal["elastic", "embedded"] = "elastic"
    # Taken when no -H is given; as one would write them after -H.
    hosts: tuple[str, ...] = ()

    # What to do with a host whose key nobody knows yet: take it, or only if it has one of these fingerprints
    # (`SHA256:…`, from the provider's console). Otherwise the operator is asked.
    ssh_accept_new: bool = False
    ssh_fingerprint: tuple[str, ...] = ()

    # Where sshd listens in the end. Port 22 is what we watch, so it cannot be that.
    ssh_port: int = 2222
    # Leaves only post-quantum key exchange; refused unless the very same client library can still log in.
    ssh_strict: bool = False
    # How long the target waits for the proof login over the new port before it goes back, in seconds.
    ssh_revert_seconds: int = 300

    # What happens to a logged SYN to port 22: nothing, or it is dropped, or refused.
    knock_policy: Literal["log", "drop", "reject"] = "log"
    # Lines per second that are logged at most, for IPv4 and for IPv6; the rest is counted. A flood must not fill the disk.
    knock_limit: int = 500
    knock_burst: int = 1000

    # Rotation of /var/log/iptables.log: a day, or this size before the day is over, and how many are kept.
    log_rotate_megabytes: int = 50
    log_rotate_keep: int = 14

    # The collector forgets events that are older, and the oldest ones when its database grows beyond.
    collector_retention_days: int = 400
    collector_retention_megabytes: int = 1024

    # Where the dashboard listens on the target's loopback address; only Apache reaches it.
    dashboard_port: int = 8722
    # A second page without login at /public/: sums and networks, no addresses, no lines.
    public_page: bool = False

    # Which free GeoIP data `deploy` brings along; own .mmdb files (paths on the operator's machine) win.
    geo_source: Literal["dbip-city", "country", "none"] = "dbip-city"
    geo_databases: tuple[str, ...] = ()

    # The version of Elasticsearch, Logstash and Kibana, the same for all three; a higher one upgrades them in order.
    elastic_version: str = "9.5.2"
    # Own copy of Elastic's apt repository (the URL that stands in for https://artifacts.elastic.co/packages/9.x/apt);
    # http:// will do, since apt checks the signature.
    elastic_mirror: str = ""
    # Or a folder on the operator's machine with the .deb files of that version, for boxes without internet.
    elastic_packages: str = ""
    # The armoured public key that signs the mirror, and its full fingerprint; default: Elastic's own.
    elastic_key: str = ""
    elastic_fingerprint: str = "46095ACC8548582C1A2699A9D27D666CD88E42B4"
    # Elasticsearch's heap in MB; 0 takes what fits the box's memory (table in the README).
    elastic_heap: int = 0
    # After how many days events are deleted, by the data stream's own lifecycle.
    elastic_retention_days: int = 400
    # And the oldest of them beyond this size, looked at every hour.
    elastic_retention_megabytes: int = 4096
    # Ship to an existing Elasticsearch in place of a local one: its https:// addresses, or an Elastic Cloud id.
    elastic_hosts: tuple[str, ...] = ()
    elastic_cloud_id: str = ""
    # For that: its certificate authority (PEM; none for a public one) and a file with an API key as id:key.
    elastic_ca: str = ""
    elastic_api_key_file: str = ""
    # Where Logstash looks addresses up: the databases it brings, or MaxMind's .mmdb files of geo_databases.
    logstash_geoip: Literal["bundled", "own"] = "bundled"

    # Where Apache's certificate comes from: made on the target, or by ACME (Let's Encrypt), or files of your own.
    apache_certificate: Literal["self-signed", "acme", "files"] = "self-signed"
    # PEM files on the operator's machine for `files`: the certificate with its chain, and its key without a password.
    apache_certificate_file: str = ""
    apache_key_file: str = ""
    # Under which names and addresses Apache answers; "own" stands for those of the host, and the one you reach it by.
    apache_names: tuple[str, ...] = ("own",)
    # For `acme`: where the authority can write to, and its directory.
    apache_acme_email: str = ""
    apache_acme_url: str = "https://acme-v02.api.letsencrypt.org/directory"
    # The first user of the page. Its password is made on the target: `fab -H … credentials` shows it.
    web_user: str = "knockmap"

    # Kibana's heap in MB; 0 takes what fits the box's memory. (By itself Kibana takes half of it.)
    kibana_heap: int = 0
    # Street maps below the scanners, from Elastic's map service: then every visitor's browser asks it for them.
    kibana_maps_service: bool = False

    def __post_init__(self) -> None:
        for name, (good, wanted) in _LIMITS.items():
            if not good(getattr(self, name)):
                raise SettingError(f"{name} = {getattr(self, name)!r}: must be {wanted}")
        for name, (needs, wanted) in _TOGETHER.items():
            if needs(self):
                raise SettingError(f"{name} = {getattr(self, name)!r}: {wanted}")


def _between(low: int, high: int) -> tuple[Any, str]:
    return (lambda value: low <= value <= high), f"from {low} to {high}"


_LIMITS: dict[str, tuple[Any, str]] = {
    "ssh_port": (
        lambda port: 1 <= port <= 65535 and port not in (22, 80, 443),
        "a free TCP port from 1 to 65535, and not 22 (that one is watched), 80 or 443 (Apache's)",
    ),
    "ssh_revert_seconds": _between(5, 3600),
    "ssh_fingerprint": (
        lambda prints: all(re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", print) for print in prints),
        "fingerprints as ssh-keygen -l shows them: SHA256: and 43 characters",
    ),
    "knock_limit": _between(1, 10_000),
    "knock_burst": _between(1, 100_000),
    "log_rotate_megabytes": _between(1, 10_000),
    "log_rotate_keep": _between(1, 365),
    "collector_retention_days": _between(1, 3650),
    "collector_retention_megabytes": _between(16, 1_000_000),
    "dashboard_port": _between(1024, 65535),
    "geo_databases": (
        lambda paths: (
            all(path.endswith(".mmdb") and Path(path).expanduser().is_file() for path in paths)
            and len({Path(path).name for path in paths}) == len(paths)  # on the target they share a folder
        ),
        "paths of .mmdb files that exist on this machine, each with another file name",
    ),
    "elastic_version": (
        lambda version: re.fullmatch(r"9\.\d{1,2}\.\d{1,2}", version),
        "a release of Elastic's 9.x such as 9.5.2",
    ),
    "elastic_mirror": (
        lambda url: re.fullmatch(r"(https?://[^\s\"\[\]]+)?", url),
        "an https:// or http:// address",
    ),
    "elastic_packages": (
        lambda path: not path or Path(path).expanduser().is_dir(),
        "a folder that exists on this machine",
    ),
    "elastic_fingerprint": (
        lambda text: re.fullmatch(r"[0-9A-F]{40}", text.replace(" ", "").upper()),
        "the full fingerprint of a key: 40 hexadecimal digits",
    ),
    "elastic_heap": (lambda size: size == 0 or 256 <= size <= 31_000, "0, or from 256 to 31000"),
    "elastic_retention_days": _between(1, 3650),
    "elastic_retention_megabytes": _between(64, 10_000_000),
    "elastic_hosts": (
        lambda urls: all(re.fullmatch(r"https://[^\s\"\\]+", url) for url in urls),
        "https:// addresses",
    ),
    "elastic_cloud_id": (lambda text: re.fullmatch(r"([\w.-]+:[A-Za-z0-9+/=]+)?", text), "name:base64"),
    **dict.fromkeys(
        (
            *("apache_certificate_file", "apache_key_file"),
            *("elastic_key", "elastic_ca", "elastic_api_key_file"),
        ),
        (lambda path: not path or Path(path).expanduser().is_file(), "a file that exists on this machine"),
    ),
    "apache_names": (
        lambda names: bool(names) and all(map(_is_host, names)),
        'host names and addresses, or "own" for those that the host has itself',
    ),
    "apache_acme_email": (lambda email: re.fullmatch(r"([^\s@\"]+@[^\s@\"]+)?", email), "an e-mail address"),
    "apache_acme_url": (lambda url: re.fullmatch(r"https://[^\s\"]+", url), "an https:// address"),
    "web_user": (
        lambda name: re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name),
        "up to 64 letters, digits, dots, hyphens and underscores",
    ),
    "kibana_heap": (lambda size: size == 0 or 512 <= size <= 16_384, "0, or from 512 to 16384"),
    "hosts": (
        lambda hosts: all(re.fullmatch(r"[^\s,]+", host) for host in hosts),
        "host names or user@host:port",
    ),
}


def _is_host(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return bool(re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?", name))


def _is_public_name(name: str) -> bool:
    """A name for which an ACME authority can give a certificate."""
    return "." in name and not re.fullmatch(r"[\d.]+|.*:.*", name)


# What cannot be said of one setting alone: (True if it cannot be so, what to do).
_TOGETHER: dict[str, tuple[Any, str]] = {
    "ssh_port": (
        lambda s: s.ssh_port in (s.dashboard_port, *ELASTIC_PORTS),
        f"the dashboard (dashboard_port) or Elastic's programs ({', '.join(map(str, ELASTIC_PORTS))}) listen there",
    ),
    "elastic_packages": (
        lambda s: bool(s.elastic_packages and s.elastic_mirror),
        "give this folder or elastic_mirror, not both",
    ),
    "elastic_cloud_id": (
        lambda s: bool(s.elastic_cloud_id and s.elastic_hosts),
        "give this or elastic_hosts, not both",
    ),
    "elastic_ca": (
        lambda s: bool(s.elastic_ca and not s.elastic_hosts),
        "it is for elastic_hosts, which are not set",
    ),
    "elastic_api_key_file": (
        lambda s: bool(s.elastic_hosts or s.elastic_cloud_id) != bool(s.elastic_api_key_file),
        "elastic_hosts and elastic_cloud_id need it, and only they do",
    ),
    "logstash_geoip": (
        lambda s: s.logstash_geoip == "own" and not s.geo_databases,
        "`own` needs .mmdb files in geo_databases",
    ),
    "apache_certificate_file": (
        lambda s: (s.apache_certificate == "files") != bool(s.apache_certificate_file),
        "apache_certificate = files needs it, and only that does",
    ),
    "apache_key_file": (
        lambda s: (s.apache_certificate == "files") != bool(s.apache_key_file),
        "apache_certificate = files needs it, and only that does",
    ),
    "apache_names": (
        lambda s: s.apache_certificate == "acme" and not all(map(_is_public_name, s.apache_names)),
        'ACME gives certificates for public names only: name them here, without "own" and without addresses',
    ),
    "apache_acme_email": (
        lambda s: s.apache_certificate == "acme" and not s.apache_acme_email,
        "ACME needs an address to write to",
    ),
}


def load(section: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings from fabric.yaml's `knockmap:` section and the environment.

    Raises SettingError for an unknown name, a value of the wrong type and one out of range.
    """
    environ = os.environ if environ is None else environ
    named = {key[len(PREFIX) :].lower(): value for key, value in environ.items() if key.startswith(PREFIX)}
    types = typing.get_type_hints(Settings)
    values: dict[str, Any] = {}
    for origin, given in (("fabric.yaml", dict(section or {})), ("the environment", named)):
        for name, value in given.items():
            if name not in types:
                raise SettingError(f"{name}: no such setting (from {origin}); there are: {', '.join(types)}")
            values[name] = _convert(name, value, types[name], origin)
    return Settings(**values)


def _convert(name: str, value: Any, wanted: Any, origin: str) -> Any:
    """A value of the environment (text) or of YAML in the type of its field."""
    try:
        return _CONVERTERS[typing.get_origin(wanted) or wanted](value, wanted)
    except (ValueError, TypeError, KeyError):
        choices = typing.get_args(wanted) if typing.get_origin(wanted) is Literal else ()
        what = f"one of {', '.join(choices)}" if choices else _WORDS[typing.get_origin(wanted) or wanted]
        raise SettingError(f"{name} = {value!r} (from {origin}): must be {what}") from None


def _boolean(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]


def _integer(value: Any, wanted: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    return int(str(value))


def _choice(value: Any, wanted: Any) -> str:
    if value not in typing.get_args(wanted):
        raise ValueError
    return str(value)


def _strings(value: Any, wanted: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else list(value)
    return tuple(str(item).strip() for item in items if str(item).strip())


def _string(value: Any, wanted: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value.strip()


_CONVERTERS: dict[Any, Any] = {
    bool: _boolean,
    int: _integer,
    str: _string,
    Literal: _choice,
    tuple: _strings,
}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    str: "a text",
    tuple: "a list, or names separated by commas",
}


def names() -> list[str]:
    """The names of all settings, in the order of their topics."""
    return [field.name for field in dataclasses.fields(Settings)]
