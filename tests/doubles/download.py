"""Brings a file of Maven Central, taken only with the hash that is pinned: by Maven, as it is set up on this machine.

Without Maven: over HTTPS from the repository that MAVEN_REPOSITORY names, resumed where it broke off.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

TRIES, WAIT, BLOCK = 5, 2.0, 1 << 20
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"


class DownloadError(Exception):
    """What could not be brought, from where, why, and what to do."""


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def artifact(group: str, name: str, version: str, sha256: str, to: Path) -> Path:
    """A zip of Maven Central at `to`. Raises DownloadError."""
    if to.exists():
        return to
    if url := os.environ.get("MAVEN_REPOSITORY"):
        path = f"{group.replace('.', '/')}/{name}/{version}/{name}-{version}.zip"
        return bring(f"{url.rstrip('/')}/{path}", sha256, to)
    if not shutil.which("mvn"):
        raise DownloadError(
            f"{group}:{name}:{version} comes from Maven Central, and there is no mvn here; install Maven, or name a Maven "
            f"repository's URL in MAVEN_REPOSITORY, or put the file at {to} yourself"
        )
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        by_maven(f"{group}:{name}:{version}:zip", folder)
        found = next(Path(folder).iterdir())
        if digest(found) != sha256:
            raise DownloadError(
                f"{group}:{name}:{version} is not what was pinned: its SHA-256 is not {sha256}"
            )
        found.replace(to)
    return to


def by_maven(coordinates: str, folder: str) -> None:
    argv = [
        "mvn",
        "--batch-mode",
        "--quiet",
        COPY,
        f"-Dartifact={coordinates}",
        f"-DoutputDirectory={folder}",
    ]
    for number in range(TRIES):
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
        if not done.returncode:
            return
        time.sleep(WAIT * number)
    raise DownloadError(f"Maven could not bring {coordinates} in {TRIES} tries: {done.stdout.strip()[-600:]}")


def bring(url: str, sha256: str, to: Path) -> Path:
    """The file at `to`, fetched from `url` if it is not there yet. Environment proxies count. Raises DownloadError."""
    if to.exists():
        return to
    part = to.with_name(f"{to.name}.part")
    to.parent.mkdir(parents=True, exist_ok=True)
    for number in range(TRIES):
        if problem := go_on(url, part):
            time.sleep(WAIT * number)
            continue
        if digest(part) == sha256:
            part.replace(to)
            return to
        part.unlink()
        problem = f"its SHA-256 is not {sha256}"
    raise DownloadError(
        f"{url} could not be brought in {TRIES} tries: {problem}. Is there a network, or a proxy (HTTPS_PROXY)? "
        f"What came so far is kept: run it again. Or put the file at {to} yourself."
    )


def go_on(url: str, part: Path) -> str:
    """Fetch what is missing of a file; in words, why it did not come to its end (empty: it did)."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            with part.open("ab" if answer.status == 206 else "wb") as file:
                while block := answer.read(BLOCK):
                    file.write(block)
            wanted = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get(
                "Content-Length"
            )
            return "" if part.stat().st_size == int(wanted) else "the connection ended too early"
    except urllib.error.HTTPError as error:
        # 416: nothing is missing.
        return "" if error.code == 416 else f"HTTP {error.code}"
    except OSError as error:
        return str(error)
