"""The apt repository of DOUBLES: elasticsearch, kibana, logstash in one version, built, signed, and served to the boxes."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import http.server
import ipaddress
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from box import images

from . import builder, deb, download, elasticsearch_package

HERE = Path(__file__).parent
VERSION = "9.5.2"
NAMES = ("elasticsearch", "kibana", "logstash")
ARCHITECTURES = ("amd64", "arm64")
PACKERS = ("builder", "deb", "elasticsearch_package", "repository")
# The Pythons that boxes have, for the compiled parts of what a double brings along: Debian 12, Ubuntu 24.04, Debian 13.
PYTHONS = ("3.11", "3.12", "3.13")
WEEK = 7 * 86400  # seconds
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def cache() -> Path:
    found = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knockmap" / "doubles"
    found.mkdir(parents=True, exist_ok=True)
    return found


@contextmanager
def lock() -> Iterator[None]:
    """One build at a time, whichever checkout it is for: they share the cache."""
    with (cache() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Repository:
    """A signed apt repository in a folder: what `elastic_mirror` and `elastic_key` are to name."""

    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "key.asc"

    @property
    def fingerprint(self) -> str:
        return (self.folder / "fingerprint").read_text().strip()

    def settings(self, url: str) -> dict[str, str]:
        """As environment variables, for a deploy from this repository where it is served."""
        return {
            "KNOCKMAP_ELASTIC_MIRROR": url,
            "KNOCKMAP_ELASTIC_KEY": str(self.key),
            "KNOCKMAP_ELASTIC_FINGERPRINT": self.fingerprint,
        }


def build(version: str = VERSION, *more: str) -> Repository:
    """The repository with the doubles of one version, or of several; what has not changed is not built again."""
    with lock():
        packages = [package(name, each) for each in (version, *more) for name in present()]
        digest = hashlib.sha256("\n".join(path.name for path in packages).encode()).hexdigest()[:12]
        to = cache() / f"repository-{digest}"
        if not (to / "dists/stable/InRelease").exists():
            lay_out(packages, to)
        forget({to, *packages})
    return Repository(to)


def forget(used: set[Path]) -> None:
    """Remove what of the cache was not used for a week: every change makes 200 MB anew."""
    for path in used:
        os.utime(path)
    for kind in ("repository-*", "*.deb", "modules-*", "vendor-*", "*.part"):
        for path in cache().glob(kind):
            if time.time() - path.stat().st_mtime > WEEK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def present() -> list[str]:
    return [name for name in NAMES if (HERE / name / "debian" / "control").exists()]


def package(name: str, version: str) -> Path:
    """The .deb of a double, named by the hash of all it is made of."""
    architecture = builder.architecture()
    found = cache() / f"{name}_{version}_{architecture}_{source_hash(name)}.deb"
    if not found.exists():
        part = found.with_suffix(".part")
        part.write_bytes(
            deb.build(
                control(name, version, architecture), scripts(name), contents(name, version, architecture)
            )
        )
        part.replace(found)
    return found


def source_hash(name: str) -> str:
    """Of the double's own files, and of what packs them."""
    found = hashlib.sha256()
    packers = [HERE / f"{module}.py" for module in PACKERS]
    for path in sorted([*packers, *(HERE / "builder").iterdir(), *(HERE / name).rglob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(HERE)} {path.stat().st_mode:o}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def control(name: str, version: str, architecture: str) -> str:
    text = (HERE / name / "debian" / "control").read_text()
    return text.replace("${version}", version).replace("${architecture}", architecture)


def scripts(name: str) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (HERE / name / "debian").iterdir() if path.name != "control"
    }


def contents(name: str, version: str, architecture: str) -> Iterable[deb.Entry]:
    if name == "elasticsearch":
        return elasticsearch(version)
    return [*with_version(deb.folder(HERE / name / "root"), version), *vendored(name, architecture)]


def with_version(entries: Iterable[deb.Entry], version: str) -> Iterator[deb.Entry]:
    """A file `VERSION` in the package tells the double who it is."""
    for entry in entries:
        named = isinstance(entry.content, Path) and entry.content.name == "VERSION"
        yield deb.Entry(entry.path, f"{version}\n".encode(), mode=0o644) if named else entry


def elasticsearch(version: str) -> Iterable[deb.Entry]:
    if version not in elasticsearch_package.SHA256:
        raise download.DownloadError(
            f"no SHA-256 is pinned for Elasticsearch {version}: add it to tests/doubles/elasticsearch_package.py"
        )
    server = cache() / f"elasticsearch-{version}.zip"
    download.artifact(
        elasticsearch_package.GROUP, "elasticsearch", version, elasticsearch_package.SHA256[version], server
    )
    jdk = builder.jdk(cache() / f"{builder.image().replace(':', '-')}-jdk.tar")
    modules = builder.modules(server, version, cache() / f"modules-{version}-{source_hash('elasticsearch')}")
    return elasticsearch_package.entries(server, jdk, modules)


def vendored(name: str, architecture: str) -> list[deb.Entry]:
    """The wheels of the double's requirements.lock, for every Python of the boxes, unpacked where the double finds them."""
    lock = HERE / name / "requirements.lock"
    if not lock.exists():
        return []
    digest = hashlib.sha256(lock.read_bytes() + repr(PYTHONS).encode()).hexdigest()[:12]
    to = cache() / f"vendor-{name}-{architecture}-{digest}"
    if not to.exists():
        for python in PYTHONS:
            bring_wheels(lock, python, MACHINES[architecture], cache() / "wheels" / digest / python)
        builder.wheels(sorted((cache() / "wheels" / digest).rglob("*.whl")), to)
    return [elasticsearch_package.prefixed(entry, f"usr/share/{name}/vendor") for entry in deb.folder(to)]


def bring_wheels(lock: Path, python: str, machine: str, to: Path) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (28, 17)] + [
        f"--platform=manylinux2014_{machine}"
    ]
    options = [
        "--quiet",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
        f"--python-version={python}",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, *platforms, "-r", str(lock), "-d", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise download.DownloadError(
            f"the wheels of {lock} for Python {python} could not be brought:\n{done.stderr[-1500:]}"
        )


def lay_out(packages: list[Path], to: Path) -> None:
    """pool/, dists/ with indexes for both architectures, and the signature."""
    part = to.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "pool").mkdir(parents=True)
    indexes: dict[str, list[str]] = {architecture: [] for architecture in ARCHITECTURES}
    for path in packages:
        name, version, architecture, _ = path.stem.split("_")
        placed = part / "pool" / f"{name}-{version}-{architecture}.deb"
        os.link(path, placed)
        indexes[architecture].append(stanza(placed))
    write_indexes(part / "dists" / "stable", indexes)
    keys = cache() / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    builder.run("sign.sh", {part: "/repository", keys: "/keys"})
    part.replace(to)


def stanza(path: Path) -> str:
    """What the index says of a package: what it says of itself, and where it is."""
    size = path.stat().st_size
    return f"{deb.control_of(path).strip()}\nFilename: pool/{path.name}\nSize: {size}\nSHA256: {download.digest(path)}\n"


def write_indexes(suite: Path, indexes: dict[str, list[str]]) -> None:
    sums = []
    for architecture, stanzas in indexes.items():
        at = suite / "main" / f"binary-{architecture}" / "Packages"
        at.parent.mkdir(parents=True)
        at.write_text("\n".join(stanzas))
        sums.append(f" {download.digest(at)} {at.stat().st_size} {at.relative_to(suite)}")
    head = {
        "Origin": "knockmap doubles",
        "Label": "DOUBLE of Elastic's repository",
        "Suite": "stable",
        "Codename": "stable",
        "Architectures": " ".join(indexes),
        "Components": "main",
        "Date": formatdate(usegmt=True),
    }
    lines = [f"{name}: {value}" for name, value in head.items()]
    (suite / "Release").write_text("\n".join([*lines, "SHA256:", *sums]) + "\n")


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Tests are to show what failed, and nothing else."""


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder to the boxes of this machine, and to nobody else; gives the URL that a box reaches it at."""
    listen, seen = addresses()
    handler = functools.partial(Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer((listen, port), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://{seen}:{server.server_address[1]}"
        finally:
            server.shutdown()


def addresses() -> tuple[str, str]:
    """Where to listen, and as what a box sees that: the gateway of Docker's own bridge, which is this machine.

    Where Docker runs in a machine of its own (macOS), nobody can listen there; that machine knows us by a name.
    """
    if sys.platform != "linux":
        return "127.0.0.1", "host.docker.internal"
    network = images.client().networks.get("bridge").attrs["IPAM"]["Config"][0]
    # An engine that was never started before does not say it yet; it is the first address then.
    gateway = network.get("Gateway") or str(ipaddress.ip_network(network["Subnet"])[1])
    return gateway, gateway
