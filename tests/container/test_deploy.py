"""Several hosts at once, and boxes that lack things: what an operator sees of deploy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from box import Box

from tests.container.conftest import ROOT, Fab
from tests.container.login import login

FabCommand = Callable[..., Fab]


def test_three_hosts_at_once_of_which_one_is_not_there(
    fab: FabCommand, new_box: Callable[..., Box], release: str
) -> None:
    one, two = new_box(release), new_box(release)
    done = fab(f"{one.name},nowhere.invalid,{two.name}", "deploy", "--limit", "3")
    assert done.rc == 1
    lines = {line.split()[0]: line for line in done.out.strip().splitlines()[-3:]}
    assert "0 failed" in lines[one.name] and "0 failed" in lines[two.name]
    assert "nowhere.invalid" in lines["nowhere.invalid"] and "failed" in lines["nowhere.invalid"]
    for box in (one, two):
        assert login(box, 2222) and not login(box, 22)
    again = fab(f"{one.name},{two.name}", "deploy")
    assert again.rc == 0 and again.out.count(" 0 changed, 0 failed, 0 skipped") >= 2


def test_a_box_without_python_gets_it_and_undo_takes_it_away(
    fab: FabCommand, new_box: Callable[..., Box], release: str
) -> None:
    bare = new_box(release, variant="bare")
    checked = fab(bare, "deploy", "--check")
    assert checked.rc == 0 and "would change package:python3" in checked.out
    assert bare.run(["which", "python3"])[0] == 1
    done = fab(bare, "deploy")
    assert done.rc == 0 and "package:python3" in done.out, done.out
    assert fab(bare, "deploy").last.endswith("0 changed, 0 failed, 0 skipped")
    assert fab(bare, "undo", "--packages", "--data").rc == 0
    assert bare.run(["which", "python3"])[0] == 1 and login(bare, 22)


def test_without_a_host_nothing_is_done_and_it_says_how_to_name_one(operator: dict[str, str]) -> None:
    program = f"{Path(sys.executable).parent}/fab"
    for task in ("deploy", "harden-ssh", "undo"):
        done = subprocess.run(
            [program, task], cwd=ROOT, env=operator, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and "-H" in done.stderr + done.stdout


def test_a_wrong_setting_is_refused_by_name_before_connecting(fab: FabCommand) -> None:
    refused = fab("nowhere.invalid", "deploy", KNOCKMAP_SSH_PORT="22")
    assert refused.rc == 2 and "ssh_port" in refused.out and "nowhere" not in refused.out
    for name, value in (("elastic_version", "nine"), ("elastic_packages", "/nowhere"), ("stack", "both")):
        refused = fab(
            "nowhere.invalid", "deploy", **{"KNOCKMAP_STACK": "elastic", f"KNOCKMAP_{name.upper()}": value}
        )
        assert refused.rc == 2 and name in refused.out and "nowhere.invalid" not in refused.out, refused.out


def test_a_full_disk_and_no_name_service_are_one_sentence_each_while_sshd_is_where_it_was(
    fab: FabCommand, new_box: Callable[..., Box], release: str
) -> None:
    """A wrong clock, which no container can have, is for the unit tests."""
    box = new_box(release)
    small = (
        "cp -a /etc /root/etc && mount -t tmpfs -o size=20m,mode=755 tmpfs /etc && cp -a /root/etc/. /etc/"
    )
    assert box.run(["sh", "-c", small])[0] == 0
    full = fab(box, "deploy")
    assert full.rc == 1 and "the disk of /etc has" in full.out and "nothing was touched" in full.out, full.out
    assert box.run(["umount", "-l", "/etc"])[0] == 0
    box.run(
        [
            "sh",
            "-c",
            "rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/*; cp /etc/resolv.conf /root/r; echo nameserver 127.0.0.9 >/etc/resolv.conf",
        ]
    )
    broken = fab(box, "deploy")
    assert broken.rc == 1 and "cannot resolve" in broken.out, broken.out
    for path in ("/etc/knockmap", "/usr/local/lib/knockmap"):
        assert box.run(["test", "-e", path])[0] == 1
    assert login(box, 22) and not login(box, 2222)
    box.run(["sh", "-c", "cat /root/r >/etc/resolv.conf"])
    assert fab(box, "iptables-log").rc == 0


def test_the_agent_stops_after_the_resource_at_hand_when_the_operator_dies(
    fab: FabCommand, new_box: Callable[..., Box], release: str, operator: dict[str, str]
) -> None:
    box = new_box(release)
    argv = [
        f"{Path(sys.executable).parent}/fab",
        "-S",
        str(box.ssh_config),
        "-H",
        box.name,
        "iptables-log",
        "--verbose",
    ]
    run = subprocess.Popen(
        argv, cwd=ROOT, env={**operator, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    run.stdout.readline()
    run.kill()
    run.wait()
    wait = "for i in $(seq 100); do pgrep -f '[p]ython3 -I -S' >/dev/null || exit 0; sleep .1; done; exit 1"
    assert box.run(["sh", "-c", wait])[0] == 0
    assert fab(box, "iptables-log").rc == 0
    document = json.loads(fab(box, "iptables-log", "--json").out)
    assert document["counts"]["changed"] == 0 and document["counts"]["failed"] == 0
    assert box.run(["sh", "-c", "find / -xdev -name '.knockmap-*'"])[1] == ""


def test_an_interrupted_dpkg_is_repaired_and_a_held_lock_waited_for(
    fab: FabCommand, new_box: Callable[..., Box], release: str
) -> None:
    box = new_box(release)
    unpack = "dpkg --unpack /var/cache/apt/archives/logrotate_*.deb"
    box.run(["sh", "-c", unpack])
    assert box.run(["dpkg", "--audit"])[1].strip()
    hold = "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(5)"
    box.run(["systemd-run", "-q", "python3", "-c", hold])
    done = fab(box, "syslog-route")
    assert done.rc == 0, done.out
    assert "waiting for apt's lock, held by process" in done.out
    assert "an interrupted dpkg was repaired" in done.out
