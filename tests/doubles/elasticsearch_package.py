"""The package `elasticsearch`: the real server of Maven Central, laid out as Elastic's package is, with a Java of its own."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .deb import Entry, folder

HERE = Path(__file__).parent / "elasticsearch"
GROUP = "org.elasticsearch.distribution.integ-test-zip"
SHA256 = {
    "9.5.2": "de3d9c88b5f993d9b1f937a1da8d7bfa3e881f83bf3a0dab3e49a8d557934618",
    "9.5.3": "bec49f3b8d00e75c8d1cec85c35298635ec9fbd3ae80ef5aeb6bc05abdb3db2d",
}
HOME, CONFIG = "usr/share/elasticsearch", "etc/elasticsearch"
OTHERS = (".bat", ".exe", "lib/platform/windows", "lib/platform/darwin")
# What the package's files have that the zip's have not: old text → new text, which must be there exactly once.
EDITS = {
    "config/elasticsearch.yml": {
        "#path.data: /path/to/data": "path.data: /var/lib/elasticsearch",
        "#path.logs: /path/to/logs": "path.logs: /var/log/elasticsearch",
    },
    "config/jvm.options": {
        "-XX:ErrorFile=hs_err": "-XX:ErrorFile=/var/log/elasticsearch/hs_err",
        "file=gc.log": "file=/var/log/elasticsearch/gc.log",
    },
    "bin/elasticsearch-env": {
        'then ES_PATH_CONF="$ES_HOME"/config; fi': "then source /etc/default/elasticsearch; fi",
        "ES_DISTRIBUTION_TYPE=zip": "ES_DISTRIBUTION_TYPE=deb",
    },
}


def entries(server: Path, jdk: Path, modules: Path) -> Iterator[Entry]:
    """Everything the package holds: of the zip, of the tar with the Java runtime, of the compiled modules, of root/."""
    yield from own_folders()
    yield from of_zip(server)
    yield from of_jdk(jdk)
    yield from (prefixed(entry, f"{HOME}/modules") for entry in folder(modules))
    for entry in folder(HERE / "root"):
        secret = entry.path == "etc/default/elasticsearch"
        yield Entry(entry.path, entry.content, mode=0o660, group="elasticsearch") if secret else entry


def own_folders() -> Iterator[Entry]:
    for path in (CONFIG, f"{CONFIG}/jvm.options.d"):
        yield Entry(path, mode=0o2750, group="elasticsearch")
    yield from (Entry(f"{HOME}/{name}") for name in ("bin", "lib", "modules", "plugins"))
    for path in ("var/lib/elasticsearch", "var/log/elasticsearch"):
        yield Entry(path, mode=0o2750, owner="elasticsearch", group="elasticsearch")


def of_zip(server: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(server) as archive:
        for item in archive.infolist():
            name = item.filename.partition("/")[2]
            if item.is_dir() or any(other in name for other in OTHERS) or name.startswith("logs/"):
                continue
            yield placed(name, edited(name, archive.read(item)), item.external_attr >> 16 & 0o100)


def placed(name: str, content: bytes, executable: int) -> Entry:
    """A file of the zip, where the package has it."""
    top, _, rest = name.partition("/")
    if top == "config":
        return Entry(f"{CONFIG}/{rest}", content, mode=0o660, group="elasticsearch")
    return Entry(f"{HOME}/{name}", content, mode=0o755 if executable and top == "bin" else 0o644)


def edited(name: str, content: bytes) -> bytes:
    for old, new in EDITS.get(name, {}).items():
        if content.count(old.encode()) != 1:
            raise ValueError(
                f"{name} of the zip does not have {old!r} exactly once: look at what this version changed"
            )
        content = content.replace(old.encode(), new.encode())
    return content


def of_jdk(jdk: Path) -> Iterator[Entry]:
    with tarfile.open(jdk) as archive:
        for item in archive:
            path = f"{HOME}/{item.name}"
            if item.issym():
                yield Entry(path, link=item.linkname)
            elif item.isfile() and (file := archive.extractfile(item)):
                yield Entry(path, file.read(), mode=item.mode)


def prefixed(entry: Entry, prefix: str) -> Entry:
    return Entry(f"{prefix}/{entry.path}", entry.content, entry.link, entry.mode)
