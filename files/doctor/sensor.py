"""From the packet to the line: sshd's port, the rule and its counter, the log, who writes and who rotates it."""

from __future__ import annotations

import json
import os
import re
import stat
import types
from typing import Any

from look import ABSENT, LOG, READER, Link, Target, bad, first_line, names_of, ok, run, text_of, unit, warn

SSH_PROGRAM = "/usr/local/lib/knockmap/ssh"
RULES_PROGRAM = "/usr/local/lib/knockmap/rules"
NF_LOG, PRINTK = "/proc/net/netfilter/nf_log", "/proc/sys/kernel/printk"
FAMILIES = {"v4": ("IPv4", "iptables"), "v6": ("IPv6", "ip6tables")}
# The number of each family in NF_LOG, and who writes its LOG lines: before and since Linux 5.13.
WRITERS = {"v4": ("2", {"nf_log_ipv4", "nf_log_syslog"}), "v6": ("10", {"nf_log_ipv6", "nf_log_syslog"})}
ROTATION = "/etc/knockmap/logrotate.conf"


def families() -> list[str]:
    return [family for family in FAMILIES if family == "v4" or os.path.isdir("/proc/sys/net/ipv6")]


# --- sshd -------------------------------------------------------------------------------------------------------


def sshd(target: Target) -> Link:
    """harden_ssh's own program on the target says what is in force and what overrules it."""
    if "harden_ssh" not in target.tasks:
        return ABSENT
    again = "{fab} harden-ssh"
    if gone := target.gone("harden_ssh") or target.gone("harden_ssh_way_back"):
        return bad(f"{gone} is gone, so sshd is not as it was hardened", again)
    program = module(SSH_PROGRAM)
    try:
        overruled, wanted = program.overruled(), program.configured_ports()
    except SystemExit as refusal:
        return bad(f"{refusal}, so its next start would fail and lock you out", "{ssh} sshd -t")
    return sshd_state(program, overruled, wanted, again)


def sshd_state(program: Any, overruled: list[str], wanted: set[int], again: str) -> Link:
    listening = program.sshd_ports()
    if overruled:
        return bad(
            f"other lines overrule the hardening: {'; '.join(overruled)}", "remove those lines, then " + again
        )
    if 22 in listening:
        return bad("sshd itself listens on port 22, which is the one to watch", again)
    if listening != wanted:
        return bad(f"sshd listens on {sorted(listening)} and is configured for {sorted(wanted)}", again)
    if program.armed():
        left = max(0, round(program.seconds_left()))
        return warn(
            f"a way back is still armed: in {left} s sshd goes back to its former configuration", again
        )
    if program.text_of(program.LOADED) != program.ours():
        return warn("sshd has not read its drop-ins as they are now", again)
    return ok(f"on {' and '.join(map(str, sorted(listening)))} alone, hardened")


def module(path: str) -> Any:
    """A program of ours as a module, to use its functions."""
    made = types.ModuleType("program")
    exec(compile(text_of(path), path, "exec"), made.__dict__)  # noqa: S102 # a file of root's own
    return made


# --- the rule and its counter -----------------------------------------------------------------------------------


def rule(target: Target) -> Link:
    if "iptables_log" not in target.tasks:
        return ABSENT
    again = "{fab} iptables-log"
    if gone := target.gone("iptables_log"):
        return bad(f"{gone} is gone, so the rules cannot be kept", again)
    for family in families():
        if problem := rule_problem(family):
            return bad(problem, again)
        if problem := unheard(family, text_of(target.job.get("nf_log", NF_LOG))):
            return bad(problem, "{ssh} modprobe nf_log_syslog")
    for name in ("knockmap-rules.service", "knockmap-rules.timer"):
        found = unit(name)
        if found.get("ActiveState") != "active" or found.get("UnitFileState") != "enabled":
            return warn(f"the rules are in force, but {name}, which brings them back, is not", again)
    if level := on_console(target.job.get("printk", PRINTK)):
        return warn(
            f"the kernel prints every logged SYN on the console, too (kernel.printk begins with {level}), and waits for it where "
            "that is a serial one: a flood would slow the host down",
            "{ssh} \"echo 'kernel.printk = 4 4 1 7' >/etc/sysctl.d/60-console.conf; sysctl -qp /etc/sysctl.d/60-console.conf\"",
        )
    if edited := target.edited("iptables_log"):
        return warn(f"{edited} was edited since it was deployed", again)
    return ok(f"{' and '.join(FAMILIES[family][0] for family in families())}, first in INPUT")


def on_console(path: str) -> str:
    """The level below which the kernel prints on the console, where lines of ours are and this host may change it."""
    level = text_of(path).split()[:1]
    return level[0] if level and int(level[0]) > 4 and os.access(path, os.W_OK) else ""


def rule_problem(family: str) -> str:
    """What is wrong with the chain of this family; "" if nothing is."""
    name, tool = FAMILIES[family]
    shown = run(RULES_PROGRAM, "show", family).stdout.splitlines()
    jumps = [line for line in shown if line[:1].isdigit()]
    if not shown:
        return f"the {name} rule is gone (somebody flushed it?), so no {name} SYN is seen"
    if not jumps:
        return f"INPUT of {name} does not enter the chain KNOCKMAP, so no {name} SYN is seen"
    if not any("-j LOG" in line for line in shown):
        return f"the chain KNOCKMAP of {name} does not log (somebody flushed it?)"
    if not jumps[0].startswith("1 "):
        before = run(tool, "-w", "10", "-S", "INPUT").stdout.splitlines()
        rules = [line for line in before if line.startswith("-A ")][: int(jumps[0].split()[0]) - 1]
        return f"the {name} rule is not the first of INPUT; what these take is not seen: {'; '.join(rules)}"
    if len(jumps) > 1:
        return f"INPUT of {name} enters the chain {len(jumps)} times, so each SYN counts as often"
    return ""


def unheard(family: str, nf_log: str) -> str:
    """Whether the kernel lacks what writes LOG lines of this family; without its list nothing is said."""
    number, writers = WRITERS[family]
    for line in nf_log.splitlines():
        found = re.match(r"\s*(\d+) \S+ \(([^)]*)\)", line)
        if found and found[1] == number and not writers & set(found[2].split(",")):
            return (
                f"the kernel has nobody who writes LOG lines of {FAMILIES[family][0]} (nf_log_syslog is missing), so the "
                "rule counts and nothing is written"
            )
    return ""


def counts() -> dict[str, dict[str, int]]:
    """SYNs of each family since the rules were loaded: seen, logged, over_limit."""
    done = run(RULES_PROGRAM, "counts")
    if done.returncode:
        raise OSError(f"{RULES_PROGRAM} counts: {first_line(done.stderr)}")
    found = json.loads(done.stdout)
    return {family: found[family] for family in FAMILIES if found[family]}


def counter(target: Target) -> Link:
    """Looked at twice, since a flood shows by what it grows."""
    if "iptables_log" not in target.tasks:
        return ABSENT
    before, now = target.job.get("counts") or {}, counts()
    grown = sum(
        now[family]["over_limit"] - before[family]["over_limit"] for family in now if family in before
    )
    if grown > 0:
        return warn(
            f"a flood: {grown} SYNs were over the limit just now; they are counted and not logged",
            "{ssh} " + f"{RULES_PROGRAM} counts",
        )
    return ok("; ".join(counted(FAMILIES[family][0], now[family]) for family in now))


def counted(name: str, count: dict[str, int]) -> str:
    over = f", {count['over_limit']} over the limit" if count["over_limit"] else ""
    return f"{name} {count['seen']} seen, {count['logged']} logged{over}"


# --- the log ----------------------------------------------------------------------------------------------------


def log(target: Target) -> Link:
    if "syslog_route" not in target.tasks:
        return ABSENT
    again = "{fab} syslog-route"
    try:
        info = os.stat(LOG)
    except FileNotFoundError:
        return bad(f"{LOG} is gone, so lines go nowhere until the syslog daemon is started anew", again)
    if not stat.S_ISREG(info.st_mode):
        return bad(f"{LOG} is no file", again)
    owner, group = names_of(info)
    mode = stat.S_IMODE(info.st_mode)
    rights = f"{LOG} has mode {mode:04o}, owner {owner} and group {group}"
    if not (mode & 0o040 and group == READER) and not mode & 0o004:
        reader = "the collector" if "collector" in target.tasks else "Logstash"
        return bad(f"{rights}, so {reader} cannot read it", again)
    wanted = (target.entries.get(f"file:{LOG}") or {}).get("after", {})
    if not mode & 0o200 or owner != wanted.get("owner", owner):
        return bad(f"{rights}, so the syslog daemon cannot write it", again)
    if mode & 0o007:
        return warn(f"{rights}, so everybody here can read or change it", again)
    return ok(f"{info.st_size / 1e6:.1f} MB, readable for the group {READER}")


def syslog(target: Target) -> Link:
    if "syslog_route" not in target.tasks:
        return ABSENT
    again = "{fab} syslog-route"
    if gone := target.gone("syslog_route"):
        return bad(f"{gone} is gone, so the lines do not come to {LOG}", again)
    name = "syslog-ng" if any("/syslog-ng/" in path for path in target.files("syslog_route")) else "rsyslog"
    found = unit(f"{name}.service")
    if found.get("ActiveState") != "active":
        return bad(
            f"{name} does not run ({found.get('ActiveState', 'unknown')}), so nothing is written", again
        )
    check = run("syslog-ng", "-s") if name == "syslog-ng" else run("rsyslogd", "-N1")
    if check.returncode:
        return bad(f"{name} refuses its configuration: {complaint(check.stderr)}", again)
    if writes_into_removed(found.get("MainPID", "0")):
        return bad(f"{name} writes into a removed {LOG}; the file that is there gets nothing", again)
    if edited := target.edited("syslog_route"):
        return warn(f"{edited} was edited since it was deployed", again)
    return ok(f"{name} runs and takes its configuration")


def complaint(text: str) -> str:
    """The line that speaks of an error, among those that tell versions."""
    lines = [line for line in text.splitlines() if "error" in line.lower()]
    return first_line("\n".join(lines) or text)


def writes_into_removed(pid: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{folder}/{fd}") == f"{LOG} (deleted)" for fd in os.listdir(folder))
    except FileNotFoundError:
        return False


def rotation(target: Target) -> Link:
    if "syslog_route" not in target.tasks:
        return ABSENT
    again, timer = "{fab} syslog-route", unit("knockmap-logrotate.timer")
    if not os.path.exists(ROTATION):
        return bad(f"{ROTATION} is gone, so the log grows without end", again)
    # By -d it only says what it would do.
    tried = run("logrotate", "-d", ROTATION)
    if tried.returncode or "error:" in tried.stderr:
        return bad(f"logrotate refuses {ROTATION}: {complaint(tried.stderr)}", again)
    if timer.get("ActiveState") != "active":
        return bad("knockmap-logrotate.timer does not run, so the log grows without end", again)
    if timer.get("UnitFileState") != "enabled":
        return bad("knockmap-logrotate.timer is not enabled, so nothing rotates after a reboot", again)
    if unit("knockmap-logrotate.service").get("ActiveState") == "failed":
        return bad("the last rotation failed", "{ssh} journalctl -u knockmap-logrotate -n 20")
    return grown(target)


def grown(target: Target) -> Link:
    """The size is looked at every hour, so a flood may take the log beyond it, but not far."""
    most = int(target.job.get("log_rotate_megabytes", 50))
    size = os.path.getsize(LOG) / 1e6 if os.path.exists(LOG) else 0
    if size > 4 * most:
        return warn(
            f"{LOG} has {size:.0f} MB and is to be rotated at {most}",
            "{ssh} systemctl start knockmap-logrotate.service",
        )
    return ok(f"hourly, at {most} MB or a day")
