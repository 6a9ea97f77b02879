"""sshd moves and is hardened: seen by logins from outside, and by ssh-audit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
from box import Box

from tests.container.conftest import ROOT, Fab, NewBox
from tests.container.login import SOCKET, login, new_password, within

FabCommand = Callable[..., Fab]


def effective(box: Box) -> set[str]:
    """sshd's own words on its configuration for a login of root."""
    login = "user=root,host=x,addr=192.0.2.1,laddr=192.0.2.2,lport=2222"
    return set(box.run(["/usr/sbin/sshd", "-T", "-C", login])[1].splitlines())


def test_check_on_a_fresh_box_announces_the_move_and_touches_nothing(fab: FabCommand, box: Box) -> None:
    checked = fab(box, "harden-ssh", "--check")
    assert checked.rc == 0 and "would change command:sshd listens on 2222 alone" in checked.out
    assert box.run(["ls", "/etc/ssh/sshd_config.d"])[1].split() == ["50-cloud-init.conf"]
    assert box.run(["test", "-e", "/usr/local/lib/knockmap"])[0] == 1
    assert login(box, 22) and not login(box, 2222)


def test_moves_away_from_22_with_the_same_host_key(fab: FabCommand, box: Box) -> None:
    moved = fab(box, "harden-ssh")
    assert moved.rc == 0, moved.out
    assert "the way back is disarmed" in moved.out
    assert login(box, 2222) and not login(box, 22)


def test_a_second_run_finds_the_port_and_changes_nothing(fab: FabCommand, box: Box) -> None:
    again = fab(box, "harden-ssh")
    assert again.rc == 0 and ", 0 changed, 0 failed, 0 skipped" in again.last


def test_an_operator_without_a_record_finds_the_port_too(fab: FabCommand, box: Box, tmp_path: Path) -> None:
    again = fab(box, "harden-ssh", XDG_STATE_HOME=str(tmp_path))
    assert again.rc == 0 and ", 0 changed, 0 failed, 0 skipped" in again.last


def test_passwords_are_off_since_a_key_was_proven(box: Box) -> None:
    lines = effective(box)
    assert {"passwordauthentication no", "kbdinteractiveauthentication no"} <= lines
    assert "permitrootlogin without-password" in lines


def test_no_way_back_is_left_running(box: Box) -> None:
    assert box.run(["systemctl", "is-enabled", "knockmap-ssh-revert.timer"])[1].strip() == "disabled"
    assert box.run(["test", "-e", "/var/lib/knockmap/ssh/armed.json"])[0] == 1


def audit(box: Box, port: int) -> tuple[list[str], list[str]]:
    """(failures, warnings) of ssh-audit. Its rate test would have sshd punish this address."""
    program = Path(sys.executable).parent / "ssh-audit"
    argv = [program, "--json", "--skip-rate-test", "-p", str(port), box.address]
    found = json.loads(subprocess.run(argv, capture_output=True, text=True, check=False).stdout)
    algorithms = [item for kind in ("kex", "key", "enc", "mac") for item in found[kind]]
    assert len(algorithms) > 5
    notes = [(item["algorithm"], item.get("notes", {})) for item in algorithms]
    failures = [name for name, note in notes if note.get("fail")]
    return failures, [name for name, note in notes if note.get("warn")]


def test_ssh_audit_finds_no_failure_and_warns_only_of_what_clients_need(box: Box) -> None:
    failures, warnings = audit(box, 2222)
    assert failures == []
    assert set(warnings) <= {"curve25519-sha256", "curve25519-sha256@libssh.org"}


def test_drift_is_repaired_in_stages(fab: FabCommand, box: Box) -> None:
    box.run(["sh", "-c", "rm /etc/ssh/sshd_config.d/10-knockmap-hardening.conf; systemctl reload ssh"])
    assert fab(box, "harden-ssh", "--check", "--fail-on-change").rc == 1
    repaired = fab(box, "harden-ssh")
    assert repaired.rc == 0 and "the way back is disarmed" in repaired.out
    assert "x11forwarding no" in effective(box)


def test_survives_a_reboot(fab: FabCommand, box: Box) -> None:
    box.restart()
    assert within(10, box, 2222) and not login(box, 22)
    assert ", 0 changed, 0 failed, 0 skipped" in fab(box, "harden-ssh").last


def test_moves_again(fab: FabCommand, box: Box) -> None:
    moved = fab(box, "harden-ssh", KNOCKMAP_SSH_PORT="2022")
    assert moved.rc == 0, moved.out
    assert login(box, 2022) and not login(box, 2222) and not login(box, 22)
    assert fab(box, "harden-ssh", KNOCKMAP_SSH_PORT="2222").rc == 0


def test_strict_leaves_no_warning_where_this_client_can_still_log_in(
    fab: FabCommand, box: Box, release: str
) -> None:
    strict = fab(box, "harden-ssh", KNOCKMAP_SSH_STRICT="yes", KNOCKMAP_SSH_REVERT_SECONDS="20")
    if release == "trixie":
        assert strict.rc == 0, strict.out
        assert audit(box, 2222) == ([], [])
        assert fab(box, "harden-ssh").rc == 0
    else:  # sntrup alone is left there, which paramiko lacks
        assert strict.rc == 1 and "went back" in strict.out and "ssh_strict leaves" in strict.out
        assert login(box, 2222)


def test_undo_goes_back_to_22_in_stages(fab: FabCommand, box: Box) -> None:
    undone = fab(box, "undo", "harden_ssh")
    assert undone.rc == 0, undone.out
    assert login(box, 22) and not login(box, 2222)
    assert box.run(["ls", "/etc/ssh/sshd_config.d"])[1].split() == ["50-cloud-init.conf"]
    assert box.run(["test", "-e", "/usr/local/lib/knockmap"])[0] == 1


def test_undo_goes_back_to_22_also_where_a_policy_stops_what_comes_there(
    fab: FabCommand, fresh_box: Box
) -> None:
    for task in ("harden-ssh", "iptables-log"):
        done = fab(fresh_box, task, KNOCKMAP_KNOCK_POLICY="drop")
        assert done.rc == 0, done.out
    assert "-j DROP" in fresh_box.run(["iptables", "-S", "KNOCKMAP"])[1]
    fresh_box.run(["systemctl", "stop", "knockmap-rules.timer"])
    undone = fab(fresh_box, "undo", "harden_ssh", KNOCKMAP_KNOCK_POLICY="drop")
    assert undone.rc == 0, undone.out
    assert login(fresh_box, 22)


def test_a_user_with_sudo_moves_it_as_well_and_root_stays_out(fab: FabCommand, fresh_box: Box) -> None:
    forbid = "echo 'PermitRootLogin no' >>/etc/ssh/sshd_config; systemctl reload ssh"
    fresh_box.run(["sh", "-c", forbid])
    moved = fab(fresh_box, "harden-ssh", user="op")
    assert moved.rc == 0, moved.out
    assert login(fresh_box, 2222, "op") and not login(fresh_box, 22, "op")
    assert "permitrootlogin no" in effective(fresh_box)
    assert ", 0 changed, 0 failed, 0 skipped" in fab(fresh_box, "harden-ssh", user="op").last


def test_ssh_socket_moves_stays_and_comes_back(fab: FabCommand, fresh_box: Box) -> None:
    fresh_box.run(["sh", "-c", SOCKET])
    assert within(5, fresh_box, 22)
    moved = fab(fresh_box, "harden-ssh")
    assert moved.rc == 0, moved.out
    assert login(fresh_box, 2222) and not login(fresh_box, 22)
    fresh_box.restart()
    assert within(10, fresh_box, 2222) and not login(fresh_box, 22)
    assert ", 0 changed, 0 failed, 0 skipped" in fab(fresh_box, "harden-ssh").last
    undone = fab(fresh_box, "undo", "harden_ssh")
    assert undone.rc == 0, undone.out
    assert within(5, fresh_box, 22) and not login(fresh_box, 2222)
    assert fresh_box.run(["systemctl", "is-active", "ssh.socket"])[1].strip() == "active"


def test_behind_a_jump_host_the_new_login_goes_the_same_way(
    fab: FabCommand, fresh_box: Box, new_box: NewBox, release: str, tmp_path: Path
) -> None:
    """The box has an address here as well, by which the test looks; the operator knows the inner one only."""
    jump = new_box(release)
    address = fresh_box.run(["hostname", "-I"])[1].split()[0]
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host inner\n  HostName {address}\n  HostKeyAlias {fresh_box.address}\n  ProxyJump {jump.name}\n  User root\n"
        f"  IdentityFile {ROOT}/.box/id_ed25519\n  UserKnownHostsFile {ROOT}/.box/known_hosts\n"
        + jump.ssh_config.read_text()
    )
    moved = fab("inner", "harden-ssh", ssh_config=str(config))
    assert moved.rc == 0 and "the way back is disarmed" in moved.out, moved.out
    assert login(fresh_box, 2222) and not login(fresh_box, 22)
    assert ", 0 changed, 0 failed, 0 skipped" in fab("inner", "harden-ssh", ssh_config=str(config)).last
    assert fab("inner", "undo", "harden_ssh", ssh_config=str(config)).rc == 0
    assert login(fresh_box, 22) and login(jump, 22)


def test_a_ufw_that_is_not_enabled_yet_will_let_the_new_port_in(fab: FabCommand, fresh_box: Box) -> None:
    """Ubuntu brings it so. Who enables it some day with the profile OpenSSH (22) must not be shut out."""
    fresh_box.run(["sh", "-c", "apt-get install -qq -y ufw >/dev/null"])
    assert fab(fresh_box, "harden-ssh").rc == 0
    assert "ufw allow 2222/tcp" in fresh_box.run(["ufw", "show", "added"])[1]
    assert "Status: inactive" in fresh_box.run(["ufw", "status"])[1]
    assert ", 0 changed, 0 failed, 0 skipped" in fab(fresh_box, "harden-ssh").last
    fresh_box.run(["sh", "-c", "ufw allow OpenSSH; ufw --force enable"])
    assert login(fresh_box, 2222)
    fresh_box.run(["sh", "-c", "ufw delete allow OpenSSH; ufw disable"])
    assert fab(fresh_box, "undo", "harden_ssh").rc == 0 and login(fresh_box, 22)
    assert "(None)" in fresh_box.run(["ufw", "show", "added"])[1]


def test_ufw_lets_the_new_port_in_before_the_move_and_undo_takes_that_back(
    fab: FabCommand, fresh_box: Box
) -> None:
    fresh_box.run(["sh", "-c", "apt-get install -qq -y ufw >/dev/null; ufw allow 22/tcp; ufw --force enable"])
    assert "Status: active" in fresh_box.run(["ufw", "status"])[1]
    moved = fab(fresh_box, "harden-ssh")
    assert moved.rc == 0, moved.out
    assert "2222/tcp" in fresh_box.run(["ufw", "status"])[1] and login(fresh_box, 2222)
    again = fab(fresh_box, "harden-ssh", KNOCKMAP_SSH_PORT="2022")
    assert again.rc == 0, again.out
    status = fresh_box.run(["ufw", "status"])[1]
    assert "2022/tcp" in status and "2222/tcp" not in status and login(fresh_box, 2022)
    fresh_box.run(["ufw", "delete", "allow", "22/tcp"])  # undo must let itself in again
    assert fab(fresh_box, "undo", "harden_ssh").rc == 0
    assert "2022/tcp" not in fresh_box.run(["ufw", "status"])[1] and login(fresh_box, 22)


def test_firewalld_lets_the_new_port_in_as_well(fab: FabCommand, fresh_box: Box) -> None:
    install = (
        "apt-get install -qq -y --no-install-recommends firewalld netbase >/dev/null; firewall-cmd --state"
    )
    assert fresh_box.run(["sh", "-c", install])[0] == 0
    moved = fab(fresh_box, "harden-ssh")
    assert moved.rc == 0, moved.out
    for where in ((), ("--permanent",)):
        assert fresh_box.run(["firewall-cmd", *where, "--list-ports"])[1].strip() == "2222/tcp"
    assert login(fresh_box, 2222)
    assert fab(fresh_box, "undo", "harden_ssh").rc == 0
    assert fresh_box.run(["firewall-cmd", "--permanent", "--list-ports"])[1].strip() == ""
    assert login(fresh_box, 22)


def test_a_line_that_overrules_ours_is_named_and_the_box_goes_back(fab: FabCommand, fresh_box: Box) -> None:
    """An sshd that is said to be hardened and is not would be worse than one that is not."""
    spoil = "sed -i '1i PasswordAuthentication yes' /etc/ssh/sshd_config; systemctl reload ssh"
    fresh_box.run(["sh", "-c", spoil])
    refused = fab(fresh_box, "harden-ssh")
    assert refused.rc == 1 and "/etc/ssh/sshd_config:1: PasswordAuthentication yes" in refused.out, (
        refused.out
    )
    assert "went back to port 22" in refused.out
    assert login(fresh_box, 22) and not login(fresh_box, 2222)
    assert fresh_box.run(["ls", "/etc/ssh/sshd_config.d"])[1].split() == ["50-cloud-init.conf"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("echo 'Nonsense yes' >>/etc/ssh/sshd_config", "Nonsense"),
        ("echo 'Port 22' >>/etc/ssh/sshd_config", "/etc/ssh/sshd_config:"),
        ("sed -i 's/^Include/#Include/' /etc/ssh/sshd_config", "does not include"),
        (
            "systemd-run -q --unit=squatter socat TCP-LISTEN:2222,fork - || systemd-run -q python3 -m http.server 2222; sleep 1",
            "port 2222 is taken",
        ),
    ],
)
def test_refuses_what_cannot_work_before_it_touches_anything(
    fab: FabCommand, fresh_box: Box, spoil: str, said: str
) -> None:
    fresh_box.run(["sh", "-c", spoil])
    refused = fab(fresh_box, "harden-ssh")
    assert refused.rc == 1 and said in refused.out and "nothing was touched" in refused.out, refused.out
    assert fresh_box.run(["test", "-e", "/usr/local/lib/knockmap"])[0] == 1
    assert fresh_box.run(["test", "-e", "/var/lib/knockmap"])[0] == 1
    assert login(fresh_box, 22)


def test_a_box_without_a_key_keeps_its_passwords(fab: FabCommand, fresh_box: Box, tmp_path: Path) -> None:
    password, config = new_password(fresh_box), tmp_path / "password.yaml"
    config.write_text(
        f"connect_kwargs: {{password: '{password}', look_for_keys: false, allow_agent: false}}\n"
        f"sudo: {{password: '{password}'}}\n"
    )
    bare = tmp_path / "ssh_config"
    lines = Path(fresh_box.ssh_config).read_text().splitlines()
    bare.write_text("\n".join(line for line in lines if "Identit" not in line))
    moved = fab(fresh_box, "-f", str(config), "harden-ssh", user="pw", ssh_config=str(bare))
    assert moved.rc == 0, moved.out
    assert "passwordauthentication yes" in effective(fresh_box)
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        client.connect(fresh_box.address, 2222, "pw", password, look_for_keys=False, allow_agent=False)
    assert not login(fresh_box, 22)
