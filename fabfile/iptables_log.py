"""Every SYN to port 22 becomes a line of the kernel's log, over IPv4 and IPv6, beside whatever firewall is there.

The chain is ours alone; others' rules are neither saved nor changed, and no firewall is installed or removed. The rules
are back after a reboot and after ufw, firewalld and nftables were reloaded; after a flush by hand within 5 minutes.
"""

from __future__ import annotations

from fabric import Connection  # type: ignore[import-untyped]

from fabfile.engine import fleet
from fabfile.engine.converge import converge
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import Directory, File, Package, Resource, Rules, Service, render
from fabfile.settings import Settings

CHAIN = "KNOCKMAP"
# At most 29 characters, else the kernel cuts it off without a word. The blank is part of it.
PREFIX = "knockmap "
PROGRAM = "/usr/local/lib/knockmap/rules"
CONFIG = Directory("/etc/knockmap")
PROGRAMS = Directory("/usr/local/lib/knockmap")


def rule_file(family: int, settings: Settings) -> File:
    """The chain and the jump to it for IPv4 or IPv6 (`family` 4 or 6)."""
    text = render(
        "iptables_log/rules.j2",
        family=family,
        chain=CHAIN,
        prefix=PREFIX,
        limit=settings.knock_limit,
        burst=settings.knock_burst,
        policy=settings.knock_policy,
    )
    path = f"/etc/knockmap/rules.v{family}"
    return File(path, text=text, validate=(PROGRAM, "test", "{path}"))


def unit(name: str) -> File:
    return File(f"/etc/systemd/system/{name}", text=render(f"iptables_log/{name}"))


def resources(settings: Settings) -> list[Resource]:
    """In order of application; the rules follow their program and come before the units that keep them there."""
    program = File(PROGRAM, text=render("iptables_log/rules"), mode=0o755)
    rule_files = (rule_file(4, settings), rule_file(6, settings))
    rules = Rules(
        CHAIN,
        load=(PROGRAM, "load"),
        show=(PROGRAM, "show"),
        unload=(PROGRAM, "unload"),
        files=rule_files,
    )
    service, check, timer = map(
        unit, ("knockmap-rules.service", "knockmap-rules-check.service", "knockmap-rules.timer")
    )
    return [
        Package("iptables"),
        *(CONFIG, PROGRAMS, program, *rule_files, rules),
        *(service, check, timer),
        Service("knockmap-rules.service", restart_on=(service,)),
        Service("knockmap-rules-check.service", running=None),
        Service("knockmap-rules.timer", restart_on=(timer,)),
    ]


@host_task
def iptables_log(c: Connection, check: bool = False, diff: bool = False) -> Report:
    """Log who knocks on port 22, over IPv4 and IPv6, beside any firewall."""
    plan = {"iptables_log": resources(fleet.settings(c))}
    return converge(c, plan, check=check, diff=diff)
