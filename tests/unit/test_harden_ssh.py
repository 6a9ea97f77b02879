"""What is decided about sshd, on answers that real releases gave; and what is written for it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabfile.engine.agent import facts, item, machine, units
from fabfile.engine.resources import Command, File
from fabfile.harden_ssh import NAME, PROGRAM, refusal, resources
from fabfile.settings import Settings

SOURCE = Path(__file__).parents[2] / "files/harden_ssh/ssh.py"
numbers = itertools.count()

# `ss -ltnpH`, as these gave it.
SERVICE = """\
LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=412,fd=3))
LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=412,fd=4))
"""
UBUNTU_SOCKET = """\
LISTEN 0 4096 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=921,fd=3),("systemd",pid=1,fd=91))
LISTEN 0 4096 [::]:22 [::]:* users:(("sshd",pid=921,fd=4),("systemd",pid=1,fd=92))
LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=500,fd=15))
"""
DEBIAN_SOCKET = 'LISTEN 0 4096 *:22 *:* users:(("systemd",pid=1,fd=51))\n'
UBUNTU_LISTEN = "0.0.0.0:22 (Stream) [::]:22 (Stream)"
DEBIAN_LISTEN = "[::]:22 (Stream)"


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module, with all its paths below tmp_path and no programs but those that a test records."""
    spec = importlib.util.spec_from_file_location(f"knockmap_ssh_{next(numbers)}", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in (
        "CONFIG",
        "DROP_INS",
        "STATE",
        "ARMED",
        "OPENED",
        "LOADED",
        "JOURNAL",
        "SOCKET",
        "GENERATOR",
    ):
        monkeypatch.setattr(module, name, f"{tmp_path}{getattr(module, name)}")
    monkeypatch.setattr(module, "is_sshd", lambda pid: pid in ("412", "921"))
    monkeypatch.setattr(module, "OURS", tuple(f"{tmp_path}{path}" for path in module.OURS))
    monkeypatch.setattr(module, "SSHD", f"{tmp_path}/bin/sshd")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    for folder in ("bin", "etc/ssh/sshd_config.d", "var/lib/knockmap/ssh"):
        (tmp_path / folder).mkdir(parents=True)
    return module


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], None]:
    """Record what a program of the target answers: `program("ss", 'cat <<E …')`."""

    def record(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return record


def answering(text: str) -> str:
    return f"cat <<'END'\n{text.rstrip()}\nEND"


def systemctl(active: bool, listen: str = "") -> str:
    return f"case $1 in is-active) exit {0 if active else 3};; show) echo '{listen}';; esac"


# --- who owns the port ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("active", "generator", "owner"),
    [(False, False, "service"), (False, True, "service"), (True, True, "generator"), (True, False, "socket")],
)
def test_both_sides_see_the_same_owner_of_the_port(
    target: Any,
    program: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    active: bool,
    generator: bool,
    owner: str,
) -> None:
    program("systemctl", systemctl(active, f"ActiveState={'active' if active else 'inactive'}"))
    monkeypatch.setattr(units, "asked_units", [])
    item.forget_observations()
    if generator:
        path = Path(target.GENERATOR)
        path.parent.mkdir(parents=True)
        path.touch(0o755)
    monkeypatch.setattr(machine, "ROOT", str(tmp_path))
    monkeypatch.setitem(machine.ENVIRONMENT, "PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert target.owner() == owner
    assert facts.fact_ssh_owner() == owner


@pytest.mark.parametrize(
    ("ss", "listen"), [(SERVICE, ""), (UBUNTU_SOCKET, UBUNTU_LISTEN), (DEBIAN_SOCKET, DEBIAN_LISTEN)]
)
def test_finds_sshd_s_port_whoever_listens_for_it(
    target: Any, program: Callable[[str, str], None], ss: str, listen: str
) -> None:
    program("ss", answering(ss))
    program("systemctl", systemctl(True, listen))
    assert target.sshd_ports() == {22}


def test_a_port_that_another_process_has_on_one_family_is_not_sshd_s(
    target: Any, program: Callable[[str, str], None]
) -> None:
    other = 'LISTEN 0 5 0.0.0.0:2222 0.0.0.0:* users:(("python3",pid=77,fd=3))\n'
    half = 'LISTEN 0 128 [::]:2222 [::]:* users:(("sshd",pid=412,fd=5))\n'
    program("ss", answering(SERVICE + other + half))
    assert target.sshd_ports() == {22}
    assert target.listeners()[2222] == {"python3", "sshd"}


def test_a_port_that_a_session_forwards_is_not_sshd_s(
    target: Any, program: Callable[[str, str], None]
) -> None:
    program("ss", answering(SERVICE + SERVICE.replace(":22", ":8080").replace("pid=412", "pid=500")))
    assert target.sshd_ports() == {22}
    assert target.listeners()[8080] == {"a session of ssh (a forward)"}


def test_a_process_of_any_name_hinders_no_look(target: Any, program: Callable[[str, str], None]) -> None:
    row = SERVICE.splitlines()[0].replace(":22", ":9000").replace("sshd", "d\\377\\nmon")
    program("ss", f"printf '{row}\\n'; {answering(SERVICE)}")
    assert target.sshd_ports() == {22} and 9000 in target.listeners()


def test_sshd_itself_is_known_by_its_title_and_its_user() -> None:
    spec = importlib.util.spec_from_file_location("knockmap_ssh", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = [sys.executable, "-c", "print(flush=True); input()", "[listener]"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline(), "it must be what it became"
        found = module.is_sshd(str(process.pid))
        process.kill()
    assert found == (os.geteuid() == 0)
    assert not module.is_sshd(str(os.getpid())) and not module.is_sshd("")


def test_a_socket_of_another_unit_is_not_sshd_s(target: Any, program: Callable[[str, str], None]) -> None:
    program("ss", answering(DEBIAN_SOCKET + DEBIAN_SOCKET.replace(":22", ":9090")))
    program("systemctl", systemctl(True, DEBIAN_LISTEN))
    assert target.sshd_ports() == {22}


# --- the configuration ------------------------------------------------------------------------------------------


def test_names_lines_of_others_about_ports_by_file_and_number(target: Any) -> None:
    Path(target.CONFIG).write_text("Include x\n#Port 22\n  port 22\nPortable no\n")
    Path(target.DROP_INS, "50-x.conf").write_text("ListenAddress 192.0.2.1\n")
    Path(target.OURS[0]).write_text("Port 2222\n")
    found = target.lines_on("port", "listenaddress")
    assert found == [
        f"{target.CONFIG}:3: port 22",
        f"{target.DROP_INS}/50-x.conf:1: ListenAddress 192.0.2.1",
    ]


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("Include /etc/ssh/sshd_config.d/*.conf\n", True),
        ('include "/etc/ssh/sshd_config.d/*.conf"\nMatch all\n', True),
        ("Include sshd_config.d/*.conf\n", True),
        ("#Include /etc/ssh/sshd_config.d/*.conf\n", False),
        ("Match User x\n  X11Forwarding no\nInclude /etc/ssh/sshd_config.d/*.conf\n", False),
        ("Include /etc/ssh/other.d/*.conf\n", False),
    ],
)
def test_knows_whether_sshd_reads_drop_ins(target: Any, text: str, reads: bool) -> None:
    Path(target.CONFIG).write_text(text)
    assert target.reads_drop_ins() == reads


@pytest.mark.parametrize(
    ("said", "in_force", "holds"),
    [
        ("no", "no", True),
        ("no", "yes", False),
        ("VERBOSE", "verbose", True),
        ("prohibit-password", "without-password", True),
        ("-ecdh-sha2-nistp*,x", "curve25519-sha256,sntrup761x25519-sha512", True),
        ("-ecdh-sha2-nistp*,x", "curve25519-sha256,ecdh-sha2-nistp256", False),
        ("anything", None, True),
    ],
)
def test_sees_when_another_line_overrules_ours(
    target: Any, said: str, in_force: str | None, holds: bool
) -> None:
    assert target.holds(said, in_force) == holds


def test_says_which_line_overrules(target: Any, program: Callable[[str, str], None]) -> None:
    Path(target.CONFIG).write_text("PasswordAuthentication yes\nInclude /etc/ssh/sshd_config.d/*.conf\n")
    Path(target.OURS[2]).write_text("# why\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n")
    program("sshd", answering("passwordauthentication yes\nkbdinteractiveauthentication no"))
    assert target.overruled() == [
        f"PasswordAuthentication is 'yes' ({target.CONFIG}:1: PasswordAuthentication yes)"
    ]


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ("", "prohibit-password"),
        ("#PermitRootLogin no\n", "prohibit-password"),
        ("PermitRootLogin yes\n", "prohibit-password"),
        ("PermitRootLogin no\n", "no"),
        ("permitrootlogin forced-commands-only\n", "forced-commands-only"),
        ("PermitRootLogin yes\nPermitRootLogin no\n", "prohibit-password"),
        ("Match Address 192.0.2.1\n  PermitRootLogin no\n", "prohibit-password"),
    ],
)
def test_never_lets_root_in_where_others_forbade_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, word: str
) -> None:
    monkeypatch.setattr(machine, "ROOT", str(tmp_path))
    folder = tmp_path / "etc/ssh/sshd_config.d"
    folder.mkdir(parents=True)
    (tmp_path / "etc/ssh/sshd_config").write_text(lines)
    (folder / "20-knockmap-keys.conf").write_text("PermitRootLogin prohibit-password\n")
    assert facts.fact_ssh_root_login() == word


@pytest.mark.parametrize(
    ("rule", "wants"),
    [
        ("allow tcp 2222 0.0.0.0/0 any 0.0.0.0/0 in", False),
        ("limit tcp 2222 0.0.0.0/0 any 0.0.0.0/0 in", False),
        ("allow any 2222 0.0.0.0/0 any 0.0.0.0/0 in", False),
        ("deny tcp 2222 0.0.0.0/0 any 0.0.0.0/0 in", True),
        ("allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in", True),
        ("allow udp 2222 0.0.0.0/0 any 0.0.0.0/0 in", True),
    ],
)
def test_ufw_is_asked_only_where_it_would_not_let_the_port_in(
    target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, wants: bool
) -> None:
    monkeypatch.setattr(target, "UFW", str(tmp_path))
    monkeypatch.setattr(target, "UFW_PROGRAM", "/bin/sh")
    (tmp_path / "user.rules").write_text(f"*filter\n### tuple ### {rule}\n")
    assert target.ufw_wants(2222) == wants
    monkeypatch.setattr(target, "UFW_PROGRAM", str(tmp_path / "ufw"))
    assert not target.ufw_wants(2222), "a ufw that was removed leaves its files behind"


# --- the way back -----------------------------------------------------------------------------------------------


def arm_by_hand(target: Any, left: float, **clock: Any) -> None:
    """As if armed for 60 s, of which `left` are left."""
    clocks = {"deadline": time.time() + left, "monotonic": time.monotonic() + left, "seconds": 60}
    kept = {"boot": target.text_of(target.BOOT), "files": {}, "opened": [], "journal": {}}
    Path(target.ARMED).write_text(json.dumps({**clocks, **kept, **clock}))


def test_nothing_is_accepted_once_the_time_is_over(target: Any) -> None:
    for left in (None, -1):
        if left:
            arm_by_hand(target, left)
        with pytest.raises(SystemExit, match="the time for the proof is over"):
            target.refuse_unarmed()
    arm_by_hand(target, 60)
    target.refuse_unarmed()


def test_a_second_operator_is_told_how_long_the_first_may_take(target: Any) -> None:
    arm_by_hand(target, 60)
    with pytest.raises(SystemExit, match=r"another move .* within (70|69) s"):
        target.arm(60)


def test_goes_back_when_the_time_is_over_or_at_once_when_told(target: Any) -> None:
    assert not target.due(now=True)
    arm_by_hand(target, 60)
    assert target.due(now=True) and not target.due(now=False)
    arm_by_hand(target, -1)
    assert target.due(now=False)


@pytest.mark.parametrize(
    ("left", "clock", "due"),
    [
        (30, {"deadline": 0}, False),  # the clock was set forward meanwhile
        (-1, {"deadline": 4e9}, True),  # ... or back
        (30, {"boot": "another"}, False),  # after a reboot there is only the clock
        (-1, {"boot": "another"}, True),
        (30, {"boot": "another", "deadline": 4e9}, True),  # ... which cannot be trusted if it went back
    ],
)
def test_a_clock_that_is_set_meanwhile_does_not_keep_the_operator_out(
    target: Any, left: float, clock: dict[str, Any], due: bool
) -> None:
    arm_by_hand(target, left, **clock)
    assert target.due(now=False) == due


def test_what_cannot_be_armed_does_not_stay_armed(target: Any, program: Callable[[str, str], None]) -> None:
    program("systemctl", "echo no such unit >&2; exit 1")
    with pytest.raises(SystemExit, match="no such unit"):
        target.arm(60)
    assert not target.armed()


def test_going_back_keeps_what_other_tasks_wrote_down_meanwhile(
    target: Any, program: Callable[[str, str], None]
) -> None:
    program("systemctl", "exit 0")
    program("sshd", answering("port 22"))
    port_file, journal = Path(target.OURS[0]), Path(target.JOURNAL)
    port_file.write_text("Port 2022\n")
    journal.parent.mkdir(parents=True)
    journal.write_text(json.dumps({"file:old": {"task": NAME}}))
    target.arm(60)
    port_file.write_text("Port 2222\n")
    Path(target.OURS[1]).write_text("LogLevel VERBOSE\n")
    entries = {"file:new": {"task": NAME}, "package:rsyslog": {"task": "syslog_route"}}
    journal.write_text(json.dumps(entries))
    target.revert()
    assert port_file.read_text() == "Port 2022\n" and not Path(target.OURS[1]).exists()
    assert set(json.loads(journal.read_text())) == {"file:old", "package:rsyslog"}
    assert not os.path.exists(target.ARMED)


# --- what is refused --------------------------------------------------------------------------------------------

FINE: dict[str, Any] = {
    "owner": "service",
    "enabled": ["ssh.service"],
    "accept": False,
    "refused": "",
    "port_lines": [],
    "reads_drop_ins": True,
    "ports": [22],
    "on_port": "nobody",
    "lacks_ss": False,
    "selinux": "",
}


def test_a_fresh_target_is_not_refused() -> None:
    assert refusal(FINE, 22, 2222) == ""
    ubuntu = {**FINE, "owner": "generator", "enabled": ["ssh.socket"]}
    assert refusal(ubuntu, 22, 2222) == ""


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"refused": "line 3: Bad configuration option: Nonsense"}, "line 3: Bad configuration option"),
        ({"port_lines": ["/etc/ssh/sshd_config:3: Port 22"]}, "/etc/ssh/sshd_config:3: Port 22"),
        ({"reads_drop_ins": False}, "does not include"),
        ({"owner": "socket", "enabled": ["ssh.socket"], "accept": True}, "Accept=yes"),
        ({"enabled": ["ssh.service", "ssh.socket"]}, "ssh.socket is enabled"),
        ({"enabled": ["ssh.socket"]}, "ssh.socket is enabled"),
        ({"on_port": "nginx"}, "port 2222 is taken there by nginx"),
        ({"selinux": "Enforcing"}, "semanage port -a -t ssh_port_t -p tcp 2222"),
        ({"ports": [2200]}, "no longer on 22, by which we came"),
        ({"lacks_ss": True, "ports": []}, "iproute2"),
    ],
)
def test_refuses_what_cannot_work_with_the_reason(found: dict[str, Any], said: str) -> None:
    assert said in refusal({**FINE, **found}, 22, 2222)


# --- what is written --------------------------------------------------------------------------------------------


def texts(settings: Settings, **stage: Any) -> dict[str, str]:
    return {r.name: r.text or "" for r in resources(settings, **stage) if isinstance(r, File)}


def words(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_while_the_move_is_not_proven_both_ports_are_there_and_nothing_is_hardened() -> None:
    files = texts(Settings(), ports=(22, 2222), hardened=False)
    assert words(files["/etc/ssh/sshd_config.d/00-knockmap-port.conf"]) == ["Port 22", "Port 2222"]
    assert not any("hardening" in name or "keys" in name for name in files)


def test_in_the_end_there_is_one_port_for_service_and_socket_alike() -> None:
    files = texts(Settings(ssh_port=2022))
    assert words(files["/etc/ssh/sshd_config.d/00-knockmap-port.conf"]) == ["Port 2022"]
    socket = words(files["/etc/systemd/system/ssh.socket.d/zz-knockmap.conf"])
    assert socket[1:4] == ["ListenStream=", "ListenStream=0.0.0.0:2022", "ListenStream=[::]:2022"]


def test_passwords_stay_where_no_key_was_proven() -> None:
    assert not any("keys" in name for name in texts(Settings(), by_key=False))
    assert "@@fact.ssh_no_passwords@@" in "".join(texts(Settings()).values())


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", ["PasswordAuthentication no", "KbdInteractiveAuthentication no"]),
        (
            "AuthenticationMethods publickey\n",
            ["PasswordAuthentication no", "KbdInteractiveAuthentication no"],
        ),
        (
            "Match Group humans\n  AuthenticationMethods publickey,keyboard-interactive:pam\n",
            ["PasswordAuthentication no"],
        ),
        (
            "AuthenticationMethods any\nMatch all\nAuthenticationMethods publickey,password publickey,keyboard-interactive\n",
            [],
        ),
        (  # none of these is a second factor
            "AuthenticationMethods publickey password # not keyboard-interactive,publickey\nMatch Group sftponly\nAuthenticationMethods password\n",
            ["PasswordAuthentication no", "KbdInteractiveAuthentication no"],
        ),
    ],
)
def test_a_second_factor_that_others_ask_for_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, said: list[str]
) -> None:
    monkeypatch.setattr(machine, "ROOT", str(tmp_path))
    (tmp_path / "etc/ssh").mkdir(parents=True)
    (tmp_path / "etc/ssh/sshd_config").write_text(lines)
    assert words(facts.fact_ssh_no_passwords()) == said


def test_only_strict_takes_from_clients_what_they_all_have() -> None:
    lines = {
        strict: next(
            line
            for line in texts(Settings(ssh_strict=strict))[
                "/etc/ssh/sshd_config.d/10-knockmap-hardening.conf"
            ].splitlines()
            if line.startswith("KexAlgorithms")
        )
        for strict in (False, True)
    }
    assert "curve25519" not in lines[False] and "curve25519-sha256@libssh.org" in lines[True]


def test_listening_comes_last_and_undo_closes_the_new_port() -> None:
    *_, last = resources(Settings(), ports=(22, 2222))
    assert isinstance(last, Command)
    assert last.argv == (PROGRAM, "listen", "22", "2222") and last.undo == (PROGRAM, "close", "2222")
