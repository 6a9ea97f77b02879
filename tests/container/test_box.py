"""The boxes themselves: as fresh as from a provider, apart from each other, and gone without a trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from box import Box, BoxError, attack, boxes, down
from box.kernel import SYSCTL

import docker
from tests.container.login import login


def test_a_box_is_as_fresh_as_from_a_provider(box: Box) -> None:
    for program in ("rsyslogd", "iptables", "nft", "logrotate", "syslog-ng"):
        assert box.run(["which", program])[0] == 1
    assert "PasswordAuthentication yes" in box.run(["cat", "/etc/ssh/sshd_config.d/50-cloud-init.conf"])[1]
    assert box.run(["systemctl", "is-system-running"])[1].strip() == "running"


def test_root_and_a_sudo_user_log_in_by_key(box: Box) -> None:
    assert login(box, 22) and login(box, 22, "op")
    assert not login(box, 22, "pw")


def test_no_box_is_privileged(box: Box) -> None:
    shown = docker.from_env().containers.get(box.container).attrs["HostConfig"]
    assert shown["Privileged"] is False and "SYS_ADMIN" in " ".join(shown["CapAdd"])


def test_two_boxes_have_keys_and_names_of_their_own(
    new_box: Callable[..., Box], box: Box, release: str
) -> None:
    other = new_box(release)
    assert other.address != box.address
    for path in ("/etc/ssh/ssh_host_ed25519_key.pub", "/etc/machine-id"):
        assert other.run(["cat", path]) != box.run(["cat", path])


def log_syns(box: Box) -> None:
    rule = "-I INPUT -p tcp --dport 22 --syn -j LOG --log-prefix 'knockmap '"
    script = f"apt-get install -qq -y iptables rsyslog >/dev/null; iptables {rule}; ip6tables {rule}"
    assert box.run(["sh", "-c", script])[0] == 0


def logged(box: Box) -> int:
    return int(box.run(["sh", "-c", "sleep 1; grep -c IN=syn0 /var/log/kern.log"])[1])


def test_each_box_gets_its_own_kernel_lines_and_no_others(new_box: Callable[..., Box], release: str) -> None:
    one, two = new_box(release), new_box(release)
    if not one.kernel_log:
        pytest.fail(
            "this host's kernel keeps LOG lines of containers to itself: nothing about lines can be proven here"
        )
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


def test_down_leaves_nothing(new_box: Callable[..., Box], release: str) -> None:
    other = new_box(release)
    attack(other, sources=10, count=10, rate=100)
    assert SYSCTL.read_text().strip() == "1"
    down(other.name)
    assert other.name not in boxes()
    engine, mine = docker.from_env(), {"label": f"knockmap.box={other.name}"}
    assert engine.containers.list(all=True, filters=mine) == [] and engine.volumes.list(filters=mine) == []
    assert other.name not in other.ssh_config.read_text()
