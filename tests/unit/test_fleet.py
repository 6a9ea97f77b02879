"""From a command line to hosts: flags, exit codes, several hosts at once; over real SSH to servers in this process."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabric.config import Config
from fabric.main import Fab
from invoke.collection import Collection
from invoke.exceptions import Exit

import fabfile
from fabfile import export
from fabfile.engine import fleet, transport
from fabfile.engine.errors import HostError, UsageError
from fabfile.engine.report import Report, Result
from fabfile.settings import Settings
from tests.unit.ssh_server import SshServer, ed25519_key, serving

Fabric = Callable[..., int]
seen: list[dict[str, Any]] = []
together = threading.Barrier(2, timeout=2)
at_work: list[str] = []


def report(c: Any, status: str, check: bool = False) -> Report:
    c.open()
    c.screen.event({"event": "result", "id": "file:/x", "task": "t", "status": status}, check)
    return Report(c.original_host, check, (Result("file:/x", "t", status),))


@fleet.host_task(help={"status": "What the resource turns out to be."})
def deploy(c: Any, status: str = "ok", check: bool = False, diff: bool = False) -> Report:
    """Make it so.

    At length."""
    seen.append({"check": check, "diff": diff, "settings": fleet.settings(c)})
    return report(c, status, check)


@fleet.host_task
def port(c: Any) -> str:
    """Say where."""
    return f"port {transport.server_port(c)}"


@fleet.host_task
def meet(c: Any) -> None:
    """Wait until another host is at work too."""
    c.open()
    together.wait()


@fleet.host_task
def work(c: Any) -> None:
    """Take a while, alone."""
    at_work.append(c.original_host)
    time.sleep(0.1)
    assert at_work == [c.original_host]
    at_work.clear()


@fleet.host_task
def refuse(c: Any, kind: str = "host") -> None:
    """Fail."""
    if kind == "bug":
        raise RuntimeError("oops")
    raise {"host": HostError, "usage": UsageError}[kind]("it cannot be")


@fleet.host_task
def run(c: Any, command: str) -> None:
    """Run a command."""
    c.run(command, in_stream=False)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    seen.clear()
    return tmp_path


@pytest.fixture
def servers(home: Path) -> Iterator[list[SshServer]]:
    """Two servers, `one` and `two` in ssh_config."""
    key = ed25519_key()
    with serving(home, key) as one, serving(home, key) as two:
        hosts = "".join(
            f"Host {name}\n  HostName 127.0.0.1\n  Port {server.port}\n  HostKeyAlias {name}\n"
            for name, server in (("one", one), ("two", two))
        )
        hosts += f"Host *\n  UserKnownHostsFile {home}/known\n"
        (home / "ssh_config").write_text(hosts)
        (home / "known").write_text(f"one,two {key.get_name()} {key.get_base64()}\n")
        yield [one, two]


@pytest.fixture
def fab(home: Path, servers: list[SshServer], monkeypatch: pytest.MonkeyPatch) -> Fabric:
    """Run `fab` with these tasks as an operator does; gives the exit status."""
    monkeypatch.setenv("KNOCKMAP_SSH_PORT", str(servers[0].port))
    for field in ("HOSTS", "STACK"):
        monkeypatch.delenv(f"KNOCKMAP_{field}", raising=False)

    def call(*words: str) -> int:
        tasks = Collection(deploy, port, meet, work, refuse, run, export.export)
        tasks.configure(
            {"connect_kwargs": {"password": "login", "look_for_keys": False, "allow_agent": False}}
        )
        program = Fab(name="Fabric", config_class=Config, namespace=tasks)
        fleet.install(program)
        with pytest.raises(SystemExit) as end:
            program.run(["fab", "-S", str(home / "ssh_config"), *words])
            raise SystemExit(0)
        return int(end.value.code or 0)

    return call


def test_runs_on_a_host_and_counts(fab: Fabric, capsys: pytest.CaptureFixture[str]) -> None:
    assert fab("-H", "one", "deploy", "--status", "changed") == 0
    assert capsys.readouterr().out == "changed  file:/x\n0 ok, 1 changed, 0 failed, 0 skipped\n"


def test_the_shared_flags_are_there_without_being_named_by_the_body(
    fab: Fabric, capsys: pytest.CaptureFixture[str]
) -> None:
    fab("--help", "deploy")
    shown = capsys.readouterr().out
    for flag in ("--check", "--diff", "--fail-on-change", "--verbose", "--json", "--limit", "--accept-new"):
        assert flag in shown
    assert "What the resource turns out to be." in shown
    fab("--help", "port")
    shown = capsys.readouterr().out
    assert "--limit" in shown and "--check" not in shown


@pytest.mark.parametrize("flags", [("deploy", "--check"), ("deploy", "--diff"), ("--dry", "deploy")])
def test_whoever_asks_what_would_change_changes_nothing(fab: Fabric, flags: tuple[str, ...]) -> None:
    fab("-H", "one", *flags)
    assert [call["check"] for call in seen] == [True]


def test_the_list_shows_the_first_line(fab: Fabric, capsys: pytest.CaptureFixture[str]) -> None:
    fab("--list")
    shown = capsys.readouterr().out
    assert "Make it so." in shown and "At length" not in shown


@pytest.mark.parametrize(("words", "check"), [((), False), (("--check",), True)])
def test_check_reaches_the_body(fab: Fabric, words: tuple[str, ...], check: bool) -> None:
    fab("-H", "one", "deploy", *words)
    assert seen[0]["check"] is check


def test_invokes_dry_means_check(fab: Fabric) -> None:
    fab("--dry", "-H", "one", "deploy")
    assert seen[0]["check"] is True


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("deploy",), 0),
        (("deploy", "--status", "changed"), 0),
        (("deploy", "--status", "changed", "--fail-on-change"), 1),
        (("deploy", "--fail-on-change"), 0),
        (("deploy", "--status", "failed"), 1),
        (("refuse",), 1),
        (("refuse", "--kind", "bug"), 1),
        (("refuse", "--kind", "usage"), 2),
        (("deploy", "--limit", "0"), 2),
        (("deploy", "--nonsense"), 2),
        (("run", "false"), 1),
        (("run", "true"), 0),
    ],
)
def test_exit_codes(fab: Fabric, words: tuple[str, ...], status: int) -> None:
    assert fab("-H", "one", *words) == status


@pytest.mark.parametrize(
    "words", [("rotate-secrets",), ("migrate",), ("user.add", "anna"), ("user.remove", "anna")]
)
def test_what_cannot_be_tried_refuses_dry(words: tuple[str, ...]) -> None:
    name = words[0]
    found = fabfile.ns[name]
    c = SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(dry=True)))
    with pytest.raises(UsageError, match=f"{name}: cannot be tried with --dry"):
        found.body(c, *words[1:])


@pytest.mark.parametrize("setting", ["elastic_hosts", "elastic_cloud_id"])
@pytest.mark.parametrize("name", ["scanners", "export", "migrate"])
def test_where_events_are_elsewhere_the_host_is_not_asked_for_them(
    tmp_path: Path, name: str, setting: str
) -> None:
    key = tmp_path / "key"
    key.write_text("id:key")
    given = {"elastic_hosts": ["https://es.example:9200"], "elastic_cloud_id": "many:ZXM="}[setting]
    section = {setting: given, "elastic_api_key_file": str(key)}
    config = SimpleNamespace(run=SimpleNamespace(dry=False), get=lambda name: section)
    c = SimpleNamespace(config=config, original_host="one", many=False)  # whatever connects fails here
    with pytest.raises(UsageError, match=rf"{name}: the events are in another cluster \({setting}\)"):
        fabfile.ns[name].body(c)


def test_several_hosts_are_not_exported_into_one_file(
    fab: Fabric, servers: list[SshServer], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fab("-H", "one,two", "export", "--output", "all.csv") == 2
    assert "--output all.csv: several hosts" in capsys.readouterr().err
    assert [server.logins for server in servers] == [0, 0] and not list(home.glob("all.csv*"))
    assert fab("-H", "one", "export", "--output", "all.csv") == 1  # it connects: there is no knockmap
    assert servers[0].logins == 1


def test_an_expected_failure_is_one_sentence(fab: Fabric, capsys: pytest.CaptureFixture[str]) -> None:
    fab("-H", "one", "refuse")
    assert capsys.readouterr().err == "it cannot be\n"


def test_without_a_host_nothing_runs_and_it_says_how_to_name_one(
    fab: Fabric, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fab("deploy") == 2
    error = capsys.readouterr().err
    for way in ("-H", "KNOCKMAP_HOSTS", "fabric.yaml"):
        assert way in error
    assert not seen


def test_hosts_of_the_settings_are_taken(fab: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCKMAP_HOSTS", "one,two")
    assert fab("deploy") == 0
    assert len(seen) == 2
    assert fab("-H", "one", "deploy") == 0
    assert len(seen) == 3


def test_a_wrong_setting_is_refused_before_connecting(
    fab: Fabric, servers: list[SshServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOCKMAP_SSH_PROT", "2222")
    assert fab("-H", "one", "deploy") == 2
    assert not seen and servers[0].logins == 0


@pytest.mark.parametrize("host", ["one:ssh", "one:70000"])
def test_a_host_that_cannot_be_is_refused(fab: Fabric, host: str) -> None:
    assert fab("-H", f"two,{host}", "deploy") == 2
    assert not seen


def test_accept_new_becomes_the_setting(fab: Fabric) -> None:
    fab("-H", "one", "deploy", "--accept-new")
    chosen: Settings = seen[0]["settings"]
    assert chosen.ssh_accept_new


def test_hosts_run_at_the_same_time(fab: Fabric) -> None:
    assert fab("-H", "one,two", "meet") == 0


def test_the_limit_is_how_many_hosts_are_worked_on_at_once(fab: Fabric) -> None:
    assert fab("-H", "one,two", "work", "--limit", "1") == 0
    assert fab("-H", "one,two", "work", "--limit", "2") == 1
    assert fab("-H", "one,two", "work", "--limit", "0") == 2


def test_one_bad_host_does_not_stop_the_others_and_the_last_lines_name_it(
    fab: Fabric, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fab("-H", "one,two,nowhere.invalid", "deploy", "--status", "changed") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("nowhere.invalid  failed: ")
    assert sorted(lines[-3:-1]) == [
        f"{host:<15}  0 ok, 1 changed, 0 failed, 0 skipped" for host in ("one", "two")
    ]
    start = lines.index(next(line for line in lines if line.startswith("── one ")))
    assert lines[start + 1] == "changed  file:/x"


def test_json_is_one_document_for_each_host(fab: Fabric, capsys: pytest.CaptureFixture[str]) -> None:
    assert fab("-H", "one,nowhere.invalid", "deploy", "--json") == 1
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {d["host"]: d["ok"] for d in documents} == {"one": True, "nowhere.invalid": False}


def test_a_text_is_printed_as_it_is(
    fab: Fabric, servers: list[SshServer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fab("-H", "one", "port") == 0
    assert capsys.readouterr().out == f"port {servers[0].port}\n"


def test_a_host_stops_at_its_first_failing_task(fab: Fabric) -> None:
    assert fab("-H", "one", "refuse", "deploy") == 1
    assert not seen


def test_also_a_bare_command_goes_over_a_verified_connection(
    fab: Fabric, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "known").write_text("")
    assert fab("-H", "one", "--", "true") == 1
    assert "the host is unknown" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("-S", "missing"), ("-f", "broken.yaml"), ("-f", "odd.ini")])
def test_a_configuration_that_cannot_be_read_is_a_sentence(
    fab: Fabric, words: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("knockmap: [\n")
    (tmp_path / "odd.ini").write_text("")
    assert fab(words[0], str(tmp_path / words[1]), "-H", "127.0.0.1", "port") == 2
    said = capsys.readouterr().err
    assert words[1] in said and "Traceback" not in said


def test_a_broken_fabric_yaml_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "fabric.yaml").write_text("knockmap: [\n")
    config = Config(lazy=True)
    config.set_project_location(str(tmp_path))
    with pytest.raises(Exit, match=r"fabric\.yaml"):
        config.load_project()


def test_a_task_may_be_written_with_underscores() -> None:
    words = ["rotate_secrets", "--since", "pipeline_x", "undo", "install_elk"]
    written = fleet.with_dashes(words, ["rotate-secrets", "install-elk", "undo"])
    assert written == ["rotate-secrets", "--since", "pipeline_x", "undo", "install-elk"]


def test_who_stops_reading_the_output_stops_no_work() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as pipe:
        out = fleet.Unbroken(pipe)
        for _ in range(3):
            print("changed", file=out, flush=True)
        assert not out.isatty()
