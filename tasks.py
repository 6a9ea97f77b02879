"""What one does in this checkout: `invoke --list`. (`fab --list` shows what one does to a VPS.)"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from box import machine
from box import tasks as box
from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

HERE = Path(__file__).parent
BIN = shlex.quote(str(Path(sys.executable).parent))


def run(c: Context, command: str, **environment: str) -> bool:
    """Whether a command of .venv, run at the top of the checkout and without a keyboard, went well."""
    with c.cd(str(HERE)):
        done = c.run(f"{BIN}/{command}", env=environment, warn=True, pty=False, in_stream=False)
    return bool(done)


@task
def check(c: Context) -> None:
    """Say yes or no: formatted, linted, typed."""
    commands = {
        "format": "ruff format --check --quiet .",
        "lint": "ruff check --quiet .",
        "types": "mypy --no-error-summary",
    }
    failed = [name for name, command in commands.items() if not run(c, command)]
    # A target's programs import their neighbours by bare name; the dashboard also the collector's tables.
    folders = sorted({str(path.parent.relative_to(HERE)) for path in HERE.glob("files/*/*.py")})
    failed += [
        f"types of {at}"
        for at in folders
        if not run(c, f"mypy --no-error-summary {at}/*.py", MYPYPATH=f"{at}:files/collector")
    ]
    if failed:
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
    # The tests of one module share a box, so a module stays on one worker.
    suites = "tests/unit" if fast else "tests/unit tests/container --dist loadfile"
    if not run(c, f"pytest -q -n 2 {suites}", BOX_RELEASES=releases):
        raise Exit("test: no", code=1)


@task
def bench(c: Context) -> None:
    """Measure deploy side by side with Ansible and pyinfra, and the collector; write tests/bench/results.md."""
    if not run(c, "python -m tests.bench"):
        raise Exit("bench: no", code=1)


@task
def fetch(c: Context) -> None:
    """Fetch the free GeoIP database, pinned by hash, into the cache that deploy takes it from."""
    from fabfile import geo

    for path in geo.fetch():
        print(path)
    print(geo.about())


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
