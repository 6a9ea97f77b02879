"""Apache in front of the dashboard: TLS, a login, nothing else reachable, and other sites on it as they were.

Debian's Apache with one site and one fragment of ours, entered by links. Names, certificate and users are kept by small
programs on the target, so that a renewed certificate or another user needs no deploy.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fabfile import certificates
from fabfile.engine import fleet
from fabfile.engine.converge import converge
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import (
    Command,
    Directory,
    File,
    Link,
    Package,
    Requirement,
    Resource,
    Service,
    render,
)
from fabfile.iptables_log import CONFIG, PROGRAMS
from fabfile.saved_objects.dashboard import DASHBOARD
from fabfile.settings import Settings

FOLDER, STATE = "/usr/local/lib/knockmap/apache_proxy", "/var/lib/knockmap/apache"
CERTIFICATE, USERS, FIREWALL = (f"{FOLDER}/{name}.py" for name in ("certificate", "users", "firewall"))
APACHE = "/etc/apache2"
# What the site needs, and what these need: a2enmod makes the same links. Some come with the package.
USUAL = (
    *("alias.conf", "alias.load", "auth_basic.load", "authn_core.load", "authn_file.load"),
    *("authz_core.load", "authz_user.load", "deflate.conf", "deflate.load", "filter.load"),
    *("mime.conf", "mime.load", "reqtimeout.conf", "reqtimeout.load", "setenvif.conf", "setenvif.load"),
)
MODULES = (
    *("headers.load", "http2.conf", "http2.load", "lua.load", "proxy.conf", "proxy.load", "proxy_http.load"),
    *("rewrite.load", "socache_shmcb.load", "ssl.conf", "ssl.load"),
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def named(c: Any, settings: Settings) -> Settings:
    """The settings with the name by which the operator reaches this host before those that it has itself."""
    names = settings.apache_names
    if "own" not in names or "%" in c.host:  # a link-local address means nothing elsewhere
        return settings
    own = names.index("own")  # what the operator wrote before it stays first: redirects lead there
    return replace(settings, apache_names=(*names[:own], c.host, *names[own:]))


def program(name: str) -> File:
    return File(f"{FOLDER}/{name}", text=render(f"apache_proxy/{name}"), mode=0o755)


def unit(name: str) -> File:
    return File(f"/etc/systemd/system/{name}", text=render(f"apache_proxy/{name}"))


def path_unit(settings: Settings) -> File:
    name = "knockmap-certificate.path"
    text = render(f"apache_proxy/{name}.j2", state=STATE, name=settings.apache_names[0])
    return File(f"/etc/systemd/system/{name}", text=text)


def tested(path: str, text: str) -> File:
    """A file of Apache's that has to pass `configtest`, also before a link makes Apache read it."""
    return File(path, text=text, verify=("apache2ctl", "-t", "-c", f"Include {path}"))


def module(name: str, when: tuple[str, str] | None = None) -> Link:
    return Link(f"{APACHE}/mods-enabled/{name}", f"../mods-available/{name}", when=when)


def operators_files(settings: Settings) -> tuple[File, ...]:
    """The operator's certificate and key, looked through before anything connects."""
    if settings.apache_certificate != "files":
        return ()
    chain, key = (
        Path(path).expanduser() for path in (settings.apache_certificate_file, settings.apache_key_file)
    )
    return (
        File(f"{STATE}/certificate.pem", source=chain),
        File(f"{STATE}/key.pem", source=key, mode=0o600, secret=True),
    )


def former_files(settings: Settings) -> tuple[File, ...]:
    """The operator's certificate and key go once Apache reads them no more: before, it would refuse its configuration."""
    if settings.apache_certificate == "files":
        return ()
    return File(f"{STATE}/certificate.pem", absent=True), File(f"{STATE}/key.pem", absent=True)


def trusted(settings: Settings) -> bool:
    """True if browsers trust the certificate. Raises SettingError for files that do not fit."""
    if settings.apache_certificate == "files":
        return certificates.look_through(settings.apache_certificate_file, settings.apache_key_file)
    return settings.apache_certificate == "acme"


def site(settings: Settings) -> File:
    text = render(
        "apache_proxy/site.conf.j2",
        certificate=settings.apache_certificate,
        names=settings.apache_names,
        email=settings.apache_acme_email,
        acme_url=settings.apache_acme_url,
        trusted=trusted(settings),
        kibana=settings.stack == "elastic",
        dashboard=DASHBOARD,
        public=settings.public_page and settings.stack == "embedded",
        port=settings.dashboard_port,
        headers=tuple(HEADERS.items()),
        state=STATE,
        folder=FOLDER,
    )
    return tested(f"{APACHE}/sites-available/zz-knockmap.conf", text)


def config(settings: Settings) -> File:
    """What the programs on the target go by."""
    chosen: dict[str, Any] = {"certificate": settings.apache_certificate, "names": settings.apache_names}
    if settings.stack == "elastic":
        chosen["page"] = "/kibana/"
    return File("/etc/knockmap/apache.json", text=json.dumps(chosen) + "\n")


def kept_by_programs(settings: Settings) -> tuple[Command, ...]:
    """What changes without a deploy, too: names and certificate, users, and the firewall in front."""
    return (
        Command(
            "Apache's names and certificate",
            (CERTIFICATE, "renew"),
            unless=(CERTIFICATE, "check"),
            undo=(CERTIFICATE, "remove"),
        ),
        Command(
            f"user {settings.web_user} can log in",
            (USERS, "ensure", settings.web_user),
            unless=(USERS, "check", settings.web_user),
            undo=(USERS, "forget"),
        ),
        Command(
            "the firewall lets HTTP and HTTPS in",
            (FIREWALL, "open"),
            unless=(FIREWALL, "check"),
            undo=(FIREWALL, "close"),
        ),
    )


def alone() -> Command:
    """Debian's example page gives way where it is all there is. Other sites stay, and come first."""
    example = f"{APACHE}/sites-enabled/000-default.conf"
    return Command(
        "no example page",
        ("rm", example),
        unless=("test", "-d", f"{APACHE}/sites-enabled", "-a", "!", "-e", example),
        undo=("ln", "-sfn", "../sites-available/000-default.conf", example),
        when=("apache_sites", "ours"),
    )


def watching(settings: Settings) -> list[Resource]:
    """The units that keep the certificate fresh."""
    service, timer = unit("knockmap-certificate.service"), unit("knockmap-certificate.timer")
    path = path_unit(settings)
    return [
        *(service, timer, path),
        Service("knockmap-certificate.timer", restart_on=(timer,)),
        Service("knockmap-certificate.path", restart_on=(path,)),
    ]


def resources(settings: Settings) -> list[Resource]:
    """In order of application; Apache reads nothing of it before it passed `configtest`."""
    names, users, firewall = kept_by_programs(settings)
    files, ours = operators_files(settings), site(settings)
    links = (*(module(name, when=("apache", "there")) for name in USUAL), *map(module, MODULES))
    acme = (module("md.load"),) if settings.apache_certificate == "acme" else ()
    guard = File(f"{FOLDER}/guard.lua", text=render("apache_proxy/guard.lua"))
    fragment = tested(f"{APACHE}/conf-available/zz-knockmap.conf", render("apache_proxy/zz-knockmap.conf"))
    entered = (
        Link(f"{APACHE}/conf-enabled/zz-knockmap.conf", "../conf-available/zz-knockmap.conf"),
        Link(f"{APACHE}/sites-enabled/zz-knockmap.conf", "../sites-available/zz-knockmap.conf"),
        alone(),
    )
    return [
        Requirement("web_ports"),
        Package("apache2", "openssl"),
        *(CONFIG, PROGRAMS, Directory(FOLDER)),
        *map(program, ("certificate.py", "users.py", "firewall.py")),
        *(guard, config(settings), Directory(STATE, mode=0o711), *files, names, users),
        *(*links, *acme, ours, fragment, *entered, firewall),
        # mod_md gets no certificate where it came by a reload.
        Service(
            "apache2.service",
            restart_on=acme,
            reload_on=(guard, *files, names, users, *links, fragment, ours, *entered),
        ),
        *former_files(settings),
        *watching(settings),
    ]


@host_task
def apache_proxy(c: Any, check: bool = False, diff: bool = False) -> Report:
    """Put Apache with TLS and a login in front of the page, beside the sites that it has."""
    return converge(c, {"apache_proxy": resources(named(c, fleet.settings(c)))}, check=check, diff=diff)
