"""What one does in this checkout: `invoke --list`. (`fab --list` shows what one does to a VPS.)"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from box import BoxError
from box import demo as scene
from box import tasks as box
from box.images import client
from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

HERE = Path(__file__).parent
BIN = shlex.quote(str(Path(sys.executable).parent))
SOME_FAILED = 1  # pytest's exit status; 2 and more: it was interrupted or broke
# As many as there are cores: one more is a tenth quicker, and then deadlines of tests pass while they wait for a core.
WORKERS = min(max(os.cpu_count() or 2, 2), 4)

# Folders of programs that those of others import from.
SHARED = "files/collector:files/dashboard:files/install_elk"


def run(c: Context, command: str, **environment: str) -> bool:
    """Whether a command of .venv, run at the top of the checkout and without a keyboard, went well."""
    return exit_code(c, command, **environment) == 0


def exit_code(c: Context, command: str, **environment: str) -> int:
    # Tests start Python some thousand times, so what it compiles is kept, whatever is usual on this machine.
    environment["PYTHONDONTWRITEBYTECODE"] = ""
    with c.cd(str(HERE)):
        done = c.run(f"{BIN}/{command}", env=environment, warn=True, pty=False, in_stream=False)
    return 1 if done is None else done.exited  # a Result that failed is false


@task
def check(c: Context) -> None:
    """Say yes or no: formatted, linted, typed."""
    commands = {
        "format": "ruff format --check --quiet .",
        "lint": "ruff check --quiet .",
        "types": "mypy --no-error-summary",
    }
    failed = [name for name, command in commands.items() if not run(c, command)]
    # A target's programs import their neighbours by bare name; some also those of another folder.
    folders = sorted({str(path.parent.relative_to(HERE)) for path in HERE.glob("files/*/*.py")})
    failed += [
        f"types of {at}"
        for at in folders
        if not run(c, f"mypy --no-error-summary {at}/*.py", MYPYPATH=f"{at}:{SHARED}")
    ]
    if failed:
        raise Exit(f"check: no ({', '.join(failed)})", code=1)
    print("check: yes")


@task(
    help={
        "fast": "Unit tests only: no Docker, no network, some ten seconds.",
        "releases": "Releases of the test boxes, such as trixie,bookworm.",
        "elastic_mirror": "URL of Elastic's apt repository or a mirror of it; default: the doubles of tests/doubles.",
        "elastic_packages": "A folder with Elastic's three .deb files, in place of a mirror.",
        "elastic_version": "The version of them to install.",
        "elastic_next": "A later version in that mirror, for the test of an upgrade.",
    }
)
def test(
    c: Context,
    fast: bool = False,
    releases: str = "trixie",
    elastic_mirror: str = "",
    elastic_packages: str = "",
    elastic_version: str = "",
    elastic_next: str = "",
) -> None:
    """Check, then test everything: units, then every task on real boxes."""
    if not fast:
        check(c)
    # The tests of one module share a box, so a module stays on one worker.
    suites = "tests/unit" if fast else "tests/unit tests/container --dist loadfile"
    chosen = {
        "mirror": elastic_mirror,
        "packages": elastic_packages,
        "version": elastic_version,
        "next": elastic_next,
    }
    options = "".join(f" --elastic-{name}={shlex.quote(value)}" for name, value in chosen.items() if value)
    pytest = f"pytest -q {'' if fast else options} --durations=10"
    code = exit_code(c, f"{pytest} --cache-clear -n {WORKERS} {suites}", BOX_RELEASES=releases)
    if code == 0:
        return
    again = once_more(HERE / ".pytest_cache/v/cache/lastfailed") if code == SOME_FAILED else []
    if not again or not run(c, f"{pytest} {' '.join(again)}", BOX_RELEASES=releases):
        raise Exit("test: no", code=1)
    print(
        f"test: yes, but at the second try only, alone: {', '.join(again)} (what failed at first stands above)"
    )


def once_more(noted: Path) -> list[str]:
    """Up to 3 files of boxes' tests in which some failed, by pytest's note: they share one kernel's log, and time."""
    try:
        failed = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    files = sorted({name.partition("::")[0] for name in failed})
    boxes = all("::" in name and name.startswith("tests/container/") for name in failed)
    return files if boxes and len(files) <= 3 else []


@task
def bench(c: Context) -> None:
    """Measure deploy beside Ansible and pyinfra, the collector, and the page under load."""
    if not (run(c, "python -m tests.bench") and run(c, "python -m tests.bench.load")):
        raise Exit("bench: no", code=1)


@task
def fetch(c: Context) -> None:
    """Fetch the free GeoIP database, pinned by hash, into the cache that deploy takes it from."""
    from fabfile import geo
    from fabfile.engine.errors import UsageError

    try:
        paths = geo.fetch()
    except UsageError as error:
        raise Exit(f"geo.fetch: {error}", code=1) from None
    for path in paths:
        print(path)
    print(geo.about())


@task(help={"versions": "Which, such as 9.5.2,9.5.3.", "serve": "Serve them to the boxes until Ctrl-C."})
def build(c: Context, versions: str = "9.5.2", serve: bool = False) -> None:
    """Build the doubles of Elastic's packages, and the signed apt repository with them."""
    from tests.doubles import download, repository

    try:
        built = repository.build(*versions.split(","))
    except (BoxError, download.DownloadError) as error:
        raise Exit(f"doubles.build: {error}", code=1) from None
    print(built.folder)
    if serve:
        with repository.serving(built.folder) as url:
            for name, value in built.settings(url).items():
                print(f"export {name}={value}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(1_000_000)


@task(
    help={
        "local": "Without Docker and root: collector and dashboard on loopback, from a made-up log.",
        "browser": "Open the page where there is a screen (--no-browser: do not).",
        "detach": "Leave it running, with URL, user and password as the last lines.",
        "remove": "Remove what a demo left running.",
        "release": "Release of the box; default: noble where its image can be pulled, else trixie.",
        "stack": "embedded, or elastic: Elasticsearch, Logstash and Kibana, by doubles where Elastic does not answer.",
    }
)
def demo(
    c: Context,
    local: bool = False,
    browser: bool = True,
    detach: bool = False,
    remove: bool = False,
    release: str = "",
    stack: str = "embedded",
) -> None:
    """Show it all: a disposable VPS, deployed, scanned from all over the world, and the live page about it."""
    if remove:
        print("removed " + (", ".join(scene.remove()) or "nothing: there was no demo"))
        return
    if stack not in scene.STACKS:
        raise Exit(f"demo --stack {stack}: must be one of {', '.join(scene.STACKS)}", code=2)
    if stack == "elastic" and local:
        raise Exit("demo --local: has no packages, so no Elasticsearch; leave --local or --stack out", code=2)
    try:
        if local or without_docker():
            print(
                "demo --local: there are no packets, no Apache and no login, and every line is made up.",
                flush=True,
            )
            shown = scene.local()
        else:
            with packages_of(stack) as settings:
                shown = scene.with_docker(release or None, stack, **settings)
    except BoxError as error:
        raise Exit(f"demo: {error}", code=1) from None
    if shown.fingerprint:
        print(f"\nThe certificate is self-signed: your browser warns. SHA-256 {shown.fingerprint}")
    if browser:
        scene.browse(shown)
    print(f"\n{scene.last_lines(shown)}", flush=True)
    if not detach:
        stay()


@contextlib.contextmanager
def packages_of(stack: str) -> Iterator[dict[str, str]]:
    """Where the stack's packages come from, as settings: Elastic's own repository, or our doubles, which is said."""
    if stack != "elastic" or os.environ.get("KNOCKMAP_ELASTIC_MIRROR") or elastic_answers():
        yield {}
        return
    from tests.doubles import repository

    print(
        "demo: Elastic's repository does not answer, so Elasticsearch is the real server of Maven Central, and Kibana and "
        "Logstash are doubles of ours (tests/doubles/README.md)",
        flush=True,
    )
    built = repository.build()
    with repository.serving(built.folder) as url:
        yield built.settings(url)


def elastic_answers() -> bool:
    from fabfile.elastic_source import REPOSITORY

    try:
        with urllib.request.urlopen(f"{REPOSITORY}/dists/stable/InRelease", timeout=5):  # noqa: S310 - https
            return True
    except OSError:
        return False


def without_docker() -> bool:
    """True, said in one line, if no engine answers."""
    try:
        client()
    except BoxError as error:
        print(f"demo: --local, since {error}")
        return True
    return False


def stay() -> None:
    """Until Ctrl-C; then ask what becomes of it."""
    print("\nNew SYNs come for 30 minutes. Ctrl-C ends this command.", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        answer = input("\nRemove the demo? [y/N] ") if sys.stdin.isatty() else "n"
    if answer.strip().lower().startswith("y"):
        print("removed " + ", ".join(scene.remove()))
    else:
        print("It stays: `invoke demo --remove` removes it.")


ns = Collection(check, test, demo, bench, Collection("geo", fetch), Collection("doubles", build), box=box)
