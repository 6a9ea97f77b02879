"""`invoke demo`, as a stranger types it: what its last lines promise holds."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.conftest import ROOT


class Demo:
    """The command under a name of its own, and what it printed."""

    def __init__(self, name: str) -> None:
        self.environment = {**os.environ, "BOX_DEMO": name}
        self.environment.pop("DISPLAY", None)

    def run(self, *words: str) -> list[str]:
        command = [str(Path(sys.executable).parent / "invoke"), "demo", *words]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.strip().splitlines()


def view(url: str, user: str = "", password: str = "") -> Any:
    """The page's numbers. A server that has no time for us just now (503) is asked again, as the page does."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return view_once(url, user, password)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def view_once(url: str, user: str, password: str) -> Any:
    now = int(time.time())
    asked = urllib.request.Request(f"{url}api/view?since={now - 86400}&until={now + 60}")
    if user:
        asked.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    with urllib.request.urlopen(asked, context=ssl._create_unverified_context(), timeout=10) as answer:
        return json.load(answer)


@pytest.fixture
def demo(worker_id: str) -> Iterator[Demo]:
    demo = Demo(f"test-{worker_id}-{os.getpid()}-demo")
    yield demo
    demo.run("--remove")


def grows(url: str, *login: str) -> bool:
    """True as soon as there is more on the page than before."""
    before = view(url, *login)["total"]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if view(url, *login)["total"] > before:
            return True
        time.sleep(0.5)
    return False


def test_without_docker_the_page_shows_a_made_up_log_that_goes_on(demo: Demo) -> None:
    said = demo.run("--local", "--no-browser", "--detach")
    assert [line[:5] for line in said if line.startswith("[")] == [f"[{step}/5 " for step in range(1, 6)]
    name, url = said[-1].split()
    assert name == "URL" and url.startswith("http://127.0.0.1:")
    deadline = time.monotonic() + 60
    while view(url)["total"] < 5000:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert grows(url)
    assert demo.run("--remove") == ["removed the local demo"]
    with pytest.raises(urllib.error.URLError):
        view(url)


def test_with_docker_real_syns_come_on_behind_a_login(demo: Demo) -> None:
    said = demo.run("--no-browser", "--detach", "--release", "trixie")
    (_, url), (_, user), (_, password) = (line.split() for line in said[-3:])
    assert [line.split()[0] for line in said[-3:]] == ["URL", "User", "Password"]
    assert view(url, user, password)["total"] > 5000
    assert grows(url, user, password)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        view(url)
