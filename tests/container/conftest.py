"""Boxes for the tests: one for a module, by release, or a fresh one for a test that breaks it.

`BOX_RELEASES` names the releases (default trixie). Tests of one module share a box for each, so `invoke test` keeps a
module on one worker.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra
from box import Box, down, up
from testinfra.host import Host

from tests.container import elastic as packages

ROOT = Path(__file__).parents[2]
RELEASES = os.environ.get("BOX_RELEASES", "trixie").split(",")
# What takes longest comes first, so that no worker is left alone with it at the end.
FIRST = ("doctor_elastic", "install_elk", "apache_proxy", "kibana", "doctor", "page", "doubles", "migrate")
numbers = itertools.count(1)
NewBox = Callable[..., Box]


def pytest_addoption(parser: pytest.Parser) -> None:
    packages.add_options(parser)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unfit = [
        item for item in items if "elastic_box" in getattr(item, "fixturenames", ()) and packages.unfit(item)
    ]
    if unfit and not packages.real(config):
        config.hook.pytest_deselected(items=unfit)
        items[:] = [item for item in items if item not in unfit]
    items.sort(key=turn_of)


def turn_of(item: pytest.Item) -> int:
    """Units first, since they fail soonest; then boxes, as FIRST has them."""
    if "container" not in item.path.parts:
        return -1
    name = item.path.stem.removeprefix("test_")
    return FIRST.index(name) if name in FIRST else len(FIRST)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"Elastic stack tested with: {packages.label(config)}")


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def boxes(worker_id: str) -> Iterator[NewBox]:
    """Make boxes that are gone afterwards. Few stand at a time: a kernel has few inotify instances for all of them."""
    made = []

    def make(release: str, **options: Any) -> Box:
        name = f"test-{worker_id}-{os.getpid()}-{next(numbers)}"
        made.append(name)
        return up(name=name, release=release, **options)

    try:
        yield make
    finally:
        for name in made:
            down(name)


@pytest.fixture
def new_box(worker_id: str) -> Iterator[NewBox]:
    """Make boxes that are gone after this test: `new_box(release, variant="bare")`."""
    with boxes(worker_id) as make:
        yield make


@pytest.fixture(scope="module")
def box(worker_id: str, release: str) -> Iterator[Box]:
    """One box for all tests of a module on a release."""
    with boxes(worker_id) as make:
        yield make(release)


@pytest.fixture
def fresh_box(new_box: NewBox, release: str) -> Box:
    """A box of its own for one test."""
    return new_box(release)


@pytest.fixture(scope="module")
def host(box: Box) -> Host:
    """testinfra's view of the module's box, through Docker: to look, never to prove a login."""
    return testinfra.get_host(f"docker://{box.container}")


@dataclass(frozen=True)
class Fab:
    """What a `fab` command did: exit status, and both streams as text."""

    rc: int
    out: str

    @property
    def last(self) -> str:
        """The last line of output: what the operator reads first."""
        return self.out.strip().splitlines()[-1] if self.out.strip() else ""


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an operator with a state and cache of his own for this module."""
    home = tmp_path_factory.mktemp("operator")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KNOCKMAP_")}
    return {
        **environment,
        "XDG_STATE_HOME": str(home),
        "KNOCKMAP_STACK": "embedded",
        "KNOCKMAP_GEO_SOURCE": "none",
        "BOX_ALONE": "1",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="module")
def fab(operator: dict[str, str]) -> Callable[..., Fab]:
    """Run fab as an operator does: `fab(box, "iptables-log", "--check", KNOCKMAP_KNOCK_LIMIT="5")`."""

    def run(
        where: Box | str,
        *arguments: str,
        user: str = "",
        ssh_config: str = ".box/ssh_config",
        **environment: str,
    ) -> Fab:
        name = where if isinstance(where, str) else where.name
        host = f"{user}@{name}" if user else name
        command = [f"{Path(sys.executable).parent}/fab", "-S", ssh_config, "-H", host, *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**operator, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,  # packages of Elastic are large
            check=False,
        )
        return Fab(done.returncode, done.stdout)

    return run


@pytest.fixture(scope="session")
def elastic(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings (environment) for a deploy of the Elastic stack, from whichever packages: `fab(box, "deploy", **elastic)`."""
    with packages.settings(request.config, request.config.getoption("--elastic-version")) as settings:
        yield settings


@pytest.fixture(scope="session")
def elastic_next(request: pytest.FixtureRequest, elastic: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same for a later version, whose repository has the first one, too."""
    later = request.config.getoption("--elastic-next") or packages.NEXT
    if packages.real(request.config) and not request.config.getoption("--elastic-next"):
        pytest.skip("which version is the next one there must be said: --elastic-next VERSION")
    with packages.settings(request.config, later, elastic["KNOCKMAP_ELASTIC_VERSION"]) as settings:
        yield settings


@pytest.fixture(scope="module")
def elastic_box(worker_id: str, release: str) -> Iterator[Box]:
    """The module's box for the Elastic stack; as many stand at a time as there is memory for."""
    with packages.turn(), boxes(worker_id) as make:
        yield make(release)
