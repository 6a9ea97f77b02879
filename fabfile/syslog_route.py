"""The kernel's lines about SYNs stand in /var/log/iptables.log and no other log file, rotated, for one group to read.

rsyslog writes them, or syslog-ng where that is installed; a box that has only the journal gets rsyslog. Stamps are RFC
3339 in UTC with microseconds. The journal reads the kernel's log by itself and keeps its copy, within its own limits.
syslog-ng keeps its own copy in kern.log, since Debian reads our file last there.
"""

from __future__ import annotations

from fabric import Connection  # type: ignore[import-untyped]

from fabfile.engine import fleet
from fabfile.engine.converge import converge
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import Command, File, Package, Resource, Service, User, render
from fabfile.iptables_log import CONFIG, PREFIX
from fabfile.settings import Settings

# Reads the log, runs the collector.
READER = User("knockmap")
LOG = File("/var/log/iptables.log", mode=0o640, owner="@@fact.log_owner@@", group=READER.user)
RSYSLOG, SYSLOG_NG = ("logger", "rsyslog"), ("logger", "syslog-ng")
# logrotate itself writes it, with this mode.
ROTATED = File("/var/lib/knockmap/logrotate.status", mode=0o640)


def config(path: str, name: str, **values: object) -> File:
    """A file of ours that names the log, its reader and `values`."""
    text = render(f"syslog_route/{name}.j2", log=LOG.path, group=READER.user, **values)
    return File(path, text=text)


def drop_in(path: str, name: str, verify: tuple[str, ...], when: tuple[str, str]) -> File:
    text = config(path, name, prefix=PREFIX).text
    return File(path, text=text, verify=verify, when=when)


def unit(name: str) -> File:
    return File(f"/etc/systemd/system/{name}", text=render(f"syslog_route/{name}"))


def resources(settings: Settings) -> list[Resource]:
    """In order of application; what does not fit the target's syslog daemon does not exist there."""
    rsyslog = drop_in(
        "/etc/rsyslog.d/10-knockmap.conf", "rsyslog.conf", verify=("rsyslogd", "-N1"), when=RSYSLOG
    )
    syslog_ng = drop_in(
        "/etc/syslog-ng/conf.d/knockmap.conf", "syslog-ng.conf", verify=("syslog-ng", "-s"), when=SYSLOG_NG
    )
    rotation = config(
        "/etc/knockmap/logrotate.conf",
        "logrotate.conf",
        megabytes=settings.log_rotate_megabytes,
        keep=settings.log_rotate_keep,
    )
    at_boot = config("/etc/tmpfiles.d/knockmap.conf", "tmpfiles.conf")
    service, timer = unit("knockmap-logrotate.service"), unit("knockmap-logrotate.timer")
    # Ubuntu's rsyslogd is no root: a log that it has to make anew it may only give to a group that it is in.
    member = Command(
        f"rsyslogd may give the log to {READER.user}",
        ("gpasswd", "-a", "syslog", READER.user),
        unless=("sh", "-c", f"id -nG syslog | grep -qw {READER.user}"),
        undo=("gpasswd", "-d", "syslog", READER.user),
        when=("log_owner", "syslog"),
    )
    return [
        Package("rsyslog", when=RSYSLOG),
        Package("logrotate"),
        *(READER, member, CONFIG, LOG, ROTATED, at_boot, rsyslog, syslog_ng),
        # Also when somebody removed the log: the daemon would go on writing into the removed file.
        Service("rsyslog.service", restart_on=(rsyslog, LOG, member), when=RSYSLOG),
        Service("syslog-ng.service", restart_on=(syslog_ng, LOG), when=SYSLOG_NG),
        *(rotation, service, timer),
        Service("knockmap-logrotate.timer", restart_on=(timer,)),
    ]


@host_task
def syslog_route(c: Connection, check: bool = False, diff: bool = False) -> Report:
    """Write who knocks to /var/log/iptables.log, and nowhere else, rotated by day and size."""
    plan = {"syslog_route": resources(fleet.settings(c))}
    return converge(c, plan, check=check, diff=diff)
