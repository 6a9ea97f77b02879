"""Which packages the tests of the Elastic stack install: the doubles, Elastic's own repository or a mirror, or .deb files.

The tests get settings, and do not know which it is; the report says it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.doubles import repository

VERSION, NEXT = "9.5.2", "9.5.3"
# The JVM in the double is Debian 13's, which wants its C library (2.38) or a newer one.
OLD = ("bookworm", "jammy")
NEEDED = 3 * 1024**3  # bytes of memory for one box with all three
Settings = dict[str, str]


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("elastic", "where the tests of the Elastic stack take its packages from")
    group.addoption(
        "--elastic-mirror", metavar="URL", default="", help="Elastic's apt repository, or a mirror of it"
    )
    group.addoption(
        "--elastic-packages", metavar="FOLDER", default="", help="a folder with the three .deb files"
    )
    group.addoption("--elastic-version", metavar="VERSION", default=VERSION, help="the version to install")
    group.addoption(
        "--elastic-next", metavar="VERSION", default="", help="a later one there, for the upgrade"
    )


def real(config: pytest.Config) -> bool:
    return bool(config.getoption("--elastic-mirror") or config.getoption("--elastic-packages"))


def label(config: pytest.Config) -> str:
    """What the report is to say."""
    if real(config):
        return f"REAL packages of {config.getoption('--elastic-mirror') or config.getoption('--elastic-packages')}"
    return "DOUBLES of tests/doubles, with the real Elasticsearch server of Maven Central (its README says what is real)"


@contextmanager
def settings(config: pytest.Config, *versions: str) -> Iterator[Settings]:
    """The settings, as environment variables, for a deploy of the first of these versions."""
    with ExitStack() as stack:
        chosen = given(config) if real(config) else doubles(stack, versions)
        yield {
            "KNOCKMAP_STACK": "elastic",
            "KNOCKMAP_ELASTIC_VERSION": versions[0],
            "KNOCKMAP_ELASTIC_HEAP": "512",
            **chosen,
        }


def given(config: pytest.Config) -> Settings:
    """By the options. A mirror that another key signs: KNOCKMAP_ELASTIC_KEY and …_FINGERPRINT of the caller count."""
    passed = {
        name: os.environ[name]
        for name in ("KNOCKMAP_ELASTIC_KEY", "KNOCKMAP_ELASTIC_FINGERPRINT")
        if name in os.environ
    }
    chosen = {
        "KNOCKMAP_ELASTIC_MIRROR": str(config.getoption("--elastic-mirror")),
        "KNOCKMAP_ELASTIC_PACKAGES": str(config.getoption("--elastic-packages")),
    }
    return {**{name: value for name, value in chosen.items() if value}, **passed}


def doubles(stack: ExitStack, versions: tuple[str, ...]) -> Settings:
    built = repository.build(*versions)
    return built.settings(stack.enter_context(repository.serving(built.folder)))


def unfit(item: pytest.Item) -> bool:
    """True on a release on which the Java in the double of Elasticsearch cannot run: its tests are not collected there."""
    return any(f"[{release}" in item.name for release in OLD)


@contextmanager
def turn() -> Iterator[None]:
    """Wait until there is memory for one more box with the stack: so many at a time, over all workers and checkouts."""
    places = max(1, min(3, memory() // NEEDED))
    for number in range(places):
        with Path(repository.cache() / f"box-{number}").open("w") as file:
            last = number == places - 1
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if last else fcntl.LOCK_NB))
            except BlockingIOError:
                continue
            yield
            return


def memory() -> int:
    """Bytes that this machine could give away now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
