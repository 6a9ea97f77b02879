"""From the row to the browser: dashboard, Apache, its certificate, its login."""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple

from look import (
    ABSENT,
    Link,
    Target,
    bad,
    first_line,
    last_words,
    names_of,
    ok,
    run,
    settled,
    text_of,
    unit,
    warn,
)

DASHBOARD, APACHE = "knockmap-dashboard.service", "apache2.service"
STATUS = "/map/api/live"
KIBANA_STATUS = "/kibana/api/status"
SECRETS = "/var/lib/knockmap/secrets"
SITE = "/etc/apache2/sites-enabled/zz-knockmap.conf"
NAMES = "/var/lib/knockmap/apache/names.conf"
MOST_NAMES = 8  # that are tried
DAY = 86400
# notBefore and notAfter as DER has them: UTCTime or GeneralizedTime.
TIMES = re.compile(rb"\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z")


class Answer(NamedTuple):
    status: int
    body: bytes
    certificate: bytes
    login: str = ""  # which one it asks for


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Of a GET, or of a POST where there is a body. Raises OSError."""
    try:
        connection.connect()
        der = connection.sock.getpeercert(True) if isinstance(connection.sock, ssl.SSLSocket) else b""
        connection.request("POST" if body else "GET", path, body, headers or {})
        response = connection.getresponse()
        login = response.headers.get("WWW-Authenticate", "")
        return Answer(response.status, response.read(1 << 20), der or b"", login)
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {type(error).__name__}") from error
    finally:
        connection.close()


def patiently(look: Callable[[], Answer], name: str, seconds: float = 3) -> Answer:
    """Also while the service that was just started does not answer yet. Raises OSError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return look()
        except ConnectionRefusedError:
            if time.monotonic() > deadline or unit(name).get("ActiveState") != "active":
                raise
            time.sleep(0.1)


# --- dashboard --------------------------------------------------------------------------------------------------


def dashboard(target: Target) -> Link:
    if "dashboard" not in target.tasks:
        return ABSENT
    again, words = "{fab} dashboard", "{ssh} journalctl -u knockmap-dashboard -n 20"
    if gone := target.gone("dashboard"):
        return bad(f"{gone} is gone", again)
    state = settled(DASHBOARD).get("ActiveState", "unknown")
    if state == "inactive":
        return bad("the dashboard's service is stopped, so there is nothing to show", again)
    if state != "active":
        return bad(f"the dashboard's service does not stay up{last_words(DASHBOARD)}", words, symptom=True)
    port = int(target.job.get("dashboard_port", 8722))
    began = time.monotonic()
    try:
        answer = patiently(
            lambda: ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5), STATUS), DASHBOARD
        )
    except OSError as error:
        return bad(f"the dashboard does not answer on 127.0.0.1:{port}: {error}", words, symptom=True)
    ms = (time.monotonic() - began) * 1000
    if answer.status != 200 or not is_status(answer.body):
        what = first_line(answer.body.decode(errors="replace"))
        return bad(f"the dashboard answers {answer.status} to {STATUS}: {what}", words, symptom=True)
    if edited := target.edited("dashboard"):
        return warn(f"{edited} was edited since it was deployed", again)
    return ok(f"answers on 127.0.0.1:{port} in {ms:.0f} ms")


def is_status(body: bytes) -> bool:
    try:
        return "chain" in json.loads(body)
    except (ValueError, TypeError):
        return False


# --- Apache -----------------------------------------------------------------------------------------------------


class Here(http.client.HTTPSConnection):
    """Apache on this machine, asked for our site among its others; who it is does not matter."""

    def connect(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.sock = socket.create_connection(("127.0.0.1", 443), 5)
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def https(path: str, headers: dict[str, str] | None = None) -> Answer:
    """Apache's answer here. Raises OSError."""
    return ask(Here(site_name(), 443), path, headers)


def site_name() -> str:
    """A name of our site, by which Apache tells it from the others there, which may have some of the same names.

    An address only where no name leads to it, and the first one where nothing does. Raises OSError.
    """
    found: list[str] = re.findall(r"^Server(?:Name|Alias) \[?([^\]\s]+)", text_of(NAMES), re.M)
    names = sorted(found, key=is_address) or ["127.0.0.1"]
    return next((name for name in names[:MOST_NAMES] if is_ours(name)), names[0])


def is_ours(name: str) -> bool:
    """True if what answers by this name asks for our login: before that, nobody gets the password. Raises OSError."""
    answer = ask(Here(name, 443), behind_apache())
    return answer.status == 401 and 'realm="knockmap"' in answer.login


def is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def behind_apache() -> str:
    """A path behind the login: of Kibana, if that is what Apache stands in front of, or of the embedded stack's page."""
    return KIBANA_STATUS if "ProxyPass /kibana/" in text_of(SITE) else "/map/"


def apache(target: Target) -> Link:
    if "apache_proxy" not in target.tasks:
        return ABSENT
    again, words, page = "{fab} apache-proxy", "{ssh} journalctl -u apache2 -n 20", behind_apache()
    tested = run("apachectl", "configtest")
    if tested.returncode:
        return bad(f"Apache refuses its configuration: {complaint(tested.stderr)}", again)
    if gone := target.gone("apache_proxy"):
        return bad(f"{gone} is gone", again)
    state = unit(APACHE).get("ActiveState", "unknown")
    if state != "active":
        return bad(f"Apache does not run ({state})", again)
    try:
        answer = patiently(lambda: https(page), APACHE)
    except OSError as error:
        return bad(f"Apache does not answer on port 443: {error}", words)
    if (page == KIBANA_STATUS and answer.status in (302, 503)) or answer.status == 200:
        return bad(f"Apache shows {'Kibana' if page == KIBANA_STATUS else 'the map'} without a login", again)
    if answer.status != 401:
        return bad(f"Apache answers {answer.status} for {page}, where it is to ask for a login", again)
    if edited := target.edited("apache_proxy"):
        return warn(f"{edited} was edited since it was deployed", again)
    return ok("answers on port 443 and asks for a login")


def complaint(text: str) -> str:
    """Without Apache's usual word about its own name."""
    return first_line("\n".join(line for line in text.splitlines() if "AH00558" not in line))


def certificate(target: Target) -> Link:
    if "apache_proxy" not in target.tasks:
        return ABSENT
    again = "{fab} apache-proxy"
    try:
        until = not_after(https("/").certificate)
    except OSError as error:
        return Link("warn", f"not known while Apache does not answer ({error})", again)
    days = (until - time.time()) / DAY
    day = f"{datetime.fromtimestamp(until, timezone.utc):%Y-%m-%d}"
    if days < 0:
        return bad(f"the certificate has expired on {day}, so browsers refuse the page", again)
    if days < 14:
        return warn(f"the certificate ends on {day}, in {days:.0f} days, and was not renewed", again)
    return ok(f"{days:.0f} days left, until {day}")


def not_after(der: bytes) -> float:
    """Epoch at which a certificate ends: the second time in it."""
    times = TIMES.findall(der)
    if len(times) < 2:
        raise OSError("its certificate could not be read")
    short, long = times[1]
    # UTCTime has years from 1950 to 2049.
    text = (short and (b"20" if short < b"5" else b"19") + short) or long
    return datetime.strptime(text.decode(), "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc).timestamp()


# --- login ------------------------------------------------------------------------------------------------------


def login(target: Target) -> Link:
    if "apache_proxy" not in target.tasks:
        return ABSENT
    again = "{fab} apache-proxy"
    path = users_file()
    if not path or not os.path.exists(path):
        return bad(f"there is no file of users ({path or 'no AuthUserFile in our site'})", again)
    # "-" is nobody: it stands in for names that are unknown.
    users = [line.split(":")[0] for line in text_of(path).splitlines() if ":" in line and line[0] != "-"]
    if not users:
        return bad(f"{path} has no users, so nobody can log in", again)
    info = os.stat(path)
    owner, group = names_of(info)
    if (
        not (info.st_mode & 0o040 and group == "www-data")
        and owner != "www-data"
        and not info.st_mode & 0o004
    ):
        return bad(f"Apache cannot read {path} (mode {info.st_mode & 0o7777:04o}, group {group})", again)
    return tried(target, f"{len(users)} user{'s' * (len(users) > 1)}")


def tried(target: Target, users: str) -> Link:
    """Whether the stored password lets in."""
    password = stored_password(target)
    if not password:
        return ok(f"{users}; not tried, since the password is your own")
    of_kibana = behind_apache() == KIBANA_STATUS
    try:
        if not is_ours(name := site_name()):
            return bad(
                f"Apache does not ask for it by the name {name}, so it was not tried",
                "{fab} apache-proxy",
                symptom=True,
            )
        answer = https(KIBANA_STATUS if of_kibana else STATUS, authorization(user(target), password))
    except OSError as error:
        return Link(
            "warn", f"{users}; not tried, since Apache does not answer ({error})", "{fab} apache-proxy"
        )
    if answer.status == 401:
        return bad(f"Apache refuses the stored password of {user(target)}", "{fab} apache-proxy")
    if answer.status != 200:
        task = "kibana" if of_kibana else "dashboard"
        return bad(f"behind the login Apache answers {answer.status}", f"{{fab}} {task}", symptom=True)
    return ok(f"{users}; the stored password lets in")


def users_file() -> str:
    found = re.search(r"^\s*AuthUserFile\s+\"?([^\s\"]+)", text_of(SITE), re.M)
    return found[1] if found else ""


def user(target: Target) -> str:
    return str(target.job.get("web_user", "knockmap"))


def stored_password(target: Target) -> str:
    """The generated one of the first user; "" if there is none, as where it is the operator's own."""
    return text_of(f"{SECRETS}/web-{user(target)}").strip()


def authorization(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def way_in(target: Target, found: dict[str, Link]) -> dict[str, Any]:
    """What the operator's side needs to come in as a browser does, and to know that it is this host; or `trouble`."""
    of_kibana = behind_apache() == KIBANA_STATUS
    if not {"kibana" if of_kibana else "dashboard", "apache_proxy"} <= target.tasks:
        return {}
    if found["login"].state == "bad":  # a login that fails would count as a guess
        return {"trouble": found["login"].cause}
    password = stored_password(target)
    if not password:
        return {"why": "not asked for, since the password is your own"}
    try:
        fingerprint = hashlib.sha256(https("/").certificate).hexdigest()
    except OSError as error:
        return {"trouble": f"Apache does not answer on the host itself ({error})"}
    login = {"user": user(target), "password": password}
    return {"certificate": fingerprint, "name": site_name(), **login, "kibana": of_kibana}
