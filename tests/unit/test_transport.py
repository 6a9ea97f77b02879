"""The channel between operator and agent, over real SSH to a server in this process (ssh_server.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fabric import Config
from paramiko import SSHConfig

from fabfile.engine import bootstrap, root_channel, transport
from fabfile.engine.connection import VerifiedConnection
from fabfile.engine.errors import AgentError, BootstrapError, ConnectionLostError, SudoError
from fabfile.settings import Settings
from tests.unit.ssh_server import SshServer, freezing, serving

CHECK = {"mode": "check", "diff": False, "resources": []}
APPLY = {**CHECK, "mode": "apply"}
READ = "import sys, json, zlib; b = sys.stdin.buffer; read = lambda: b.read(int(b.readline()))\n"
SAY = "say = lambda **event: print(json.dumps(event), flush=True)\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def connection(
    server: SshServer, user: str = "root", port: int | None = None, **overrides: Any
) -> VerifiedConnection:
    login = {"password": "login", "look_for_keys": False, "allow_agent": False}
    config = Config(ssh_config=SSHConfig(), overrides={"connect_kwargs": login, **overrides})
    chosen = Settings(ssh_accept_new=True)
    c = VerifiedConnection("127.0.0.1", user=user, port=port or server.port, config=config, settings=chosen)
    c.tell = lambda text: None
    return c


@pytest.fixture
def server(home: Path) -> Iterator[SshServer]:
    with serving(home) as server:
        yield server


@pytest.fixture
def as_user(home: Path) -> Iterator[SshServer]:
    with serving(home, root=False) as server:
        yield server


def run(c: VerifiedConnection, program: str = "", job: Any = None, blobs: Any = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    source = (READ + SAY + program).encode() if program else None
    with c:
        transport.run_agent(c, job or CHECK, blobs or {}, events.append, program=source)
    return events


def test_runs_the_real_agent_and_hears_its_last_word(server: SshServer) -> None:
    assert run(connection(server))[-1] == {"event": "end"}


def test_hands_the_job_to_the_program(server: SshServer) -> None:
    events = run(connection(server), "say(event='data', value=json.loads(read())); say(event='end')", APPLY)
    assert events[0]["value"] == APPLY


def test_events_arrive_while_the_program_still_runs(server: SshServer) -> None:
    program = (
        "read(); say(event='start', id='a'); say(event='need', id='a', sha256='x', offset=0, size=3)\n"
        "read(); say(event='end')"
    )
    (server.home / "small").write_bytes(b"abc")
    heard = []
    source = (READ + SAY + program).encode()
    with connection(server) as c:
        transport.run_agent(c, CHECK, {"x": server.home / "small"}, heard.append, program=source)
    # The program could only go on since its first events were heard while it ran.
    assert [event["event"] for event in heard] == ["start", "need", "progress", "end"]


@pytest.mark.parametrize("offset", [0, 1_500_000])
def test_a_large_file_is_sent_from_where_the_target_has_it(
    server: SshServer, home: Path, offset: int
) -> None:
    content = bytes(range(256)) * 10_000
    (home / "large").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    program = f"""
read()
say(event="need", id="file:/large", sha256="{digest}", offset={offset}, size={len(content)})
got = b""
while (part := read()): got += zlib.decompress(part)
import hashlib
say(event="data", value=[len(got), hashlib.sha256(got).hexdigest()])
say(event="end")
"""
    events = run(connection(server), program, blobs={digest: home / "large"})
    rest = content[offset:]
    assert events[-2]["value"] == [len(rest), hashlib.sha256(rest).hexdigest()]
    sent = [event["bytes"] for event in events if event["event"] == "progress"]
    assert sent == sorted(sent) and sent[-1] == len(content)


def test_a_crash_of_the_program_shows_its_last_lines(server: SshServer) -> None:
    with pytest.raises(AgentError, match=r"during file:/x .exit status 1[\s\S]*ZeroDivisionError"):
        run(connection(server), "read(); say(event='start', id='file:/x'); 1 / 0")


def test_a_program_that_is_killed_is_no_crash_of_ours(server: SshServer) -> None:
    with pytest.raises(AgentError, match=r"was ended on the target .*Killed"):
        run(connection(server), "import os; os.kill(os.getpid(), 9)")


def test_a_dropped_connection_says_what_was_running_and_what_to_do(server: SshServer) -> None:
    program = "read(); say(event='start', id='package:rsyslog'); import time; time.sleep(60)"
    c = connection(server)
    with pytest.raises(ConnectionLostError, match=r"during package:rsyslog .*stops; run the same again"):
        transport.run_agent(
            c, APPLY, {}, lambda event: server.drop(), program=(READ + SAY + program).encode()
        )


def test_a_silent_server_is_given_up(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_channel, "QUIET_SECONDS", 0.15)
    with freezing(server) as (port, freeze):
        c = connection(server, port=port)
        with pytest.raises(ConnectionLostError, match="no answer for"):
            program = READ + SAY + "say(event='start', id='a'); import time; time.sleep(60)"
            transport.run_agent(c, APPLY, {}, lambda event: freeze.set(), program=program.encode())


def test_a_server_that_falls_silent_before_the_start_is_given_up(
    server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root_channel, "QUIET_SECONDS", 0.1)
    with freezing(server) as (port, freeze):
        c = connection(server, port=port)
        c.open()
        freeze.set()
        with pytest.raises(ConnectionLostError, match="the start of the agent"):
            run(c)


def test_a_quiet_program_on_a_live_connection_is_waited_for(
    server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root_channel, "QUIET_SECONDS", 0.05)
    assert run(connection(server), "import time; time.sleep(0.3); say(event='end')") == [{"event": "end"}]


def test_asks_with_arguments_that_no_shell_touches(server: SshServer) -> None:
    words = ("a b", "$HOME", "`id`", "it's", 'say "x"', "*", "a\nb", "")
    with connection(server) as c:
        status, out, _ = transport.ask(c, ("printf", "%s|", *words))
    assert (status, out.decode()) == (0, "".join(f"{word}|" for word in words))


def test_asks_with_stdin_and_hears_both_streams_and_the_status(server: SshServer) -> None:
    with connection(server) as c:
        answer = transport.ask(c, ("sh", "-c", "cat; echo no >&2; exit 3"), b"x" * 300_000)
    assert answer == (3, b"x" * 300_000, b"no\n")


def test_the_server_says_on_which_port_it_was_reached(server: SshServer) -> None:
    with connection(server) as c:
        assert transport.server_port(c) == server.port


def test_passwordless_sudo_needs_nothing(as_user: SshServer, home: Path) -> None:
    (home / "passwordless").touch()
    assert run(connection(as_user, "op"))[-1] == {"event": "end"}
    assert "python3" in (home / "as-root").read_text()


def test_sudo_takes_the_configured_password_on_stdin_only(as_user: SshServer, home: Path) -> None:
    c = connection(as_user, "pw", sudo={"password": "secret"})
    status, out, err = transport.ask(c, ("sh", "-c", "cat; echo done >&2"), b"for the command")
    assert (status, out, err) == (0, b"for the command", b"done\n")
    assert "secret" not in (home / "as-root").read_text()
    assert run(c)[-1] == {"event": "end"}


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_missing_or_wrong_sudo_password_names_the_flag(as_user: SshServer, password: str | None) -> None:
    c = connection(as_user, "pw", sudo={"password": password})
    with c, pytest.raises(SudoError, match="--prompt-for-sudo-password"):
        transport.ask(c, ("true",))


def test_a_target_without_sudo_says_so(as_user: SshServer, home: Path) -> None:
    (home / "bin" / "sudo").write_text("#!/bin/sh\necho 'knockmap no-sudo' >&2; exit 126\n")
    with connection(as_user, "op") as c, pytest.raises(SudoError, match="there is no sudo; log in as root"):
        transport.ask(c, ("true",))


def test_a_password_that_has_to_be_changed_first_is_said(as_user: SshServer, home: Path) -> None:
    said = "WARNING: Your password has expired.\nPassword change required but no TTY available."
    (home / "bin" / "sudo").write_text(f"#!/bin/sh\necho '{said}' >&2; exit 1\n")
    with connection(as_user, "op") as c, pytest.raises(SudoError, match="choose a new password first"):
        transport.ask(c, ("true",))


def without_python(c: VerifiedConnection, job: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A target whose python3 lacks a module that nobody has."""
    start = (*transport._START[:-1], transport.LOADER.replace("json shutil", "no_such_module"))
    monkeypatch.setattr(transport, "_START", start)
    return run(c, job=job)


def test_check_mode_only_says_that_python_would_come(
    server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, result, notice = without_python(connection(server), CHECK, monkeypatch)
    assert (result["id"], result["status"]) == ("package:python3", "changed")
    assert "no usable python3 yet" in notice["text"]


APT = """#!/bin/sh
case "$*" in
  *" update") touch {home}/updated ;;
  *) [ -e {home}/updated ] && [ -e {home}/network ] || {{ echo "E: Temporary failure resolving 'deb.example'"; exit 100; }}
     touch {home}/installed ;;
esac
"""
DPKG_QUERY = """#!/bin/sh
echo "ii  base-files"; echo "rc  gone"; [ ! -e {home}/installed ] || echo "ii  python3"
"""


@pytest.fixture
def apt(home: Path, server: SshServer) -> Path:
    """Stand-ins for apt-get and dpkg; apt-get works if there is a file `network`, after an update."""
    stand_ins = {"apt-get": APT, "dpkg-query": DPKG_QUERY, "dpkg": "#!/bin/sh\n", "sleep": "#!/bin/sh\n"}
    for name, text in stand_ins.items():
        (home / "bin" / name).write_text(text.format(home=home))
        (home / "bin" / name).chmod(0o755)
    return home


def test_apt_that_cannot_install_python_is_explained_and_quoted(
    server: SshServer, apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        BootstrapError, match=r"cannot resolve deb.example: check its DNS[\s\S]*\nE: Temporary"
    ):
        without_python(connection(server), APPLY, monkeypatch)


def test_python_is_installed_after_an_update_and_what_came_is_known(server: SshServer, apt: Path) -> None:
    (apt / "network").touch()
    events: list[dict[str, Any]] = []
    with connection(server) as c:
        assert bootstrap.install(c, events.append) == ["python3"]
    assert (events[0]["event"], events[-1]["status"]) == ("start", "changed")
