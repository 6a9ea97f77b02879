"""The agent on a folder that stands for a target: the real program, no root, no network."""

from __future__ import annotations

import fcntl
import getpass
import grp
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fabfile.engine.agent import converge, facts, item, journal, machine, main, packages, program, units, wire
from fabfile.engine.resources import (
    Command,
    Directory,
    File,
    Link,
    Package,
    Requirement,
    Resource,
    Secret,
    Service,
    manifest,
)

ME = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("etc", "usr", "var/lib", "root"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Send a job to the agent through its real frames; gives the events, without `start` and `end`."""

    def send(
        *resources: Resource, mode: str = "apply", task: str = "t", answer: bytes = b"", **job: Any
    ) -> Any:
        job = {"mode": mode, "diff": True, "resources": manifest({task: resources}), **job}
        body = json.dumps(job).encode()
        stdin = io.TextIOWrapper(io.BytesIO(b"%d\n" % len(body) + body + answer))
        monkeypatch.setattr("sys.stdin", stdin)
        for state in (item.changed_ids, item.observed, facts.facts, units.asked_units):
            state.clear()
        monkeypatch.setattr(wire, "gone", False)
        main.main()
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert events.pop() == {"event": "end"}
        return [event for event in events if event["event"] != "start"]

    return send


def undo(run: Run, *, check: bool = False, **options: Any) -> list[dict[str, Any]]:
    wanted = {"tasks": [], "packages": False, "data": False, "keep_edited": False, **options}
    return run(mode="undo", undo=wanted, check=check)


def statuses(events: list[dict[str, Any]]) -> list[str]:
    return [event["status"] for event in events if event["event"] == "result"]


def snapshot(root: Path) -> dict[str, Any]:
    """Everything below root: type, mode, content, time."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None,
            path.lstat().st_mtime_ns if path.is_file() else None,
        )
        for path in sorted(root.rglob("*"))
    }


def test_writes_a_new_file_with_its_mode_and_says_so(run: Run, root: Path) -> None:
    (event,) = run(File("/etc/a", text="one\n", mode=0o640, **ME))
    assert (event["status"], event["message"]) == ("changed", "new")
    assert "+one" in event["diff"]
    assert (root / "etc/a").read_text() == "one\n"
    assert (root / "etc/a").stat().st_mode & 0o7777 == 0o640


def test_second_run_changes_nothing(run: Run) -> None:
    plan = [
        Directory("/etc/d", **ME),
        File("/etc/d/a", text="one\n", **ME),
        Link("/etc/l", "d/a"),
        Secret("web"),
    ]
    assert statuses(run(*plan)) == ["changed"] * 4
    assert statuses(run(*plan)) == ["ok"] * 4


def test_repairs_content_mode_and_link_after_drift(run: Run, root: Path) -> None:
    plan = [File("/etc/a", text="one\n", **ME), File("/etc/b", text="b", **ME), Link("/etc/l", "a")]
    run(*plan)
    (root / "etc/a").write_text("two\n")
    (root / "etc/b").chmod(0o600)
    (root / "etc/l").unlink()
    assert [e["message"] for e in run(*plan)] == ["content", "mode 0600 → 0644", "new"]
    assert (root / "etc/a").read_text() == "one\n"


def test_check_writes_nothing_and_shows_what_apply_then_does(run: Run, root: Path) -> None:
    (root / "etc/old").write_text("old\n")
    plan = [
        Directory("/etc/d", **ME),
        File("/etc/d/a", text="one @@secret.web@@\n", **ME),
        File("/etc/old", text="new\n", **ME),
        Secret("web"),
        Command("make x", ("touch", str(root / "etc/x")), unless=("test", "-e", str(root / "etc/x"))),
    ]
    plan.insert(0, plan.pop(3))
    before = snapshot(root)
    would = run(*plan, mode="check")
    assert snapshot(root) == before
    assert statuses(would) == ["changed"] * 5
    assert [e["id"] for e in run(*plan) if e["status"] == "changed"] == [e["id"] for e in would]


def test_undo_puts_back_bytes_modes_times_and_leaves_no_trace(run: Run, root: Path) -> None:
    (root / "etc/a").write_bytes(b"mine\xff\n")
    (root / "etc/a").chmod(0o600)
    os.utime(root / "etc/a", ns=(1, 1_600_000_000_123_456_789))
    (root / "etc/l").symlink_to("elsewhere")
    before = snapshot(root)
    plan = [
        Secret("web"),
        Directory("/etc/d", **ME),
        File("/etc/d/b", text="@@secret.web@@", mode=0o600, **ME),
        File("/etc/a", text="ours\n", **ME),
        Link("/etc/l", "a"),
    ]
    run(*plan)
    run(File("/etc/a", text="ours again\n", **ME))
    assert statuses(undo(run)) == ["changed"] * 5
    assert snapshot(root) == before


def test_undo_of_one_task_leaves_the_others(run: Run, root: Path) -> None:
    run(File("/etc/a", text="a", **ME), task="one")
    run(File("/etc/b", text="b", **ME), task="two")
    undo(run, tasks=["one"])
    assert not (root / "etc/a").exists() and (root / "etc/b").exists()


def test_undo_refuses_an_edited_file_before_it_touches_anything(run: Run, root: Path) -> None:
    (root / "etc/a").write_text("theirs\n")
    run(File("/etc/a", text="ours\n", **ME), File("/etc/b", text="b\n", **ME))
    (root / "etc/a").write_text("edited\n")
    before = snapshot(root)
    refused, skipped = sorted(undo(run), key=lambda event: event["status"])
    assert (refused["status"], skipped["status"]) == ("failed", "skipped")
    assert "-ours" in refused["diff"] and "+edited" in refused["diff"]
    assert snapshot(root) == before
    undo(run, keep_edited=True)
    assert (root / "etc/a").read_text() == "edited\n" and not (root / "etc/b").exists()


def test_undo_keeps_data_unless_told(run: Run, root: Path) -> None:
    run(File("/etc/log", mode=0o640, **ME), Directory("/etc/db", **ME))
    (root / "etc/log").write_text("a line")
    (root / "etc/db/rows").write_text("rows")
    events = undo(run)
    assert all("--data" in event["message"] for event in events)
    assert (root / "etc/log").read_text() == "a line" and (root / "etc/db/rows").exists()
    for name in ("log.1", "log.12.gz", "log.conf"):
        (root / "etc" / name).touch()
    undo(run, data=True)
    assert [path.name for path in (root / "etc").iterdir()] == ["log.conf"]


def test_a_refused_file_never_gets_into_place(run: Run, root: Path) -> None:
    (root / "etc/a").write_text("good\n")
    plan = File("/etc/a", text="bad\n", validate=("grep", "-q", "good", "{path}"), **ME)
    (event,) = run(plan)
    assert event["status"] == "failed" and "not in place" in event["message"]
    assert (root / "etc/a").read_text() == "good\n"
    assert [path.name for path in (root / "etc").iterdir()] == ["a"]


def test_a_file_that_breaks_the_whole_is_taken_back(run: Run, root: Path) -> None:
    (root / "etc/a").write_text("good\n")
    (event,) = run(File("/etc/a", text="bad\n", verify=("grep", "-q", "good", str(root / "etc/a")), **ME))
    assert event["status"] == "failed" and "what was there before is back" in event["message"]
    assert (root / "etc/a").read_text() == "good\n"


def test_a_file_that_a_killed_run_left_unverified_is_verified_by_the_next(run: Run, root: Path) -> None:
    (root / "etc/a").write_text("good\n")
    verify = ("grep", "-q", "^taken", str(root / "etc/judge"))
    (root / "etc/judge").write_text("taken\n")
    plan = File("/etc/a", text="new\n", verify=verify, **ME)
    assert statuses(run(plan)) == ["changed"]
    journal = root / "var/lib/knockmap/journal/journal.json"
    entries = json.loads(journal.read_text())
    entries["file:/etc/a"]["unfinished"] = True  # as a kill in the middle of the verification leaves it
    journal.write_text(json.dumps(entries))
    (root / "etc/judge").write_text("refused\n")
    (event,) = run(plan)
    assert event["status"] == "failed" and "what was there before is back" in event["message"]
    assert (root / "etc/a").read_text() == "good\n"
    (root / "etc/judge").write_text("taken\n")
    assert [statuses(run(plan)), statuses(run(plan))] == [["changed"], ["ok"]]


def test_the_first_failure_stops_and_the_rest_is_skipped(run: Run, root: Path) -> None:
    events = run(
        File("/etc/a", text="a", **ME),
        File("/nowhere/b", text="b", **ME),
        File("/etc/c", text="c", **ME),
    )
    assert statuses(events) == ["changed", "failed", "skipped"]
    assert not (root / "etc/c").exists()


def test_a_command_runs_only_while_its_guard_fails(run: Run, root: Path) -> None:
    mark = str(root / "etc/mark")
    command = Command("mark", ("sh", "-c", f"echo x >> {mark}"), unless=("test", "-e", mark))
    assert statuses(run(command) + run(command)) == ["changed", "ok"]
    assert (root / "etc/mark").read_text() == "x\n"


def test_secrets_are_random_private_and_never_shown(run: Run, root: Path) -> None:
    plan = [Secret("web", bits=160), File("/etc/a", text="key @@secret.web@@\n", mode=0o600, **ME)]
    events = run(*plan)
    secret = (root / "var/lib/knockmap/secrets/web").read_text()
    assert len(secret) == 32 and (root / "etc/a").read_text() == f"key {secret}\n"
    assert secret not in json.dumps(events)
    assert (root / "var/lib/knockmap/secrets/web").stat().st_mode & 0o777 == 0o600


def test_undo_keeps_a_secret_that_data_are_encrypted_with_unless_told(run: Run, root: Path) -> None:
    run(Secret("web"), Secret("of_data", data=True))
    secrets = root / "var/lib/knockmap/secrets"
    former = (secrets / "of_data").read_text()
    for check in (True, False):
        kept, _ = undo(run, check=check)
        assert kept["status"] == "ok" and "--data removes it" in kept["message"]
    assert [path.name for path in secrets.iterdir()] == ["of_data"]
    run(Secret("of_data", data=True))
    assert (secrets / "of_data").read_text() == former
    undo(run, data=True)
    assert not (root / "var/lib/knockmap").exists()


def large_file(tmp_path: Path, size: int = 3 << 20) -> Path:
    source = tmp_path / "big.mmdb"
    source.write_bytes(os.urandom(size))
    return source


def frames(data: bytes) -> bytes:
    out = b""
    for start in range(0, len(data), 1 << 20):
        packed = zlib.compress(data[start : start + (1 << 20)])
        out += b"%d\n" % len(packed) + packed
    return out + b"0\n"


def test_a_large_file_is_asked_for_once_and_then_known(run: Run, root: Path, tmp_path: Path) -> None:
    source = large_file(tmp_path)
    plan = File("/etc/big", source=source, **ME)
    events = run(plan, answer=frames(source.read_bytes()))
    assert [e["event"] for e in events] == ["need", "result"]
    assert (root / "etc/big").read_bytes() == source.read_bytes()
    assert statuses(run(plan)) == ["ok"]


def test_a_broken_transfer_goes_on_where_it_stopped(run: Run, root: Path, tmp_path: Path) -> None:
    source = large_file(tmp_path)
    plan, data = File("/etc/big", source=source, **ME), source.read_bytes()
    events = run(plan, answer=frames(data[: 1 << 20])[:-2])
    assert statuses(events) == ["failed"] and not (root / "etc/big").exists()
    events = run(plan, answer=frames(data[1 << 20 :]))
    assert events[0]["offset"] == 1 << 20
    assert hashlib.sha256((root / "etc/big").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_file_of_data_gets_rights_but_keeps_its_content(run: Run, root: Path) -> None:
    (root / "etc/log").write_text("precious")
    run(File("/etc/log", mode=0o600, **ME))
    assert (root / "etc/log").read_text() == "precious"
    assert (root / "etc/log").stat().st_mode & 0o777 == 0o600


def test_a_resource_for_another_kind_of_target_does_not_exist(run: Run, root: Path) -> None:
    assert run(File("/etc/a", text="a", when=("logger", "syslog-ng"), **ME)) == []
    assert statuses(run(File("/etc/a", text="@@fact.logger@@", when=("logger", "rsyslog"), **ME))) == [
        "changed"
    ]
    assert (root / "etc/a").read_text() == "rsyslog"


def test_an_interrupted_run_does_not_swallow_the_restart(root: Path) -> None:
    journal.Journal().await_restart("ssh.service", "file:/etc/a")
    assert journal.Journal().pending == {"ssh.service": ["file:/etc/a"]}
    journal.Journal().restarted("ssh.service")
    assert journal.Journal().pending == {}


def test_a_folder_where_a_file_shall_be_is_left_alone(run: Run, root: Path) -> None:
    (root / "etc/a").mkdir()
    (event,) = run(File("/etc/a", text="a", **ME))
    assert event["status"] == "failed" and "move it away" in event["message"]
    assert (root / "etc/a").is_dir()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("Err:1 x\n  Temporary failure resolving 'mirror.example'\n", "cannot resolve mirror.example"),
        ("E: Unable to locate package nosuch\n", "no package nosuch"),
        ("E: Release file for x is not valid yet (invalid for another 2h)\n", "clock"),
        ("E: You don't have enough free space in /var/cache/apt/archives/.\n", "disk is full"),
        (
            "Cannot initiate the connection to h:80 (::1). - connect (101: Network is unreachable)\n",
            "network",
        ),
    ],
)
def test_apt_says_its_cause_in_one_sentence(output: str, said: str) -> None:
    assert said in packages.apt_cause(output)


def test_a_lock_that_another_takes_right_before_apt_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = (100, "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 812 (apt-get)\n")
    answers = iter([lost, (0, "")])
    waited: list[str] = []
    monkeypatch.setattr(packages, "wait_for_locks", waited.append)
    monkeypatch.setattr(packages, "apt_run_once", lambda *argv: next(answers))
    monkeypatch.setattr(packages, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waited.append))
    assert packages.apt_run("package:a", "update") == (0, "")
    assert waited == ["package:a", 1, "package:a"]
    monkeypatch.setattr(packages, "LOCK_SECONDS", -1)
    answers = iter([lost])
    assert packages.apt_run("package:a", "update") == lost
    assert "another program held apt's lock /var/lib/apt/lists/lock" in packages.apt_cause(lost[1])


def test_the_program_is_one_source_that_answers_over_real_pipes() -> None:
    body = json.dumps(
        {"mode": "check", "diff": False, "resources": manifest({"t": [File("/nowhere/a", text="")]})}
    )
    source, job = program(), body.encode()
    loader = "import sys;b=sys.stdin.buffer;exec(compile(b.read(int(b.readline())),'agent','exec'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", loader],
        input=b"%d\n" % len(source) + source + b"%d\n" % len(job) + job,
        capture_output=True,
        check=True,
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "result", "end"]
    assert events[1]["status"] == "changed"


def test_the_agent_needs_nothing_but_the_standard_library() -> None:
    source = program().decode()
    imported = set(re.findall(r"(?:^|\\n)(?:import|from) (\w+)", source))
    assert imported <= set(sys.stdlib_module_names)


def test_a_wrong_clock_is_said_before_anything_is_touched(run: Run, root: Path) -> None:
    plan = [File("/etc/a", text="a", **ME), Package("no-such-package-anywhere")]
    failed, *skipped = run(*plan, time=time.time() - 3 * 86400)
    assert failed["status"] == "failed" and "clock is 72 hours ahead" in failed["message"]
    assert statuses(skipped) == ["skipped", "skipped"] and not (root / "etc/a").exists()


def test_a_full_disk_is_said_before_anything_is_touched(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converge, "FREE_BYTES", 1 << 60)
    failed, skipped = run(File("/etc/a", text="a", **ME))
    assert failed["status"] == "failed" and "make room" in failed["message"]
    assert skipped["status"] == "skipped" and not (root / "etc/a").exists()


def test_a_held_task_is_looked_at_and_left_alone(run: Run, root: Path) -> None:
    plan = File("/etc/a", text="a", **ME)
    assert run(plan, preflight=True) == []
    assert run(plan, held=["t"]) == [{"event": "data", "value": {"held": "file:/etc/a"}}]
    assert not (root / "etc/a").exists()
    run(plan)
    assert statuses(run(plan, held=["t"])) == ["ok"]


def test_two_runs_at_once_wait_for_each_other(run: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(root / "root", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    monkeypatch.setattr(main, "LOCK_SECONDS", 0)
    guard = ("/usr/bin/touch", str(root / "asked"))
    plan = [File("/etc/a", text="a", **ME), Command("asks", ("/bin/true",), unless=guard)]
    events = run(*plan)
    assert "another knockmap run" in events[-1]["message"] and not (root / "etc/a").exists()
    assert not (root / "asked").exists()  # what the other one still changes is not looked at
    os.close(fd)
    run(*plan)
    assert (root / "asked").exists()


def test_a_run_killed_before_it_wrote_down_what_it_did_can_be_undone(run: Run, root: Path) -> None:
    plan = File("/etc/a", text="a", **ME)
    run(plan)
    entries = journal.Journal()
    entries.entries[plan.id].update(after=entries.entries[plan.id]["before"], unfinished=True)
    entries.save()
    assert statuses(run(plan)) == ["ok"]
    assert statuses(undo(run)) == ["changed"] and not (root / "etc/a").exists()


def test_undo_of_a_task_keeps_a_folder_that_others_use_also_with_its_data(run: Run, root: Path) -> None:
    run(Directory("/etc/d", **ME), task="one")
    run(File("/etc/d/two", text="2", **ME), task="two")
    (event,) = undo(run, tasks=["one"], data=True)
    assert "other tasks" in event["message"] and (root / "etc/d/two").read_text() == "2"
    undo(run, data=True)
    assert not (root / "etc/d").exists()


# --- folders that are kept tidy -----------------------------------------------------------------------------------


def tidy(*names: str) -> list[Resource]:
    return [
        Directory("/etc/d", tidy=True, **ME),
        *(File(f"/etc/d/{name}", text=name, **ME) for name in names),
    ]


def there(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "etc/d").iterdir())


def test_what_a_task_plans_no_more_goes_from_its_folder_and_nothing_else(run: Run, root: Path) -> None:
    run(*tidy("old", "kept"))
    run(File("/etc/d/others", text="others", **ME), task="other")
    (root / "etc/d/mine").write_text("mine")
    before = snapshot(root)
    would = run(*tidy("kept", "new"), mode="check")
    assert snapshot(root) == before
    told = [(e["id"], e["message"]) for e in run(*tidy("kept", "new")) if e["status"] == "changed"]
    assert told == [("file:/etc/d/new", "new"), ("file:/etc/d/old", "removed")]
    assert [(e["id"], e["message"]) for e in would if e["status"] == "changed"] == told
    assert there(root) == ["kept", "mine", "new", "others"]
    assert statuses(run(*tidy("kept", "new"))) == ["ok"] * 3


def test_a_folder_that_is_not_tidy_keeps_what_is_planned_no_more(run: Run, root: Path) -> None:
    run(Directory("/etc/d", **ME), File("/etc/d/old", text="old", **ME))
    assert statuses(run(Directory("/etc/d", **ME))) == ["ok"] and there(root) == ["old"]


def test_undo_does_not_ask_for_what_was_taken_back(run: Run, root: Path) -> None:
    before = snapshot(root)
    run(*tidy("old"))
    run(*tidy("new"))
    assert statuses(undo(run)) == ["changed"] * 2 and snapshot(root) == before
    # Nor does it stumble over a file that somebody put in that place afterwards.
    run(*tidy("old"))
    run(*tidy())
    (root / "etc/d/old").write_text("mine")
    assert "failed" not in statuses(undo(run)) and there(root) == ["old"]


def test_a_file_whose_place_was_taken_comes_back_when_ours_is_planned_no_more(run: Run, root: Path) -> None:
    (root / "etc/d").mkdir()
    (root / "etc/d/a").write_text("mine")
    run(*tidy("a"))
    *_, event = run(*tidy())
    assert event["message"] == "back to what it was before us"
    assert (root / "etc/d/a").read_text() == "mine"
    assert statuses(run(*tidy())) == ["ok"]


def test_the_old_stays_until_the_new_is_in_place(run: Run, root: Path) -> None:
    run(*tidy("old"))
    events = run(*tidy("new"), File("/nowhere/b", text="b", **ME))
    assert statuses(events) == ["ok", "changed", "failed", "skipped"] and there(root) == ["new", "old"]
    (root / "etc/d/old").unlink()  # also if somebody was faster
    assert statuses(run(*tidy("new"))) == ["ok", "ok", "changed"]
    assert statuses(run(*tidy("new"))) == ["ok", "ok"]


# --- what must hold first, and what is kept from the screen --------------------------------------------------------


def program_in(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """A program of the target, first in its PATH."""
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (root / "bin" / name).chmod(0o755)
    monkeypatch.setitem(machine.ENVIRONMENT, "PATH", f"{root}/bin:/usr/bin:/bin")


@pytest.mark.parametrize("mode", ["apply", "check"])
@pytest.mark.parametrize("port", ["80", "443"])
def test_a_requirement_is_looked_at_before_anything_is_touched(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch, mode: str, port: str
) -> None:
    held = f"echo 'LISTEN 0 511 0.0.0.0:{port} 0.0.0.0:* users:((\"nginx\",pid=7,fd=3))'"
    program_in(root, monkeypatch, "ss", held)
    before = snapshot(root)
    events = run(
        File("/etc/a", text="a", **ME), Requirement("web_ports"), File("/etc/b", text="b", **ME), mode=mode
    )
    assert sorted(statuses(events)) == ["failed", "skipped", "skipped"]
    assert f"port {port} is taken by nginx" in next(e["message"] for e in events if e["status"] == "failed")
    assert snapshot(root) == before


def test_a_requirement_that_is_met_is_fine(run: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = 'LISTEN 0 5 *:8080 *:* users:(("nginx",pid=7,fd=3))\nLISTEN 0 5 *:80 *:* users:(("apache2",pid=8,fd=4))'
    program_in(root, monkeypatch, "ss", f"printf '{others}\n'")
    assert statuses(run(Requirement("web_ports"), File("/etc/a", text="a", **ME))) == ["ok", "changed"]


def test_no_diff_shows_a_secret_file(run: Run, root: Path) -> None:
    (event,) = run(File("/etc/key", text="the key", secret=True, **ME))
    assert event["status"] == "changed" and "the key" not in json.dumps(event)


def test_neither_does_undo_nor_is_a_copy_kept(run: Run, root: Path) -> None:
    run(
        Secret("token"),
        File("/etc/key", text="the key", secret=True, **ME),
        File("/etc/a", text="my @@secret.token@@", **ME),
    )
    token = (root / "var/lib/knockmap/secrets/token").read_text()
    for name in ("key", "a"):
        with (root / "etc" / name).open("a") as file:
            file.write("\none more line")
    for check in (True, False):
        events = undo(run, check=check)
        told = [event["diff"] for event in events if "changed by somebody" in event["message"]]
        assert len(told) == 2 and all("not shown" in text for text in told)
        assert "the key" not in json.dumps(events) and token not in json.dumps(events)
    copies = [path.read_bytes() for path in (root / "var/lib/knockmap/journal").glob("objects/*")]
    assert not any(b"the key" in copy or token.encode() in copy for copy in copies)


def test_undo_goes_on_where_a_secret_was_removed_by_hand(run: Run, root: Path) -> None:
    run(Secret("token"), File("/etc/a", text="a", **ME))
    (root / "var/lib/knockmap/secrets/token").unlink()
    events = undo(run, keep_edited=True)
    assert "failed" not in statuses(events), events
    assert not (root / "etc/a").exists()


SYSTEMCTL = """
case "$1" in
show) case "$2" in -P) echo running ;; *)
    for unit in one.service two.service; do
        [ {root}/etc/two -nt {root}/loaded ] && need=yes || need=no
        printf 'Id=%s\\nLoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\nNeedDaemonReload=%s\\n\\n' $unit $need
    done ;;
esac ;;
daemon-reload) touch {root}/loaded; echo reloaded >>{root}/did ;;
restart) echo "restarted $2" >>{root}/did ;;
esac
"""


def test_a_unit_file_that_changed_late_is_read_before_its_restart(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another unit was looked at in between, after which systemd's answer was kept."""
    monkeypatch.setattr(units.time, "sleep", lambda seconds: None)
    program_in(root, monkeypatch, "systemctl", SYSTEMCTL.format(root=root))
    (root / "loaded").touch()
    os.utime(root / "loaded", (1, 1))
    one, two = File("/etc/one", text="1", **ME), File("/etc/two", text="2", **ME)
    plan = [one, Service("one.service", restart_on=(one,)), two, Service("two.service", restart_on=(two,))]
    assert statuses(run(*plan)) == ["changed"] * 4
    assert (root / "did").read_text().splitlines() == [
        "restarted one.service",
        "reloaded",
        "restarted two.service",
    ]


@pytest.mark.parametrize(
    ("files", "sites"),
    [
        ({}, "ours"),
        ({"sites-enabled/zz-knockmap.conf": ""}, "ours"),
        ({"sites-enabled/000-default.conf": "shipped"}, "ours"),
        ({"sites-enabled/000-default.conf": "shipped", "page": "my own"}, "shared"),
        ({"sites-enabled/000-default.conf": "edited"}, "shared"),
        ({"sites-enabled/shop.conf": "", "sites-enabled/zz-knockmap.conf": ""}, "shared"),
    ],
)
def test_debians_example_page_is_told_from_a_site(
    root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], sites: str
) -> None:
    monkeypatch.setattr(facts, "facts", {})
    sum = hashlib.md5(b"shipped").hexdigest()
    program_in(
        root, monkeypatch, "dpkg-query", f"echo ' /etc/apache2/sites-available/000-default.conf {sum}'"
    )
    page, example = root / "var/www/html/index.html", root / "usr/share/apache2/default-site/index.html"
    for path, text in ((page, files.get("page", "it works")), (example, "it works")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    for name, text in files.items():
        if name != "page":
            path = root / "etc/apache2" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    assert facts.fact_apache_sites() == sites
