"""The boxes themselves: as fresh as from a provider, apart from each other, and gone without a trace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from box import Box, BoxError, attack, boxes, down, kernel, up
from box.machine import made_here

import docker
from tests.container.login import login

ROOT = Path(__file__).parents[2]


def test_a_box_is_as_fresh_as_from_a_provider(box: Box) -> None:
    from_ubuntu = box.release in ("noble", "jammy")  # whose server images have a syslog daemon and rules
    for program in ("rsyslogd", "iptables", "logrotate"):
        assert (box.run(["which", program])[0] == 0) is from_ubuntu, program
    assert box.run(["which", "syslog-ng"])[0] == 1
    assert "PasswordAuthentication yes" in box.run(["cat", "/etc/ssh/sshd_config.d/50-cloud-init.conf"])[1]
    assert box.run(["systemctl", "is-system-running"])[1].strip() == "running"


def test_root_and_a_sudo_user_log_in_by_key(box: Box) -> None:
    assert login(box, 22) and login(box, 22, "op")
    assert not login(box, 22, "pw")


def test_no_box_is_privileged(box: Box) -> None:
    shown = docker.from_env().containers.get(box.container).attrs["HostConfig"]
    capabilities = {name.removeprefix("CAP_") for name in shown["CapAdd"]}
    assert shown["Privileged"] is False and capabilities == {"SYS_ADMIN", "NET_ADMIN", "SYSLOG"}


def test_every_port_is_the_boxs_own_under_its_real_number(box: Box) -> None:
    serve = "import socket, time; s = socket.create_server(('', {})); s.accept()[0].sendall(b'box'); time.sleep(1)"
    for port in (2022, 2222, 80, 443):
        box.run(["systemd-run", "-q", "python3", "-c", serve.format(port)])
        assert within(5, lambda port=port: answer(box, port) == b"box"), port


def answer(box: Box, port: int) -> bytes:
    """What a program on this port of the box sends first; nothing if there is none."""
    try:
        with socket.create_connection((box.address, port), timeout=2) as connection:
            return connection.recv(3)
    except OSError:
        return b""


def within(seconds: float, seen: Callable[[], bool]) -> bool:
    """True as soon as `seen` says so, False if it never does in `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := seen()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_a_box_is_reached_at_an_address_of_its_own_where_its_ports_are_taken(
    new_box: Callable[..., Box], release: str
) -> None:
    direct = new_box(release, direct=True)
    assert not direct.address.startswith("127.") and login(direct, 22)
    assert attack(direct, sources=4, count=8, rate=100).leaked == 0


def test_boxes_made_at_once_take_addresses_of_their_own(new_box: Callable[..., Box], release: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(new_box, [release, release])
    assert one.address != two.address
    assert login(one, 22) and login(two, 22)


def test_a_reboot_keeps_address_host_keys_and_kernel_log(fresh_box: Box) -> None:
    fresh_box.restart()
    assert login(fresh_box, 22)
    log_syns(fresh_box)
    attack(fresh_box, sources=4, count=20, rate=100)
    assert logged(fresh_box) == 20 and fresh_box.overruns() == 0


def test_two_boxes_have_keys_and_names_of_their_own(
    new_box: Callable[..., Box], box: Box, release: str
) -> None:
    other = new_box(release)
    assert other.address != box.address
    for path in ("/etc/ssh/ssh_host_ed25519_key.pub", "/etc/machine-id"):
        assert other.run(["cat", path]) != box.run(["cat", path])


def log_syns(box: Box) -> None:
    if not box.kernel_log:
        pytest.fail(
            "this host's kernel keeps LOG lines of containers to itself: nothing about lines can be proven here"
        )
    rule = "-I INPUT -p tcp --dport 22 --syn -j LOG --log-prefix 'knockmap '"
    script = f"apt-get install -qq -y iptables rsyslog >/dev/null; iptables {rule}; ip6tables {rule}"
    assert box.run(["sh", "-c", script])[0] == 0


def logged(box: Box) -> int:
    return int(box.run(["sh", "-c", "sleep 1; grep -c IN=syn0 /var/log/kern.log"])[1])


def test_each_box_gets_its_own_kernel_lines_and_no_others(new_box: Callable[..., Box], release: str) -> None:
    one, two = new_box(release), new_box(release)
    log_syns(one)
    log_syns(two)
    first, second = attack(one, sources=20, count=300, rate=500), attack(two, sources=20, count=200, rate=500)
    assert (first.v4 + first.v6, second.v4 + second.v6) == (300, 200)
    assert (logged(one), logged(two)) == (300, 200)
    assert (one.overruns(), two.overruns()) == (0, 0)
    counters = one.run(["sh", "-c", "iptables -S -v; ip6tables -S -v"])[1]
    assert f"-c {first.v4} " in counters and f"-c {first.v6} " in counters


def test_replies_go_back_where_they_came_from(box: Box) -> None:
    assert attack(box, sources=10, count=100, rate=200).leaked == 0
    assert "syn0" not in box.run(["ip", "link"])[1]
    assert box.run(["ip", "route", "show", "dev", "eth0"])[1].count("\n") == 2


@pytest.mark.parametrize(
    ("sources", "count", "rate"), [(10, 200_000, 100_000), (10, 1000, 1), (1, 10, 10), (5000, 10, 10)]
)
def test_an_attack_is_bounded(box: Box, sources: int, count: int, rate: int) -> None:
    with pytest.raises(BoxError):
        attack(box, sources, count, rate)


@pytest.mark.parametrize("name", ["Bad Name", "", "-x", "a.b", "a" * 42])
def test_a_name_that_can_be_none_is_refused_in_words(name: str) -> None:
    with pytest.raises(BoxError, match="is no name for a box"):
        up(name=name)


def test_an_attack_that_was_killed_is_cleaned_up_by_the_next(box: Box) -> None:
    argv = [
        sys.executable,
        "-m",
        "invoke",
        "box.attack",
        "--name",
        box.name,
        "--count",
        "3000",
        "--rate",
        "100",
    ]
    killed = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert within(10, lambda: "syn0" in box.run(["ip", "link"])[1])
    killed.kill()
    killed.wait()
    assert "syn0" in box.run(["ip", "link"])[1]
    done = attack(box, sources=4, count=10, rate=100)
    assert sum(done.countries.values()) == sum(done.by_source.values()) == 10
    assert "syn0" not in box.run(["ip", "link"])[1]


def left(name: str) -> list[object]:
    """What Docker has of a box."""
    engine, mine = docker.from_env(), {"label": f"knockmap.box={name}"}
    return [
        *engine.containers.list(all=True, filters=mine, ignore_removed=True),
        *engine.volumes.list(filters=mine),
    ]


def test_down_leaves_nothing(new_box: Callable[..., Box], release: str) -> None:
    other = new_box(release)
    attack(other, sources=10, count=10, rate=100)
    down(other.name)
    assert other.name not in boxes() and left(other.name) == []
    assert other.name not in other.ssh_config.read_text()


def test_down_also_removes_what_a_crash_left(new_box: Callable[..., Box], release: str) -> None:
    other = new_box(release)
    docker.from_env().containers.get(other.container).remove(force=True)
    assert other.name in made_here() and len(left(other.name)) == 2
    down(other.name)
    assert other.name not in made_here() and left(other.name) == []


def test_the_kernel_is_put_back_as_it_was_before_the_first_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysctl, engine = tmp_path / "nf_log_all_netns", docker.from_env()
    sysctl.write_text("0\n")
    monkeypatch.setattr(kernel, "SYSCTL", sysctl)  # the real one belongs to the boxes of other tests, too
    monkeypatch.setattr(kernel, "RECORD", f"knockmap-kernel-test-{os.getpid()}")
    assert kernel.open_log(engine, "unused") and kernel.open_log(engine, "unused")
    assert sysctl.read_text() == "1"
    kernel.close_log(engine, "unused")
    assert sysctl.read_text() == "0"
    sysctl.write_text("1")  # somebody else's wish is not ours to put back
    assert kernel.open_log(engine, "unused")
    kernel.close_log(engine, "unused")
    assert sysctl.read_text() == "1"
