"""Brings a file of Maven Central: over HTTPS, resumed where it broke off, and taken only with the hash that is pinned."""

from __future__ import annotations

import hashlib
import time
import urllib.error
import urllib.request
from pathlib import Path

TRIES, WAIT, BLOCK = 5, 2.0, 1 << 20


class DownloadError(Exception):
    """What could not be brought, from where, why, and what to do."""


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


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
