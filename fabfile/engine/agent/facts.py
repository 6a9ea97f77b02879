"""What only the target knows: facts about it, and secrets that were born on it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable

from .machine import at, read_text, run
from .paths import STATE
from .start import UNITS
from .units import units


def fact_logger() -> str:
    """Who writes the kernel's lines: installing rsyslog would remove an installed syslog-ng, so we look first."""
    return "syslog-ng" if os.path.exists(at("/usr/sbin/syslog-ng")) else "rsyslog"


def fact_log_owner() -> str:
    """Ubuntu's rsyslogd drops to the user syslog and must own what it opens anew; syslog-ng stays root."""
    if fact("logger") == "syslog-ng":
        return "root"
    try:
        with open(at("/etc/rsyslog.conf"), encoding="utf-8", errors="replace") as file:
            found = re.search(r"^\$PrivDropToUser\s+(\S+)", file.read(), re.M)
    except FileNotFoundError:
        # Not installed yet: Ubuntu's package brings the user with it.
        found = re.search(r"^ID=(ubuntu)$", read_text("/etc/os-release"), re.M)
        return "syslog" if found else "root"
    return found[1] if found else "root"


def fact_ssh_owner() -> str:
    """Who holds sshd's port: "service", "socket", or "generator" (Ubuntu's ssh.socket, which follows sshd_config)."""
    if units(UNITS["ssh_owner"]).get("ActiveState") != "active":
        return "service"
    follows = os.path.exists(at("/lib/systemd/system-generators/sshd-socket-generator"))
    return "generator" if follows else "socket"


def fact_ssh_root_login() -> str:
    """What others say on root's logins if that is stricter than "prohibit-password", which is our word on it."""
    for text in sshd_texts():
        for_all = re.split(r"^\s*match\b", text, maxsplit=1, flags=re.I | re.M)[0]
        if found := re.search(r"^\s*permitrootlogin[\s=]+\"?([\w-]+)", for_all, re.I | re.M):
            word = found[1].lower()
            return word if word in ("no", "forced-commands-only") else "prohibit-password"
    return "prohibit-password"


def fact_ssh_no_passwords() -> str:
    """Our lines against passwords, but not where others ask for one after the key: they would be locked out."""
    asked = re.findall(r"^\s*authenticationmethods[\s=]+([^#\n]*)", "\n".join(sshd_texts()), re.I | re.M)
    lists = [words.split(",") for words in " ".join(asked).lower().replace('"', " ").split()]
    beside_key = {word.partition(":")[0] for words in lists if "publickey" in words for word in words}
    lines = {"PasswordAuthentication": "password", "KbdInteractiveAuthentication": "keyboard-interactive"}
    return "\n".join(
        f"# {option}: AuthenticationMethods of others asks for {method} beside the key"
        if method in beside_key
        else f"{option} no"
        for option, method in lines.items()
    )


def sshd_texts() -> list[str]:
    """What others say to sshd, in its order."""
    folder = "/etc/ssh/sshd_config.d"
    names = sorted(os.listdir(at(folder))) if os.path.isdir(at(folder)) else []
    drop_ins = [f"{folder}/{name}" for name in names if name.endswith(".conf") and "-knockmap-" not in name]
    return [read_text(path) for path in (*drop_ins, "/etc/ssh/sshd_config")]


def listening() -> list[tuple[str, str]]:
    """(port, the rest of its row) of `ss`; a process may have any name, with line ends in it, too."""
    return re.findall(r"^LISTEN +\d+ +\d+ +\S+:(\d+) (.*)", run(*QUESTIONS["web_ports"]).stdout, re.M)


def fact_web_ports() -> str:
    """Who else holds a port that Apache needs; empty if nobody does."""
    for port, row in listening():
        holders = set(re.findall(r'"([^"]+)",pid=', row)) - {"apache2"}
        if port in ("80", "443") and holders:
            return (
                f"port {port} is taken by {' and '.join(sorted(holders))}, and Apache needs it; stop and disable that "
                "first, or move it to another port"
            )
    return ""


def fact_apache() -> str:
    """Whether Apache was there before this run: what its package brings along is nothing that we would change."""
    return "there" if os.path.exists(at("/usr/sbin/apache2")) else "to come"


def fact_apache_sites() -> str:
    """ "ours" where Apache serves nothing but our site and Debian's example page, as it came; else "shared"."""
    folder, example = "/etc/apache2/sites-enabled", "000-default.conf"
    enabled = set(os.listdir(at(folder))) if os.path.isdir(at(folder)) else set()
    if enabled - {example, "zz-knockmap.conf"}:
        return "shared"
    return "ours" if example not in enabled or is_example() else "shared"


def is_example() -> bool:
    """True if neither the example site's file nor its page is anything but what Debian's package brought."""
    conffiles = run("dpkg-query", "-W", "-f", "${Conffiles}", "apache2").stdout
    shipped = re.findall(r"/sites-available/000-default\.conf ([0-9a-f]{32})", conffiles)
    with open(at("/etc/apache2/sites-enabled/000-default.conf"), "rb") as file:
        site = hashlib.md5(file.read(), usedforsecurity=False).hexdigest()
    folder, page = "/var/www/html", read_text("/usr/share/apache2/default-site/index.html")
    pages = os.listdir(at(folder)) if os.path.isdir(at(folder)) else []
    others = set(pages) - {"index.html"} or read_text(f"{folder}/index.html") not in ("", page)
    return site in shipped and not others


# What the facts ask other programs.
QUESTIONS = {
    "web_ports": ("ss", "-Hltnp"),
}
FACTS: dict[str, Callable[..., str]] = {
    "logger": fact_logger,
    "log_owner": fact_log_owner,
    "ssh_owner": fact_ssh_owner,
    "ssh_root_login": fact_ssh_root_login,
    "ssh_no_passwords": fact_ssh_no_passwords,
    "web_ports": fact_web_ports,
    "apache": fact_apache,
    "apache_sites": fact_apache_sites,
}
facts: dict[tuple[str, ...], str] = {}


def fact(name: str, *given: str) -> str:
    asked = (name, *given)
    if asked not in facts:
        look = FACTS.get(name) or of_elastic(name)
        facts[asked] = look(*given)
    return facts[asked]


def of_elastic(name: str) -> Callable[..., str]:
    from . import elastic  # which targets of the other stack need not load

    return elastic.FACTS[name]


def secret_path(name: str) -> str:
    return f"{STATE}/secrets/{name}"


def substitute(text: str) -> str | None:
    """The text with its `@@fact.X@@` and `@@secret.X@@`; None while a secret is not born yet."""
    missing = False

    def value(match: re.Match[str]) -> str:
        nonlocal missing
        if match[1] == "fact":
            return fact(match[2])
        found = read_text(secret_path(match[2]))
        missing = missing or not found
        return found.strip()

    done = re.sub(r"@@(fact|secret)\.([\w-]+)@@", value, text)
    return None if missing else done
