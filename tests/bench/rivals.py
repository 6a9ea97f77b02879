"""The same resources for Ansible and pyinfra, written as a good user of each would: from one list, so none differs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabfile import plan
from fabfile.engine.resources import Directory, File, Package, Resource, Rules, Service, User
from fabfile.settings import Settings

COMPARED = ("iptables_log", "syslog_route", "collector")  # what all three tools bring about


def compared(settings: Settings) -> dict[str, Sequence[Resource]]:
    """Their resources; the page and Apache would be more of the same files."""
    whole = plan(settings)
    return {name: whole[name] for name in COMPARED}


def applicable(resources: list[Resource]) -> list[Resource]:
    """Those of a Debian box with rsyslog, each once."""
    fitting = [r for r in resources if r.when in (None, ("logger", "rsyslog"))]
    return list({r.id: r for r in fitting}.values())


FACTS = {"@@fact.log_owner@@": "root", "@@fact.logger@@": "rsyslog"}  # those of a Debian box


def content(file: File) -> str | None:
    text = file.text
    for fact, value in FACTS.items() if text is not None else ():
        text = (text or "").replace(fact, value)
    return text


def write_contents(resources: list[Resource], folder: Path) -> dict[str, Path]:
    """Path on the target → local file with its content."""
    found = {}
    for number, resource in enumerate(resources):
        if isinstance(resource, File) and (text := content(resource)) is not None:
            found[resource.path] = folder / f"{number}-{Path(resource.path).name}"
            found[resource.path].write_text(text)
    return found


# --- Ansible ----------------------------------------------------------------------------------------------------


def playbook(resources: list[Resource], contents: dict[str, Path]) -> str:
    """A playbook as JSON, which is YAML. Handlers restart what must be restarted, once, after a change."""
    tasks, handlers = [], []
    for resource in resources:
        if isinstance(resource, Service):
            causes = [cause.id for cause in resource.restart_on]
            restart = {"name": resource.unit, "state": "restarted", "daemon_reload": True}
            handlers.append(
                {
                    "name": f"restart {resource.unit}",
                    "listen": causes,
                    "ansible.builtin.systemd_service": restart,
                }
            )
        tasks += ansible_tasks(resource, contents)
    notified = {cause for handler in handlers for cause in handler["listen"]}
    for task in tasks:
        if task["name"] in notified:
            task["notify"] = task["name"]
    handlers = [handler for handler in handlers if handler["listen"]]
    return json.dumps(
        [{"hosts": "all", "gather_facts": False, "tasks": tasks, "handlers": handlers}], indent=1
    )


def ansible_tasks(resource: Resource, contents: dict[str, Path]) -> list[dict[str, Any]]:
    module: dict[str, Any]
    if isinstance(resource, Package):
        module = {"ansible.builtin.apt": {"name": list(resource.names), "install_recommends": False}}
    elif isinstance(resource, User):
        user = {
            "name": resource.user,
            "system": True,
            "create_home": False,
            "home": resource.home,
            "shell": "/usr/sbin/nologin",
        }
        module = {"ansible.builtin.user": user}
    elif isinstance(resource, Directory):
        module = {"ansible.builtin.file": {"path": resource.path, "state": "directory", **rights(resource)}}
    elif isinstance(resource, File) and resource.path in contents:
        module = {
            "ansible.builtin.copy": {
                "src": str(contents[resource.path]),
                "dest": resource.path,
                **rights(resource),
            }
        }
    elif isinstance(resource, File):
        touch = {
            "path": resource.path,
            "state": "touch",
            "access_time": "preserve",
            "modification_time": "preserve",
        }
        module = {"ansible.builtin.file": {**touch, **rights(resource)}}
    elif isinstance(resource, Service):
        service = {
            "name": resource.unit,
            "enabled": resource.enabled,
            "state": "started" if resource.running else None,
        }
        module = {"ansible.builtin.systemd_service": {k: v for k, v in service.items() if v is not None}}
    elif isinstance(resource, Rules):
        look = {"cmd": f"{resource.show[0]} show v4"}
        return [
            {
                "name": "look at the rules",
                "ansible.builtin.command": look,
                "register": "rules",
                "changed_when": False,
            },
            {
                "name": resource.id,
                "ansible.builtin.command": {"argv": list(resource.load)},
                "when": "rules.stdout == ''",
            },
        ]
    else:
        raise TypeError(resource.id)
    return [{"name": resource.id, **module}]


def rights(resource: File | Directory) -> dict[str, str]:
    return {
        "owner": FACTS.get(resource.owner, resource.owner),
        "group": resource.group,
        "mode": f"{resource.mode:04o}",
    }


# --- pyinfra ----------------------------------------------------------------------------------------------------


def deploy_file(resources: list[Resource], contents: dict[str, Path]) -> str:
    lines = [
        "from pyinfra import host",
        "from pyinfra.facts.server import Command",
        "from pyinfra.operations import apt, files, server, systemd",
        "",
    ]
    names = {}
    for number, resource in enumerate(resources):
        names[resource.id] = f"r{number}"
        lines.append(f"r{number} = {pyinfra_call(resource, contents)}")
        if isinstance(resource, Service) and resource.restart_on:
            causes = [names[cause.id] for cause in resource.restart_on if cause.id in names]
            changed = " or ".join(f"{cause}.did_change()" for cause in causes)
            lines.append(
                f"systemd.service(service={resource.unit!r}, restarted=True, daemon_reload=True, _if=lambda: {changed})"
            )
    return "\n".join(lines) + "\n"


def pyinfra_call(resource: Resource, contents: dict[str, Path]) -> str:
    if isinstance(resource, Package):
        return f"apt.packages(packages={list(resource.names)!r}, no_recommends=True)"
    if isinstance(resource, User):
        return f"server.user(user={resource.user!r}, system=True, create_home=False, ensure_home=False, home={resource.home!r}, shell='/usr/sbin/nologin')"
    if isinstance(resource, (Directory, File)):
        right = rights(resource)
        common = f"user={right['owner']!r}, group={right['group']!r}, mode={right['mode'].lstrip('0')!r}"
        if isinstance(resource, Directory):
            return f"files.directory(path={resource.path!r}, {common})"
        if resource.path in contents:
            return f"files.put(src={str(contents[resource.path])!r}, dest={resource.path!r}, {common})"
        return f"files.file(path={resource.path!r}, {common})"
    if isinstance(resource, Service):
        return f"systemd.service(service={resource.unit!r}, running={resource.running!r}, enabled={resource.enabled!r})"
    if isinstance(resource, Rules):
        show, load = f"{resource.show[0]} show v4", " ".join(resource.load)
        return f"server.shell(commands=[{load!r}]) if not host.get_fact(Command, {show + ' || true'!r}) else None"
    raise TypeError(resource.id)
