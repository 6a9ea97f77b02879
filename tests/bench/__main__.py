"""`invoke bench`: one end state, three tools, the same boxes; and the collector. Writes results.md.

All tools take turns in each round, so that what else the machine does hits all alike. Ratios count, not seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from box import Box, down, up

from fabfile import geo
from tests.bench import collector, rivals
from tests.bench.proxy import delayed
from tests.bench.test_end_state import RESOURCES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
ROUNDS = 3
QUICK = ("ssh true", "fab noop", "knockmap")  # three times in a round: some milliseconds count
LOCKS = ("ansible", "pyinfra")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knockmap" / "bench"
ENVIRONMENT = {
    **os.environ,
    "KNOCKMAP_STACK": "embedded",
    "KNOCKMAP_GEO_SOURCE": "none",
    "PYTHONPATH": f"{ROOT}:{ROOT}/docker",
    "ANSIBLE_LOCALHOST_WARNING": "False",
}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)


@dataclass(frozen=True)
class Way:
    """How to reach a box: by its own port, or through the delaying proxy."""

    box: Box
    folder: Path
    host: str
    port: int

    @property
    def ssh_config(self) -> str:
        return str(self.folder / f"ssh_config-{self.port}")

    def write(self) -> None:
        """ssh_config, ansible.cfg and inventories for this way. Host keys are verified as those of the box."""
        known = self.folder / f"known_hosts-{self.port}"
        lines = (self.box.ssh_config.parent / "known_hosts").read_text().splitlines()
        keys = [line.split(" ", 1)[1] for line in lines if line.startswith(f"{self.box.address} ")]
        name = self.host if self.port == 22 else f"[{self.host}]:{self.port}"
        known.write_text("".join(f"{name} {key}\n" for key in keys))
        key = self.box.ssh_config.parent / "id_ed25519"
        Path(self.ssh_config).write_text(
            f"Host bench\n  HostName {self.host}\n  Port {self.port}\n  User root\n  IdentityFile {key}\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n"
        )
        (self.folder / f"ansible-{self.port}.cfg").write_text(
            "[defaults]\ninterpreter_python = /usr/bin/python3\nhost_key_checking = True\n"
            "[ssh_connection]\npipelining = True\n"
            # Ansible names its control socket by the host alone: in one folder, a way would take the other's connection.
            f"control_path_dir = {self.folder}/cp-{self.port}\n"
            f"ssh_args = -F {self.ssh_config} -o ControlMaster=auto -o ControlPersist=60s\n"
        )
        (self.folder / f"inventory_{self.port}.py").write_text(
            f"hosts = [('bench', {{'ssh_hostname': {self.host!r}, 'ssh_port': {self.port}, 'ssh_user': 'root', "
            f"'ssh_key': {str(key)!r}, 'ssh_known_hosts_file': {str(known)!r}, 'ssh_strict_host_key_checking': 'yes'}})]\n"
        )


Command = Callable[[Way], list[str]]


def fab(task: str) -> Command:
    return lambda way: [
        *(
            f"{BIN}/fab",
            "-r",
            str(HERE),
            "-c",
            "bench_tasks",
            "-S",
            way.ssh_config,
            "-H",
            f"bench:{way.port}",
            task,
        )
    ]


def commands(venvs: Path, folder: Path) -> dict[str, Command]:
    """Name → the command line that brings a box to the end state, or that only logs in."""
    return {
        "ssh true": lambda way: ["ssh", "-F", way.ssh_config, "bench", "true"],
        "fab noop": fab("noop"),
        "knockmap": fab("sensor"),
        "Ansible": lambda way: [
            f"{venvs}/ansible/bin/ansible-playbook",
            "-i",
            "bench,",
            f"{folder}/playbook.yml",
        ],
        "pyinfra": lambda way: [
            f"{venvs}/pyinfra/bin/pyinfra",
            "-y",
            f"{way.folder}/inventory_{way.port}.py",  # one that is not there is no error to it
            f"{folder}/deploy.py",
        ],
    }


def venvs() -> Path:
    """Ansible and pyinfra, each in a venv of its own from its lock file."""
    folder = CACHE
    for name in LOCKS:
        lock, stamp = HERE / f"{name}.lock", folder / name / "stamp"
        if stamp.exists() and stamp.read_text() == lock.read_text():
            continue
        print(f"installing {name} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)
        pip = [f"{folder}/{name}/bin/pip", "install", "-q", "--require-hashes", "-r", str(lock)]
        subprocess.run(pip, check=True)
        stamp.write_text(lock.read_text())
    return folder


def timed(argv: list[str], way: Way) -> float:
    """Seconds of one run. Ends the benchmark where a tool fails: its time would say nothing."""
    environment = {**ENVIRONMENT, "ANSIBLE_CONFIG": f"{way.folder}/ansible-{way.port}.cfg"}
    started = time.perf_counter()
    done = subprocess.run(argv, env=environment, cwd=way.folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds


def end_state(box: Box) -> None:
    argv = [
        f"{BIN}/pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--hosts=docker://{box.container}",
        str(HERE / "test_end_state.py"),
    ]
    done = subprocess.run(argv, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{box.name} is not in the end state, so nothing is compared:\n{done.stdout[-3000:]}"
        )
    print(f"  {box.name}: {done.stdout.strip().splitlines()[-1]}", flush=True)


def compare(folder: Path) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """Seconds: fresh by tool, and converged by added milliseconds and command (medians)."""
    all_commands = commands(venvs(), folder)
    contents = rivals.write_contents(RESOURCES, folder)
    (folder / "playbook.yml").write_text(rivals.playbook(RESOURCES, contents))
    (folder / "deploy.py").write_text(rivals.deploy_file(RESOURCES, contents))
    fresh, boxes = {}, {}
    try:
        for tool in ("knockmap", "Ansible", "pyinfra"):
            box = boxes[tool] = up(name=f"bench-{tool.lower()}", release="trixie")
            way = way_to(box, folder, 0, contextlib.ExitStack())
            print(f"fresh: {tool}", flush=True)
            fresh[tool] = timed(all_commands[tool](way), way)
            end_state(box)
        converged = {ms: rounds(all_commands, boxes, folder, ms) for ms in (0, 50)}
        for box in boxes.values():
            end_state(box)
    finally:
        for box in boxes.values():
            down(box.name)
    return fresh, converged


def rounds(
    all_commands: dict[str, Command], boxes: dict[str, Box], folder: Path, milliseconds: int
) -> dict[str, float]:
    print(f"converged, {milliseconds} ms added to a round trip: {ROUNDS} rounds", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in all_commands}
    with contextlib.ExitStack() as stack:
        # One proxy per box for all rounds, so that Ansible may keep its connection from run to run, as it does.
        ways = {tool: way_to(box, folder, milliseconds, stack) for tool, box in boxes.items()}
        warm_up = 0 if milliseconds else 1
        for number in range(warm_up + ROUNDS):
            for name in [*all_commands, *QUICK, *QUICK]:
                way = ways.get(name, ways["knockmap"])
                taken = timed(all_commands[name](way), way)
                if number >= warm_up:
                    seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def way_to(box: Box, folder: Path, milliseconds: int, stack: contextlib.ExitStack) -> Way:
    """The box itself where nothing is added, else by a proxy that lives as long as `stack`."""
    way = Way(box, folder / box.name, box.address, 22)
    if milliseconds:
        port = stack.enter_context(delayed(box.address, 22, milliseconds / 1000))
        way = Way(box, folder / box.name, "127.0.0.1", port)
    way.folder.mkdir(exist_ok=True)
    way.write()
    return way


def versions() -> str:
    """The pinned versions, as the lock files say."""
    pins = [
        line.split()[0]
        for n in LOCKS
        for line in (HERE / f"{n}.lock").read_text().splitlines()
        if "==" in line
    ]
    names = ("ansible-core", "pyinfra")
    return ", ".join(pin.replace("==", " ") for pin in pins if pin.split("==")[0] in names)


def markdown(
    fresh: dict[str, float], converged: dict[int, dict[str, float]], measured: dict[str, float]
) -> str:
    count = len(RESOURCES)
    lines = [
        f"Measured on {date.today().isoformat()} by `invoke bench`: {os.cpu_count()} cores, {platform.machine()}, Linux "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}; boxes (Debian 13) in Docker on the same machine.",
        "",
        f"One end state of {count} resources (iptables_log, syslog_route and collector without GeoIP files), from one list for "
        "all tools, each on a box of its own; one testinfra suite passed on all three boxes, after the fresh run and at the end. "
        f"{versions()}.",
        "",
        "Fresh: one run on a new box, packages fetched through the same mirror. Converged: medians of "
        f"{ROUNDS} runs, {3 * ROUNDS} of the quick ones (the very first round, which warms up, is left out), all commands in turn; in brackets the ratio to `ssh box true`. The added round "
        "trip is that of a delaying TCP proxy before port 22. Ansible: pipelining, no facts gathered, its SSH connection kept "
        "from run to run (ControlPersist), which knockmap and pyinfra do not have. `fab noop` logs in and runs `true`.",
        "",
        "| | fresh box | converged, 0 ms added | converged, 50 ms added |",
        "|---|---:|---:|---:|",
    ]
    for name in ("ssh true", "fab noop", "knockmap", "pyinfra", "Ansible"):
        cells = [f"{fresh[name]:.1f} s" if name in fresh else ""]
        cells += [f"{row[name]:.2f} s ({row[name] / row['ssh true']:.1f}×)" for row in converged.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for ms, row in converged.items():
        ratios = ", ".join(f"{name} {row[name] / row['knockmap']:.1f}×" for name in ("Ansible", "pyinfra"))
        noop = row["knockmap"] / row["fab noop"]
        lines += [
            "",
            f"At {ms} ms: {ratios} the time of knockmap; knockmap {noop:.2f}× that of a `fab noop`.",
        ]
    return "\n".join(lines) + "\n\n" + collector_table(measured)


HEAD = "| collector, one process, the best of three runs | |"


def collector_table(measured: dict[str, float]) -> str:
    lines = [
        HEAD,
        "|---|---:|",
        f"| lines per second | {measured['lines_per_second']:,.0f} |",
        f"| lines per second of CPU time | {measured['lines_per_cpu_second']:,.0f} |",
        f"| peak resident memory | {measured['peak_rss_mb']} MB |",
        f"| database bytes per line (log: {measured['log_bytes_per_line']}) | {measured['bytes_per_line']} |",
    ]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One benchmark at a time on this machine: two would measure each other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                "bench: another benchmark runs on this machine; start it again afterwards"
            ) from None
        yield


def main() -> None:
    with alone():
        run()


def best_collector() -> dict[str, float]:
    """Of three runs: the others tell what else the machine did."""
    files = geo.fetch()
    runs = []
    for _ in range(3):
        runs.append(measured_with(files))
    return max(runs, key=lambda run: run["lines_per_cpu_second"])


def measured_with(files: list[Path]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        databases = Path(folder) / "geo"
        databases.mkdir()
        for path in files:
            (databases / path.name).symlink_to(path)
        print("collector", flush=True)
        return collector.measure(Path(folder), databases)


def run() -> None:
    measured = best_collector()
    if "--collector" in sys.argv:  # this part of an earlier run anew
        former = (HERE / "results.md").read_text()
        (HERE / "results.md").write_text(
            former[: former.index("| collector, one process")] + collector_table(measured)
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        fresh, converged = compare(Path(folder))
    text = markdown(fresh, converged, measured)
    (HERE / "results.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
