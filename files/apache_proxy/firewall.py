#!/usr/bin/python3 -IS
"""On the target: let HTTP and HTTPS in where ufw or firewalld would not.

check     succeed if `open` was here, and they are let in or there is no such firewall
open      make it so, and remember what was opened
close     take back what `open` opened
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys

PORTS = (80, 443)
OPENED = "/var/lib/knockmap/apache/firewall.json"
UFW, UFW_PROGRAM = "/etc/ufw", "/usr/sbin/ufw"


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def must(*argv: str) -> None:
    done = run(*argv)
    if done.returncode:
        raise SystemExit(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")


def text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def ufw_wants(port: int) -> bool:
    """True if ufw has no rule for the port; by its files, since `ufw status` takes long.

    Also where it is not enabled: who enables it one day would shut the page out.
    """
    if not ufw_is_there():
        return False
    # Also in lists (80,443) and profiles ("Apache Full"), which stand there resolved.
    # Open to some sources only (the last address) is not open.
    rule = rf"^### tuple ### (allow|limit) (tcp|any) (\d+,)*{port}(,\d+)* \S+ any (0\.0\.0\.0|::)/0 "
    return not re.search(rule, text_of(f"{UFW}/user.rules"), re.M)


def ufw_is_there() -> bool:
    """Removed, it leaves its files behind."""
    return os.access(UFW_PROGRAM, os.X_OK)


def firewalld_active() -> bool:
    return (
        os.path.exists("/usr/sbin/firewalld")
        and not run("systemctl", "is-active", "-q", "firewalld.service").returncode
    )


def firewalld_wants(port: int) -> bool:
    service = {80: "http", 443: "https"}[port]
    asked = (f"--query-service={service}", f"--query-port={port}/tcp")
    return all(run("firewall-cmd", "-q", question).returncode for question in asked)


def wants() -> list[tuple[str, int]]:
    """(firewall, port) that are not let in."""
    found = [("ufw", port) for port in PORTS if ufw_wants(port)]
    if firewalld_active():
        found += [("firewalld", port) for port in PORTS if firewalld_wants(port)]
    return found


def change(firewall: str, port: int, verb: str) -> None:
    if firewall == "ufw":
        must("ufw", *(["delete"] if verb == "remove" else []), "allow", f"{port}/tcp")
        return
    must("firewall-cmd", "-q", f"--{verb}-port={port}/tcp")
    must("firewall-cmd", "-q", "--permanent", f"--{verb}-port={port}/tcp")


def let_in() -> None:
    opened = json.loads(text_of(OPENED) or "[]")
    for firewall, port in wants():
        opened.append([firewall, port])
        note(opened)  # before it is done: to take back what is not there does no harm
        change(firewall, port, "add")
    note(opened)


def note(opened: list[list[str | int]]) -> None:
    with open(OPENED, "w", encoding="utf-8") as file:
        json.dump(opened, file)


def close() -> None:
    for firewall, port in json.loads(text_of(OPENED) or "[]"):
        if firewall == "firewalld" and not firewalld_active():
            # Not running, it would still open them at its next start.
            if os.path.exists("/usr/bin/firewall-offline-cmd"):
                run("firewall-offline-cmd", "-q", f"--remove-port={port}/tcp")
            continue
        if firewall == "ufw" and not ufw_is_there():
            continue
        change(firewall, port, "remove")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(OPENED)


def main() -> None:
    if sys.argv[1:] == ["check"]:
        sys.exit(0 if os.path.exists(OPENED) and not wants() else 1)
    {"open": let_in, "close": close}[sys.argv[1]]()


if __name__ == "__main__":
    main()
