"""Nobody is locked out: whatever goes wrong in the middle, the old way in works again within the timer.

Seen by logins from outside over SSH. The timer is 10 or 20 s here; by default it is 5 min.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from box import Box

from tests.container.conftest import ROOT, Fab
from tests.container.login import SOCKET, login, within

FabCommand = Callable[..., Fab]
SECONDS = 10
STAGES = (
    "the way back is armed",
    "sshd also listens on 2222",
    "sshd is hardened",
    "port 22 is closed",
)


def start(box: Box, operator: dict[str, str], state: Path) -> subprocess.Popen[str]:
    """An operator's run that goes on by itself."""
    argv = [f"{Path(sys.executable).parent}/fab", "-S", str(box.ssh_config), "-H", box.name, "harden-ssh"]
    environment = {**operator, "KNOCKMAP_SSH_REVERT_SECONDS": str(SECONDS), "XDG_STATE_HOME": str(state)}
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_at(run: subprocess.Popen[str], text: str) -> None:
    """Kill the operator's process, with no chance to say goodbye, as soon as it prints `text`."""
    assert run.stdout is not None
    seen = []
    for line in run.stdout:
        seen.append(line)
        if text in line:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
            return
    raise AssertionError(f"never said {text!r}: {''.join(seen)}")


@pytest.mark.parametrize("stage", STAGES)
def test_an_operator_killed_after_any_stage_finds_the_old_port_again(
    box: Box, operator: dict[str, str], tmp_path: Path, stage: str
) -> None:
    kill_at(start(box, operator, tmp_path), stage)
    assert within(SECONDS + 15, box, 22)
    wait_until_reverted(box)
    assert within(10, box, 22) and not login(box, 2222)
    assert box.run(["ls", "/etc/ssh/sshd_config.d"])[1].split() == ["50-cloud-init.conf"]


def test_a_run_after_a_killed_one_is_not_told_that_all_is_well(
    fab: FabCommand, box: Box, operator: dict[str, str], tmp_path: Path
) -> None:
    """Nothing differs any more after the last stage; but the timer is about to take it back."""
    kill_at(start(box, operator, tmp_path), "port 22 is closed")
    again = fab(box, "harden-ssh")
    assert again.rc == 1 and "another move of the SSH port is under way" in again.out, again.out
    wait_until_reverted(box)
    assert within(10, box, 22) and not login(box, 2222)


def wait_until_reverted(box: Box) -> None:
    script = f"for i in $(seq {10 * (2 * SECONDS + 15)}); do test -e /var/lib/knockmap/ssh/armed.json || exit 0; sleep .1; done; exit 1"
    assert box.run(["sh", "-c", script])[0] == 0


def test_after_all_that_the_move_still_works_and_can_be_undone(fab: FabCommand, box: Box) -> None:
    assert fab(box, "harden-ssh").rc == 0
    assert login(box, 2222) and not login(box, 22)
    assert fab(box, "undo", "harden_ssh").rc == 0
    assert login(box, 22) and not login(box, 2222)


def test_a_reboot_in_the_middle_ends_on_the_old_port(
    box: Box, operator: dict[str, str], tmp_path: Path
) -> None:
    kill_at(start(box, operator, tmp_path), "port 22 is closed")
    box.restart()
    assert within(SECONDS + 15, box, 22)
    wait_until_reverted(box)
    assert within(10, box, 22) and not login(box, 2222)


def test_an_operator_killed_in_the_middle_finds_ssh_socket_again(
    fresh_box: Box, operator: dict[str, str], tmp_path: Path
) -> None:
    fresh_box.run(["sh", "-c", SOCKET])
    assert within(5, fresh_box, 22)
    kill_at(start(fresh_box, operator, tmp_path), "port 22 is closed")
    assert within(SECONDS + 15, fresh_box, 22)
    wait_until_reverted(fresh_box)
    assert within(10, fresh_box, 22) and not login(fresh_box, 2222)
    assert fresh_box.run(["systemctl", "is-active", "ssh.socket"])[1].strip() == "active"
    assert fresh_box.run(["systemctl", "is-enabled", "ssh.service"])[1].strip() == "disabled"


def test_a_firewall_before_the_new_port_sends_it_back(fab: FabCommand, fresh_box: Box) -> None:
    drop = "apt-get install -qq -y iptables >/dev/null; iptables -I INPUT -p tcp --dport 2222 -j DROP"
    assert fresh_box.run(["sh", "-c", drop])[0] == 0
    refused = fab(fresh_box, "harden-ssh", KNOCKMAP_SSH_REVERT_SECONDS="60")
    assert refused.rc == 1 and "no login over port 2222" in refused.out, refused.out
    assert "went back to port 22" in refused.out
    assert login(fresh_box, 22)
    assert fresh_box.run(["test", "-e", "/etc/ssh/sshd_config.d/00-knockmap-port.conf"])[0] == 1


def test_two_operators_at_once_do_not_mix(
    fab: FabCommand, fresh_box: Box, operator: dict[str, str], tmp_path: Path
) -> None:
    first, second = (start(fresh_box, operator, tmp_path / name) for name in ("one", "two"))
    outs = [run.communicate(timeout=90)[0] for run in (first, second)]
    codes = [first.returncode, second.returncode]
    assert 0 in codes, outs
    # Whoever came too late looked either while the other moved sshd or, on a slow machine, when it had.
    refusals = ("another move of the SSH port is under way", "another run moved it, or is at it; run again")
    for code, out in zip(codes, outs, strict=True):
        assert code == 0 or any(words in out for words in refusals), out
    wait_until_reverted(fresh_box)
    assert login(fresh_box, 2222) and not login(fresh_box, 22)
    assert ", 0 changed, 0 failed, 0 skipped" in fab(fresh_box, "harden-ssh").last


def test_an_undo_that_is_killed_ends_on_the_port_that_worked(
    fab: FabCommand, fresh_box: Box, operator: dict[str, str]
) -> None:
    """With ufw in front: undo has closed the new port there already, and going back must open it again."""
    ufw = "apt-get install -qq -y ufw >/dev/null; ufw allow 22/tcp; ufw --force enable"
    assert fresh_box.run(["sh", "-c", ufw])[0] == 0
    assert fab(fresh_box, "harden-ssh").rc == 0
    argv = [f"{Path(sys.executable).parent}/fab", "-S", str(fresh_box.ssh_config), "-H", fresh_box.name]
    environment = {**operator, "KNOCKMAP_SSH_REVERT_SECONDS": str(2 * SECONDS), "PYTHONUNBUFFERED": "1"}
    run = subprocess.Popen(
        [*argv, "undo", "harden_ssh"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    kill_at(run, "sshd is as it was")
    assert within(2 * SECONDS + 15, fresh_box, 2222)
    wait_until_reverted(fresh_box)
    assert login(fresh_box, 2222) and not login(fresh_box, 22)
    assert fab(fresh_box, "undo", "harden_ssh").rc == 0
    assert login(fresh_box, 22)
