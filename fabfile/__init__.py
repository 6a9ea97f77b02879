"""The tasks one runs on a VPS: `fab --list`. Settings: `settings.py`. How it works: `engine/`."""

from __future__ import annotations

import importlib
from typing import Any

from fabric import Connection  # type: ignore[import-untyped]
from invoke.collection import Collection

import fabfile.engine  # noqa: F401 - before all others of ours, since it lets Python keep what it compiles
from fabfile import doctor, export, migrate, scanners, users
from fabfile.elastic_pipeline import elsewhere
from fabfile.engine import fleet
from fabfile.engine.converge import undo as put_back
from fabfile.engine.converge import while_connecting
from fabfile.engine.errors import UsageError
from fabfile.engine.fleet import host_task, settings
from fabfile.engine.report import Report
from fabfile.engine.resources import Plan
from fabfile.settings import Settings

fleet.install(words={"undo": "--task"})

# In order of application: the lines get a place of their own before there are any.
# Each is a module here, a folder under files/, a test module and a heading in the README.
SENSOR = ("harden_ssh", "syslog_route", "iptables_log")
STACKS = {
    "embedded": ("collector", "dashboard", "apache_proxy"),
    "elastic": ("install_elk", "kibana", "apache_proxy"),
}
TASKS = tuple(dict.fromkeys((*SENSOR, *STACKS["elastic"], *STACKS["embedded"])))


modules = {name: importlib.import_module(f"fabfile.{name}") for name in TASKS}


def of_stack(chosen: Settings) -> tuple[str, ...]:
    """The tasks of the chosen stack. A box that ships its events elsewhere has nothing to show."""
    return ("install_elk",) if chosen.stack == "elastic" and elsewhere(chosen) else STACKS[chosen.stack]


def plan(chosen: Settings) -> Plan:
    """What `deploy` makes of a target after harden_ssh: the lists of its tasks, in order. Raises UsageError."""
    # harden_ssh makes its own part: it depends on how the operator logged in.
    return {name: modules[name].resources(chosen) for name in (*SENSOR[1:], *of_stack(chosen))}


@host_task
def deploy(c: Connection, check: bool = False, diff: bool = False) -> Report:
    """Turn a fresh VPS into a hardened box that shows who scans it for SSH."""
    chosen = settings(c)
    chosen = modules["apache_proxy"].named(c, chosen)
    others = while_connecting(c, lambda: plan(chosen))
    report: Report = modules["harden_ssh"].settle(c, chosen, others, check=check, diff=diff)
    if report.ok and report.changed and not report.check:  # a deploy that changed nothing stays fast
        doctor.after_deploy(c, chosen)
    return report


@host_task(
    help={
        "task": f"Which task to undo: {', '.join(TASKS)}; default: all.",
        "packages": "Also remove the packages that were installed for it.",
        "data": "Also remove data: the log, the database.",
        "keep-edited": "Leave files that somebody edited since, and undo the rest.",
    },
)
def undo(
    c: Connection,
    task: str = "",
    packages: bool = False,
    data: bool = False,
    keep_edited: bool = False,
    check: bool = False,
    diff: bool = False,
) -> Report:
    """Put everything back, byte for byte, as it was before the first deploy."""
    if task and task.replace("-", "_") not in TASKS:
        raise UsageError(f"undo {task}: there is no such task; there are {', '.join(TASKS)}")
    options: dict[str, Any] = {
        "packages": packages,
        "data": data,
        "keep_edited": keep_edited,
        "check": check,
        "diff": diff,
    }
    report = put_back_all(c, [task.replace("-", "_")] if task else list(TASKS), options)
    if not report.results:
        c.tell("nothing of it is on this host, so there is nothing to undo")
    return report


def put_back_all(c: Connection, names: list[str], options: dict[str, Any]) -> Report:
    """These tasks, sshd's port last and in stages."""
    sshd = modules["harden_ssh"]
    if names == ["harden_ssh"]:
        return sshd.undo_move(c, settings(c), **options)  # type: ignore[no-any-return]
    if len(names) == 1:
        return put_back(c, names, **options)
    # All or nothing: what somebody edited in one task leaves the others in place, too.
    whole = [*names[1:], *sshd.EVERYTHING]
    preview = options["check"] or c.config.run.dry
    if preview or not put_back(c, whole, **{**options, "check": True}, on_event=lambda event: None).ok:
        return put_back(c, whole, **options)
    report = put_back(c, names[1:], **options)
    return report + sshd.undo_move(c, settings(c), **options) if report.ok else report


ns = Collection(deploy, undo)
for module in (*modules.values(), scanners, export, migrate, doctor):
    for found in vars(module).values():
        if isinstance(found, fleet.HostTask) and found.name not in ns.task_names:
            ns.add_task(found)
ns.add_task(users.credentials)
ns.add_collection(users.user)
