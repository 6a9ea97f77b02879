"""Who may log in at the page: what `credentials` shows, and users more or less, without a deploy."""

from __future__ import annotations

import getpass
import json as jsonlib
import sys
import threading
from functools import lru_cache

from fabric import Connection  # type: ignore[import-untyped]
from invoke.collection import Collection

from fabfile.apache_proxy import CERTIFICATE, USERS
from fabfile.engine import fleet
from fabfile.engine.errors import HostError, UsageError
from fabfile.engine.fleet import host_task
from fabfile.engine.transport import ask

OWN = "Ask for a password of your own (or read it from stdin) in place of a generated one."
asking = threading.Lock()


@host_task(help={"json": "One JSON document in place of lines."})
def credentials(c: Connection, json: bool = False) -> str:
    """Show the page's address, its users, and the passwords that were generated."""
    found = {"host": str(c.original_host), **jsonlib.loads(order(c, CERTIFICATE, "show", c.host))}
    found["users"] = jsonlib.loads(order(c, USERS, "show"))
    if fleet.settings(c).stack == "elastic":
        found["operator"] = operators_way(c)
    return jsonlib.dumps(found) if json else text(found)


def operators_way(c: Connection) -> dict[str, str]:
    """How the operator logs in at Kibana himself: not through Apache, and his password is shown by the box alone."""
    return {
        "tunnel": f"ssh -p {c.port} -L 5601:127.0.0.1:5601 {c.user}@{c.original_host}",
        "url": "http://localhost:5601/kibana/app/home?auth_provider_hint=basic1",
        "user": "elastic",
        "password_file": "/var/lib/knockmap/secrets/elastic_password",
    }


def text(found: dict[str, object]) -> str:
    lines = [f"URL          {found['url']}"]
    for user in found["users"]:  # type: ignore[attr-defined]
        lines += [f"User         {user['user']}", f"Password     {user['password'] or '(your own)'}"]
    if found["fingerprint"]:
        lines.append(f"Certificate  self-signed; your browser shows SHA-256 {found['fingerprint']}")
    if way := found.get("operator"):
        lines += ["To change something in Kibana, by a tunnel:", f"  {way['tunnel']}", f"  {way['url']}"]  # type: ignore[index]
        lines.append(f"  as {way['user']}; the password is in {way['password_file']} (root only)")  # type: ignore[index]
    return "\n".join(lines)


@host_task(help={"name": "The user's name.", "own": OWN})
def add(c: Connection, name: str, own: bool = False) -> str:
    """Let another user log in."""
    return changed(c, "add", name, own)


@host_task(help={"name": "The user's name.", "own": OWN})
def rotate(c: Connection, name: str, own: bool = False) -> str:
    """Give a user another password; the former one is refused from then on."""
    return changed(c, "rotate", name, own)


@host_task(help={"name": "The user's name."})
def remove(c: Connection, name: str) -> str:
    """Take a user's login away."""
    fleet.refuse_dry(c, "user.remove")
    if name == fleet.settings(c).web_user:
        raise UsageError(f"user.remove {name}: the next deploy would bring the user back; set web_user first")
    order(c, USERS, "remove", name)
    return f"{name} cannot log in any more"


def changed(c: Connection, verb: str, name: str, own: bool) -> str:
    fleet.refuse_dry(c, f"user.{verb}")
    words = (verb, name, "--own") if own else (verb, name)
    order(c, USERS, *words, stdin=own_password(name) if own else "")
    users = jsonlib.loads(order(c, USERS, "show"))
    password = next(user["password"] for user in users if user["user"] == name)
    return f"User         {name}\nPassword     {password or '(your own)'}"


@lru_cache
def read_password(name: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass(f"New password for {name}: ")
    if getpass.getpass("Again: ") != first:
        raise UsageError(f"--own: the two passwords for {name} differ")
    return first


def own_password(name: str) -> str:
    """Asked once, whatever the number of hosts."""
    with asking:
        return read_password(name) + "\n"


def order(c: Connection, program: str, *words: str, stdin: str = "") -> str:
    """Have a program on the target do something. Raises HostError with its words."""
    status, out, error = ask(c, [program, *words], stdin.encode())
    if status in (126, 127):
        raise HostError(f"{c.original_host}: there is no Apache of ours; `fab -H … deploy` brings it")
    if status:
        raise HostError(f"{c.original_host}: {(error or out).decode(errors='replace').strip()[-400:]}")
    return out.decode()


user = Collection("user", add, rotate, remove)
