"""The way to the target and back on real boxes: Python, sudo, jump hosts, host keys, ports, and every way to break off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Box
from fabric import Config
from paramiko import SSHConfig

from fabfile.engine import root_channel, transport
from fabfile.engine.connection import VerifiedConnection
from fabfile.engine.converge import converge
from fabfile.engine.errors import ConnectionLostError, HostKeyError, SudoError, UnreachableError
from fabfile.engine.report import Report
from fabfile.engine.resources import File, Package, Resource
from fabfile.settings import Settings
from tests.container.conftest import NewBox
from tests.container.login import new_password

ROOT = Path(__file__).parents[2]
SMALL = File("/etc/engine-small", text="here\n")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def connection(
    box: Box, user: str | None = None, ssh_config: str = "", host: str = "", **overrides: Any
) -> VerifiedConnection:
    """To a box as its ssh_config says; `ssh_config` comes first, so it wins."""
    text = ssh_config + "\n" + box.ssh_config.read_text()
    config = Config(ssh_config=SSHConfig.from_text(text), overrides=overrides)
    return VerifiedConnection(host or box.name, user=user, config=config, settings=Settings())


def apply(c: VerifiedConnection, *resources: Resource, check: bool = False, on_event: Any = None) -> Report:
    with c:
        return converge(c, {"engine": resources}, check=check, on_event=on_event or (lambda event: None))


def reads(box: Box, path: str) -> str:
    return box.run(["sh", "-c", f"cat {path} 2>/dev/null || true"])[1]


def key_of(box: Box, kind: str) -> str:
    return " ".join(box.run(["cat", f"/etc/ssh/ssh_host_{kind}_key.pub"])[1].split()[:2])


# --- Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["bare", "minimal"])
def test_a_target_without_usable_python_gets_it_first(new_box: NewBox, release: str, variant: str) -> None:
    box = new_box(release, variant=variant)
    before = box.run(["dpkg-query", "-W"])
    wanted = apply(connection(box), SMALL, check=True)
    assert [(r.id, r.status) for r in wanted.results] == [("package:python3", "changed")]
    assert "cannot be looked at" in wanted.notices[0]
    assert box.run(["dpkg-query", "-W"]) == before
    done = apply(connection(box), SMALL)
    assert [(r.id, r.status) for r in done.results] == [
        ("package:python3", "changed"),
        ("file:/etc/engine-small", "changed"),
    ]
    assert reads(box, "/etc/engine-small") == "here\n"
    assert not apply(connection(box), SMALL).changed


def test_a_connection_that_breaks_while_python_is_installed_leaves_dpkg_whole(
    new_box: NewBox, release: str
) -> None:
    box = new_box(release, variant="bare")
    c = connection(box)

    def cut(event: dict[str, Any]) -> None:
        if "npacking" in event.get("text", ""):
            c.transport.close()

    with pytest.raises(ConnectionLostError, match="during package:python3"):
        apply(c, SMALL, on_event=cut)
    assert wait_for(lambda: box.run(["pgrep", "-f", "apt-get"])[0] == 1, 60)
    assert box.run(["dpkg", "--audit"]) == (0, "")
    assert box.run(["python3", "-c", "import json, tempfile"])[0] == 0
    assert [r.status for r in apply(connection(box), SMALL).results] == ["changed"]


def test_a_package_that_would_remove_another_is_refused_with_its_name(box: Box) -> None:
    report = apply(connection(box), Package("systemd-cron"))
    assert not report.ok
    assert "would remove cron, so nothing was installed" in " ".join(r.message for r in report.results)
    assert box.run(["dpkg-query", "-W", "cron"])[0] == 0


# --- root --------------------------------------------------------------------------------------------------------


def test_passwordless_sudo_makes_root(box: Box) -> None:
    with connection(box, "op") as c:
        assert transport.ask(c, ("id", "-u")) == (0, b"0\n", b"")
    assert apply(connection(box, "op"), SMALL).ok


@pytest.fixture(scope="module")
def login(box: Box) -> dict[str, Any]:
    return {"password": new_password(box), "look_for_keys": False, "allow_agent": False}


def test_sudo_with_a_password_makes_root(box: Box, login: dict[str, Any]) -> None:
    c = connection(box, "pw", connect_kwargs=login, sudo={"password": login["password"]})
    with c:
        assert transport.ask(c, ("sh", "-c", "id -u; cat"), b"stdin") == (0, b"0\nstdin", b"")
    assert apply(c, SMALL).ok


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_missing_or_wrong_password_names_the_flag(
    box: Box, login: dict[str, Any], password: str | None
) -> None:
    c = connection(box, "pw", connect_kwargs=login, sudo={"password": password})
    with c, pytest.raises(SudoError, match="--prompt-for-sudo-password"):
        transport.ask(c, ("true",))


def test_the_password_is_in_no_argument_and_no_log(box: Box, login: dict[str, Any]) -> None:
    password = login["password"]
    with connection(box, "pw", connect_kwargs=login, sudo={"password": password}) as c:
        _, out, _ = transport.ask(c, ("sh", "-c", "ps -eo args; cat /proc/[0-9]*/environ | tr '\\0' '\\n'"))
        _, log, _ = transport.ask(c, ("journalctl", "--no-pager"))
    assert b"sudo" in out and b"sudo" in log
    assert password.encode() not in out + log


# --- who answers, and where --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_whichever_key_is_known_is_asked_for(box: Box, home: Path, kind: str) -> None:
    (home / "known").write_text(f"{box.address} {key_of(box, kind)}\n")
    with connection(box, ssh_config=f"Host *\n  UserKnownHostsFile {home}/known") as c:
        c.open()
        assert c.host_key is not None and kind in c.host_key.type


def test_an_unknown_host_and_a_changed_key_are_refused(box: Box, home: Path) -> None:
    config = f"Host *\n  UserKnownHostsFile {home}/known"
    with pytest.raises(HostKeyError, match="is unknown"):
        connection(box, ssh_config=config).open()
    (home / "known").write_text(f"{box.address} {key_of(box, 'ed25519')[:-4]}AAAA\n")
    with pytest.raises(HostKeyError, match="not the known one"):
        connection(box, ssh_config=config).open()


def test_through_a_jump_host_to_a_machine_that_only_it_sees(box: Box, new_box: NewBox, release: str) -> None:
    inner = new_box(release)
    address = inner.run(["hostname", "-I"])[1].split()[0]
    config = (
        f"Host inner\n  HostName {address}\n  HostKeyAlias {inner.address}\n  ProxyJump {box.name}\n"
        f"  User root\n  IdentityFile {ROOT}/.box/id_ed25519\n  UserKnownHostsFile {ROOT}/.box/known_hosts"
    )
    with connection(box, ssh_config=config, host="inner") as c:
        assert transport.ask(c, ("hostname",))[1].decode().strip() == inner.name
        assert transport.server_port(c) == 22
    with pytest.raises(UnreachableError, match="the jump host could not connect"):
        connection(box, ssh_config=config, host="inner:2222").open()


def test_a_moved_port_is_found_by_the_key_alone(new_box: NewBox, release: str, home: Path) -> None:
    box = new_box(release)
    (home / "known").write_text(f"{box.address} {key_of(box, 'ed25519')}\n")
    box.run(
        ["sh", "-c", "echo Port 2222 > /etc/ssh/sshd_config.d/00-port.conf; systemctl restart ssh.service"]
    )
    with connection(box, ssh_config=f"Host *\n  UserKnownHostsFile {home}/known") as c:
        assert transport.server_port(c) == 2222


# --- breaking off ------------------------------------------------------------------------------------------------


def wait_for(fact: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := fact()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def fab(hosts: str, *words: str) -> subprocess.Popen[str]:
    command = [f"{Path(sys.executable).parent}/fab", "-r", "tests/container", "-c", "engine_tasks"]
    return subprocess.Popen(
        [*command, "-S", ".box/ssh_config", "-H", hosts, *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def slow_apt(box: Box) -> Iterator[Box]:
    """apt-get takes three seconds longer before dpkg starts, and three after."""
    hooks = 'DPkg::Pre-Invoke {"sleep 3";};\nDPkg::Post-Invoke {"sleep 3";};\n'
    box.run(
        [
            "sh",
            "-c",
            f"printf %s '{hooks}' > /etc/apt/apt.conf.d/99slow; apt-get -y purge hello; rm -f /etc/engine-*",
        ]
    )
    yield box
    box.run(["rm", "-f", "/etc/apt/apt.conf.d/99slow"])


def test_an_operator_killed_in_the_middle_of_apt_leaves_a_whole_target(slow_apt: Box) -> None:
    box = slow_apt
    operator = fab(box.name, "packages")
    assert wait_for(lambda: box.run(["pgrep", "-fx", "sleep 3"])[0] == 0, 30)
    operator.send_signal(signal.SIGKILL)
    operator.wait()
    # The package is finished, the next resource is not begun, and nobody of ours is left.
    assert wait_for(lambda: box.run(["pgrep", "-f", "apt-get|knockmap-agent"])[0] == 1, 60)
    assert box.run(["dpkg", "--audit"]) == (0, "")
    assert box.run(["hello"])[0] == 0
    assert reads(box, "/etc/engine-after") == ""
    again = fab(box.name, "packages")
    assert again.communicate(timeout=60)[0].splitlines()[-1] == "1 ok, 1 changed, 0 failed, 0 skipped"


def test_a_large_file_goes_on_from_where_it_broke_off(box: Box, home: Path) -> None:
    content = os.urandom(1 << 20) * 24
    (home / "large").write_bytes(content)
    large = File("/opt/engine-large", source=home / "large")
    c = connection(box)

    def cut(event: dict[str, Any]) -> None:
        if event.get("bytes", 0) >= 8 << 20:
            c.transport.close()

    with pytest.raises(ConnectionLostError, match="during file:/opt/engine-large"):
        apply(c, large, on_event=cut)
    assert reads(box, "/opt/engine-large") == ""
    events: list[dict[str, Any]] = []
    assert wait_for(lambda: box.run(["pgrep", "-f", "knockmap-agent"])[0] == 1, 20)
    assert apply(connection(box), large, on_event=events.append).ok
    offset = next(event["offset"] for event in events if event["event"] == "need")
    assert 0 < offset < len(content)
    assert int(box.run(["stat", "-c", "%s", "/opt/engine-large"])[1]) == len(content)


def test_a_machine_that_stops_answering_is_noticed(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_channel, "QUIET_SECONDS", 1.0)
    c = connection(box)
    c.open()
    subprocess.run(["docker", "pause", box.container], check=True, capture_output=True)
    try:
        with pytest.raises(ConnectionLostError):
            apply(c, SMALL)
    finally:
        subprocess.run(["docker", "unpause", box.container], check=True, capture_output=True)


def test_three_hosts_at_once_and_one_does_not_answer(box: Box, new_box: NewBox, release: str) -> None:
    other = new_box(release)
    done = fab(f"{box.name},127.0.22.250:22,{other.name}", "small")
    lines = done.communicate(timeout=60)[0].splitlines()
    assert done.returncode == 1
    assert lines[-1].startswith("127.0.22.250:22") and "no SSH server answers" in lines[-1]
    for name in (box.name, other.name):
        assert any(line.startswith(name) and line.endswith("0 failed, 0 skipped") for line in lines[-3:-1])
