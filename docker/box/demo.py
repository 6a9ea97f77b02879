"""The whole thing in one command: a VPS in Docker, deployed, with a made-up past and live SYNs from all over the world.

Where no Docker engine answers: collector and dashboard alone, on loopback and without root, from a made-up log.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import history, kernel, machine, state
from .attack import attack
from .images import BoxError

NAME = os.environ.get("BOX_DEMO", "demo")  # tests must not take the one that you look at
PAST_HOURS, PAST_LINES = 36, 15_000
# By stack: how many lines, and the folder in which it looks for what is not the log itself.
PASTS = {"embedded": (PAST_LINES, "/var/log"), "elastic": (5_000, "/var/lib/knockmap/replay")}
RATE, MINUTES = 3, 30  # live SYNs per second, and for how long
FOLDER = state.FOLDER / f"{NAME}-local"
PIDS = FOLDER / "pids.json"
STEPS = 5
SOURCES = (
    "KNOCKMAP_GEO_",
    *(f"KNOCKMAP_ELASTIC_{name}" for name in ("MIRROR", "PACKAGES", "VERSION", "KEY", "FINGERPRINT")),
)


@dataclass(frozen=True)
class Shown:
    """Where the page is, and who may see it."""

    url: str
    user: str = ""
    password: str = ""
    fingerprint: str = ""


class Progress:
    """One line for each step, with its time."""

    def __init__(self) -> None:
        self.step, self.began = 0, time.monotonic()

    def __call__(self, text: str) -> None:
        self.step += 1
        print(f"[{self.step}/{STEPS} {time.monotonic() - self.began:4.0f} s] {text}", flush=True)


STACKS = {
    "embedded": "SYNs are logged, collected, shown",
    "elastic": "SYNs are logged, go through Logstash to Elasticsearch, are shown by Kibana",
}


def with_docker(release: str | None, stack: str = "embedded", **settings: str) -> Shown:
    """The demo in a box; `settings` are more environment variables for `fab`. Raises BoxError."""
    progress, fab = Progress(), functools.partial(run_fab, KNOCKMAP_STACK=stack, **settings)
    if NAME in machine.boxes():
        machine.find(NAME)  # which says what to do where it does not run
        progress(f"The VPS {NAME} is there already")
    else:
        progress("A fresh VPS in Docker; the first time its system is made, which takes a minute")
        machine.up(NAME, release, say=lambda text: print(f"         {text}", flush=True))
    progress(f"fab deploy: sshd moves and is hardened, {STACKS[stack]}, with TLS and a login")
    fab("deploy")
    lines, folder = PASTS[stack]
    progress(f"A past of {PAST_HOURS} hours: {lines} made-up log lines, which come to the map as others do")
    bring_past(lines, folder)
    if machine.find(NAME).kernel_log:
        progress("Real SYNs from addresses all over the world, through the VPS's own netfilter")
        attack(machine.find(NAME), sources=80, count=240, rate=80)
        keep_attacking()
    else:
        progress(f"No live SYNs, the past alone. {kernel.WITHHELD}")
    progress("Who may see the page")
    found = json.loads(fab("credentials", "--json"))
    user = found["users"][0]
    return Shown(found["url"], user["user"], user["password"], found["fingerprint"] or "")


def run_fab(*words: str, **settings: str) -> str:
    """Output of `fab` on the demo's box, which is shown only where it failed."""
    # What is set for the operator's own servers is nothing to the demo, but for where packages and data come from.
    others = {name: value for name, value in os.environ.items() if not name.startswith("KNOCKMAP_")}
    sources = {name: value for name, value in os.environ.items() if name.startswith(SOURCES)}
    environment = {**others, **sources, "BOX_ALONE": "1", **settings}
    command = [str(Path(sys.executable).parent / "fab"), "-S", str(state.SSH_CONFIG), "-H", NAME, *words]
    done = subprocess.run(
        command, cwd=state.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BoxError(f"fab {words[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def bring_past(lines: int, folder: str) -> None:
    """As one more file of log lines, where the stack finds it by itself; once only."""
    box = machine.find(NAME)
    name = "iptables.log.past" if folder == "/var/log" else "past.log"
    if box.run(["test", "-e", f"{folder}/{name}"])[0] == 0:
        return
    now = int(time.time())
    box.add_log(name, history.lines(now - PAST_HOURS * 3600, now, lines, NAME), folder)


def keep_attacking() -> None:
    """SYNs go on beside us, and end by themselves: after MINUTES, or with the box."""
    argv = [sys.executable, "-m", "box.demo", "attack"]
    environment = {**os.environ, "PYTHONPATH": str(state.ROOT / "docker")}
    with (state.FOLDER / f"{NAME}-attack.log").open("w") as log:
        subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def attack_on() -> None:
    """One at a time, however often the demo is started."""
    with state.lock(f"{NAME}-attack.lock"):
        until = time.monotonic() + MINUTES * 60
        while time.monotonic() < until and NAME in machine.boxes():
            try:
                attack(machine.find(NAME), sources=200, count=RATE * 20, rate=RATE)
            except BoxError as error:  # it is being restarted, or removed; then the loop ends
                print(error, flush=True)
                time.sleep(5)


# --- without Docker -------------------------------------------------------------------------------------------------


def local() -> Shown:
    """Collector and dashboard of this checkout on loopback, by this user. Raises BoxError."""
    progress = Progress()
    stop_local()
    FOLDER.mkdir(parents=True, exist_ok=True)
    progress("GeoIP data, so that addresses have a country")
    geo = geo_folder()
    progress(f"A log of {PAST_HOURS} hours: {PAST_LINES} made-up lines")
    now = int(time.time())
    log = FOLDER / "iptables.log"
    log.write_bytes(b"".join(history.lines(now - PAST_HOURS * 3600, now, PAST_LINES, "local")))
    progress("The real collector reads it")
    files, port = state.ROOT / "files", free_port()
    db = ("--db", str(FOLDER / "knockmap.db"), "--log", str(log))
    started = [spawn(files / "collector" / "collector.py", *db, "--geo", str(geo))]
    progress("The real dashboard shows it")
    started.append(spawn(files / "dashboard" / "dashboard.py", *db, "--port", str(port)))
    progress("Made-up lines go on: no packet is behind them")
    started.append(spawn(Path(__file__), "write", str(log)))
    PIDS.write_text(json.dumps(started))
    wait_for(port)
    return Shown(f"http://127.0.0.1:{port}/map/")


def geo_folder() -> Path:
    """The cached free data under names that the collector looks for; an empty folder where they cannot be had."""
    from fabfile import geo
    from fabfile.engine.errors import UsageError

    folder = FOLDER / "geo"
    folder.mkdir(exist_ok=True)
    try:
        for path in geo.fetch():
            link = folder / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    except UsageError as error:
        print(f"         no countries: {error}")
    return folder


def spawn(program: Path, *words: str) -> int:
    paths = [str(state.ROOT / name) for name in ("files/collector", "files/dashboard", "docker")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    argv = [sys.executable, str(program), *words]
    if program == Path(__file__):
        argv = [sys.executable, "-m", "box.demo", *words]
    with (FOLDER / f"{program.stem}.log").open("w") as log:
        process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    return process.pid


def free_port() -> int:
    for port in range(8722, 8742):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise BoxError("the ports 8722 to 8741 are all taken on this machine")


def wait_for(port: int, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise BoxError(f"the dashboard does not answer; see {FOLDER}/dashboard.log and {FOLDER}/collector.log")


def write_on(path: str) -> None:
    """Append lines as if scanners went on, for MINUTES."""
    until = time.monotonic() + MINUTES * 60
    while time.monotonic() < until:
        now = int(time.time())
        with open(path, "ab") as file:
            file.writelines(history.lines(now - 1, now + 1, RATE, "local", seed=now))
        time.sleep(1)


def stop_local() -> bool:
    """End what an earlier `--local` left running; True if there was something."""
    try:
        pids = json.loads(PIDS.read_text())
    except FileNotFoundError:
        return False
    for pid in pids:
        if is_ours(pid):
            os.kill(pid, signal.SIGTERM)
    PIDS.unlink()
    for path in FOLDER.glob("knockmap.db*"):
        path.unlink()
    return True


def is_ours(pid: int) -> bool:
    """A pid may be another process's by now."""
    shown = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return f"{FOLDER}/" in shown.stdout


# --- both -----------------------------------------------------------------------------------------------------------


def remove() -> list[str]:
    """Whatever of the demo is there; gives what was removed."""
    removed = ["the local demo"] if stop_local() else []
    shutil.rmtree(FOLDER, ignore_errors=True)
    (state.FOLDER / f"{NAME}-attack.log").unlink(missing_ok=True)
    with contextlib.suppress(BoxError):  # no engine, no box
        removed += machine.down(NAME)  # also what is left of one without its container
    return removed


def browse(shown: Shown) -> bool:
    """Open the page where there is a screen."""
    screen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(screen) and webbrowser.open(shown.url)


def last_lines(shown: Shown) -> str:
    lines = [f"URL       {shown.url}"]
    if shown.user:
        lines += [f"User      {shown.user}", f"Password  {shown.password}"]
    return "\n".join(lines)


def main(words: list[str]) -> Any:
    return attack_on() if words == ["attack"] else write_on(words[1])


if __name__ == "__main__":
    main(sys.argv[1:])
