"""What one does in this checkout: `invoke --list`. (`fab --list` shows what one does to a VPS.)"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from box import machine
from box import tasks as box
from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def each(c: Context, commands: dict[str, str]) -> list[str]:
    """Run every command, also after one failed; gives the names of those that did."""
    c.cd(str(HERE))
    return [name for name, command in commands.items() if not c.run(f"{BIN}/{command}", warn=True, pty=False)]


@task
def check(c: Context) -> None:
    """Say yes or no: formatted, linted, typed."""
    programs = " ".join(sorted(str(path.relative_to(HERE)) for path in HERE.glob("files/*/*.py")))
    commands = {
        "format": "ruff format --check --quiet .",
        "lint": "ruff check --quiet .",
        "types": "mypy --no-error-summary",
    }
    commands |= {f"types of {program}": f"mypy --no-error-summary {program}" for program in programs.split()}
    if failed := each(c, commands):
        raise Exit(f"check: no ({', '.join(failed)})", code=1)
    print("check: yes")


@task(
    help={
        "fast": "Unit tests only: no Docker, no network, under 10 s.",
        "releases": "Releases of the test boxes, such as trixie,bookworm.",
    }
)
def test(c: Context, fast: bool = False, releases: str = "trixie") -> None:
    """Check, then test everything: units, then every task on real boxes."""
    check(c)
    environment = {"BOX_RELEASES": releases}
    suites = "tests/unit" if fast else "tests/unit tests/container -n 2 --dist loadfile"
    done = c.run(f"{BIN}/pytest -q {suites}", env=environment, warn=True, pty=False)
    if not done:
        raise Exit("test: no", code=1)


@task
def bench(c: Context) -> None:
    """Measure deploy side by side with Ansible and pyinfra, and the collector; write tests/bench/results.md."""
    c.run(f"{BIN}/python -m tests.bench", env={"PYTHONPATH": os.fspath(HERE)})


@task
def fetch(c: Context) -> None:
    """Fetch the free GeoIP database, pinned by hash, into the cache that deploy takes it from."""
    from fabfile import geo

    geo.fetch()


@task
def demo(c: Context) -> None:
    """Show it all: a disposable VPS, deployed, attacked from all over the world, and who knocked."""
    fab = f"{BIN}/fab -S .box/ssh_config -H demo"
    c.config.run.env = {"KNOCKMAP_STACK": "embedded"}
    with c.cd(str(HERE)):
        if "demo" not in machine.boxes():
            box.up(c, name="demo")
        c.run(f"{fab} deploy")
        box.attack(c, name="demo", count=400, rate=200)
        c.run("sleep 2")
        c.run(f"{fab} scanners")
    print("The box stays: `invoke box.down --name demo` removes it.")


ns = Collection(check, test, demo, bench, Collection("geo", fetch), box=box)
