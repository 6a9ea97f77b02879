"""What the syslog daemons are told, and who may read the log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fabfile.engine.agent import facts, machine
from fabfile.engine.resources import Command, File, Package, Resource, Service
from fabfile.settings import Settings
from fabfile.syslog_route import LOG, READER, RSYSLOG, SYSLOG_NG, resources

LINE = "knockmap IN=eth0 OUT= MAC= SRC=192.0.2.1 DST=192.0.2.2 LEN=44 PROTO=TCP SPT=1 DPT=22 SYN URGP=0 "


def text(path: str, **values: object) -> str:
    found = next(r for r in resources(Settings(**values)) if isinstance(r, File) and r.path == path)  # type: ignore[arg-type]
    assert found.text is not None
    return found.text


def kept(message: str) -> str:
    """What the rsyslog template's expression keeps of a message."""
    expression = re.search(r'regex\.expression="(.*)"\)', text("/etc/rsyslog.d/10-knockmap.conf"))
    assert expression
    found = re.search(expression[1].replace(r"\\", "\\"), message)
    return found[1] if found else message


def on(logger: tuple[str, str]) -> list[Resource]:
    """The resources that exist where this is the syslog daemon."""
    return [r for r in resources(Settings()) if r.when in (None, logger)]


@pytest.mark.parametrize("stamp", ("", " ", "[ 8776.966472] ", " [123456.000001] "))
def test_the_kernels_own_stamp_is_left_out(stamp: str) -> None:
    assert kept(stamp + LINE) == LINE


def test_how_often_a_line_was_repeated_stays_readable() -> None:
    repeated = f"message repeated 5 times: [ {LINE}]"
    assert kept(repeated) == repeated
    assert kept(f" {repeated}") == repeated


def test_rsyslog_takes_only_lines_of_the_kernel_and_hands_them_to_nobody_else() -> None:
    drop_in = text("/etc/rsyslog.d/10-knockmap.conf")
    assert 'if $syslogfacility-text == "kern" and $msg contains "knockmap IN=" then {' in drop_in
    assert re.search(r"action\([^)]*/var/log/iptables\.log[^)]*\)\s+stop\s+}", drop_in)


def test_every_drop_in_is_tried_by_its_own_daemon() -> None:
    tried = {r.path: r.verify[0] for r in resources(Settings()) if isinstance(r, File) and r.verify}
    assert tried == {
        "/etc/rsyslog.d/10-knockmap.conf": "rsyslogd",
        "/etc/syslog-ng/conf.d/knockmap.conf": "syslog-ng",
    }


def test_rsyslog_is_never_installed_where_syslog_ng_is() -> None:
    packages = [name for r in on(SYSLOG_NG) if isinstance(r, Package) for name in r.names]
    assert packages == ["logrotate"]
    assert {r.name for r in on(SYSLOG_NG) if isinstance(r, Service)} >= {"syslog-ng.service"}
    assert "rsyslog.service" not in {r.name for r in on(SYSLOG_NG)}


def test_the_log_is_data_for_the_reader_alone() -> None:
    assert (LOG.text, LOG.mode, LOG.group) == (None, 0o640, READER.user)
    order = resources(Settings())
    assert order.index(READER) < order.index(LOG)


def test_the_daemon_restarts_for_its_drop_in_and_for_a_log_that_was_gone_only() -> None:
    (service,) = (r for r in on(RSYSLOG) if r.name == "rsyslog.service")
    assert isinstance(service, Service)
    assert [r.name for r in service.restart_on[:2]] == ["/etc/rsyslog.d/10-knockmap.conf", LOG.path]
    # A running process has the groups that it began with.
    (member,) = service.restart_on[2:]
    assert isinstance(member, Command) and member.when == ("log_owner", "syslog")


def test_rotation_follows_the_settings_and_stays_out_of_the_shared_folder() -> None:
    rotation = text("/etc/knockmap/logrotate.conf", log_rotate_megabytes=7, log_rotate_keep=3)
    assert re.search(r"\bmaxsize 7M\n\s+rotate 3\n", rotation)
    assert not [r for r in resources(Settings()) if r.name.startswith("/etc/logrotate.d/")]


@pytest.mark.parametrize(
    ("files", "owner"),
    (
        ({"etc/os-release": "ID=debian\n"}, "root"),
        ({"etc/os-release": "ID=ubuntu\n"}, "syslog"),
        ({"etc/rsyslog.conf": "$FileOwner root\n", "etc/os-release": "ID=ubuntu\n"}, "root"),
        ({"etc/rsyslog.conf": "$PrivDropToUser syslog\n"}, "syslog"),
        ({"etc/os-release": "ID=ubuntu\n", "usr/sbin/syslog-ng": ""}, "root"),
    ),
)
def test_the_log_belongs_to_whom_the_daemon_runs_as(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], owner: str
) -> None:
    monkeypatch.setattr(machine, "ROOT", str(tmp_path))
    monkeypatch.setattr(facts, "facts", {})
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert facts.fact_log_owner() == owner
