"""One SYN from this machine to port 22 of the host, followed from hop to hop: `fab doctor`'s proof.

The target watches its counter, its log and its store; the last hop is ours: the page's JSON, or Kibana's search, behind
Apache's login, over TLS with the certificate that the target itself named over SSH. A NAT or a proxy in between changes the source, so the SYN
is known by any of its marks: an unusual window, its source port, the address that ssh came from.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlencode

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
WINDOW_CLAMP = 10  # TCP_WINDOW_CLAMP of Linux; elsewhere the window is as usual
JSON_SECONDS = 4.0
HOPS = ("counter", "log line", "database row", "JSON behind the login")
DOCUMENT, KIBANA = "document", "Kibana behind the login"  # the last two of the Elastic stack


class Packet:
    """A SYN that is not sent yet: its source port is known already."""

    def __init__(self, family: int, to: str, came_from: str, guessed: bool = False) -> None:
        self.family, self.to, self.guessed = family, to, guessed
        self.window = random.randrange(1200, 1400)  # noqa: S311 # a mark, no secret: nobody else sends so small a one
        self.socket = socket.socket(FAMILIES[family], socket.SOCK_STREAM)
        self.socket.setblocking(False)
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_TCP, WINDOW_CLAMP, self.window)
        self.socket.bind(("", 0))
        own = own_address(family, to)
        self.sources = [address for address in (came_from, own) if address]

    def job(self) -> dict[str, Any]:
        """What the target is to look for; without `to` it names an address of its own."""
        port = self.socket.getsockname()[1]
        to = [self.to] if self.to else []
        return {"family": self.family, "to": to, "port": port, "window": self.window, "from": self.sources}

    def send(self, to: str) -> str:
        """One SYN, and what TCP sends again if nobody answers; gives why it could not be sent."""
        try:
            self.socket.connect((to, 22))
        except BlockingIOError:
            return ""
        except OSError as error:
            return "" if isinstance(error, ConnectionRefusedError) else str(error)
        return ""

    def close(self) -> None:
        self.socket.close()


def prepare(host: str, to: Sequence[str], came_from: str) -> list[Packet]:
    """The SYNs to send: one for IPv4, one for IPv6 where this machine has it."""
    found = {family: addresses_of(to or [host], family) for family in FAMILIES}
    packets = [Packet(family, found[family][0], came_from) for family in FAMILIES if found[family]]
    if not found[6] and not to and own_address(6, "2001:db8::1"):
        with contextlib.suppress(OSError):
            packets.append(Packet(6, "", came_from, guessed=True))
    return packets


def unsent(host: str, to: Sequence[str]) -> Proof:
    """Where `prepare` found no address to send to."""
    cause = f"this machine knows no address of {' or '.join(to) or host}, so nothing was sent"
    return Proof(0, "", state="warn", cause=f"{cause}; say with --to where it is seen from outside")


def addresses_of(hosts: Sequence[str], family: int) -> list[str]:
    found: list[str] = []
    for host in hosts:
        with contextlib.suppress(OSError, UnicodeError):  # of a name that is none
            answers = socket.getaddrinfo(host, 22, FAMILIES[family], socket.SOCK_STREAM)
            found += [str(answer[4][0]) for answer in answers]
    return found


def own_address(family: int, to: str) -> str:
    """From which address this machine would send there; "" if it has no way. Nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as probe:
        probe.connect((to or "2001:db8::1", 22))
        return str(probe.getsockname()[0])
    return ""


@dataclass
class Proof:
    """How far one SYN came: hops with their milliseconds since it was sent; `state` ok, warn or bad.

    `family` 4 or 6, or 0 where there was nowhere to send it.
    """

    family: int
    to: str
    seen_as: str = ""
    hops: list[dict[str, Any]] = field(default_factory=list)
    state: str = "ok"
    stopped: str = ""
    cause: str = ""
    next: str = ""

    def document(self) -> dict[str, Any]:
        return dict(vars(self))

    def lines(self) -> list[str]:
        if not self.family:
            return ["", f"proof packet: {self.cause}"]
        seen = f", seen there as {self.seen_as}" if self.seen_as else ""
        lines = [
            "",
            f"proof packet: one SYN over IPv{self.family} from here to {self.to or 'the host'} port 22{seen}",
        ]
        lines += [f"      {hop['name']:<22} {hop['ms']:>6} ms" for hop in self.hops]
        if self.stopped:
            lines.append(f"{self.state:<5} stopped before: {self.stopped}: {self.cause}")
            lines += [f"{'':<19}{self.next}"] if self.next else []
        elif self.cause:
            lines.append(f"      {self.cause}")
        return lines


class Course:
    """Sends each packet when the target is ready for it, and takes down what becomes of it."""

    def __init__(
        self, c: Any, packets: list[Packet], proofs: list[Proof], on_host: Callable[[str], str]
    ) -> None:
        self.c, self.packets, self.proofs, self.on_host = c, packets, proofs, on_host
        self.way_in: dict[str, Any] = {}
        self.root: Any = None  # the first link that is bad
        self.sent = 0.0
        self.offset = 0.0  # from the target's milliseconds to ours

    def take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "way in":
            self.way_in = event
        elif kind == "ready":
            self.start(event)
        elif kind == "hop":
            self.hop(event)
        elif kind == "stopped":
            self.stop(event["name"], bool(event["over_limit"]))
        elif kind == "passed":
            self.passed(event)
        elif kind == "stored":
            self.stored(event)

    def packet(self, family: int) -> Packet:
        return next(packet for packet in self.packets if packet.family == family)

    def start(self, event: dict[str, Any]) -> None:
        proof = Proof(event["family"], str(event["to"]))
        self.proofs.append(proof)
        self.sent, self.offset = time.monotonic(), 0.0
        if trouble := self.packet(proof.family).send(proof.to):
            proof.cause = f"this machine cannot send to {proof.to}: {trouble}"

    def hop(self, event: dict[str, Any]) -> None:
        """The first hop is there and back, by our clock; from there on the target's differences count."""
        proof, name, ms = self.proofs[-1], str(event["name"]), int(event["ms"])
        if name == HOPS[0]:
            now = (time.monotonic() - self.sent) * 1000
            self.offset = now - ms
        if name == HOPS[1]:
            proof.seen_as = str(event["found"])
        proof.hops.append({"name": name, "ms": round(ms + self.offset)})

    def passed(self, event: dict[str, Any]) -> None:
        family, why = int(event["family"]), str(event["why"])
        if not self.proofs or self.proofs[-1].family != family:
            self.proofs.append(Proof(family, ""))
        self.proofs[-1].cause = why

    def stop(self, name: str, over_limit: bool = False) -> None:
        proof = self.proofs[-1]
        cause, next = STOPS[name]
        if name == HOPS[0]:
            cause = proof.cause or cause.format(to=proof.to)
            if not proof.cause and self.root and self.root.name in ("rule", "counter"):
                cause, next = f"nothing of it came to the rule; see {self.root.name} above", self.root.next
            proof.hops.clear()  # what was counted first was another's
        if over_limit and name == HOPS[1]:
            cause, next = "a flood is over knock_limit, and then not every SYN is logged", "{fab} doctor"
        # Where only a guess or a jump host leads there, a SYN from here proves nothing by its absence.
        uncertain = name == HOPS[0] and (self.packet(proof.family).guessed or bool(self.c.gateway))
        proof.state, proof.stopped = "warn" if uncertain else "bad", name
        proof.cause, proof.next = cause, self.on_host(next)

    def stored(self, event: dict[str, Any]) -> None:
        name = KIBANA if self.way_in.get("kibana") else HOPS[3]
        if "certificate" in self.way_in:
            self.ask_behind_login(name, event)
        elif "trouble" in self.way_in:
            self.stop(name)
            self.proofs[-1].cause += f": {self.way_in['trouble']}"
        else:
            self.proofs[-1].cause = f"{name}: {self.way_in.get('why', 'not deployed')}"

    def ask_behind_login(self, name: str, event: dict[str, Any]) -> None:
        """Until it is there, as a browser would ask for it."""
        ask_once = self.ask_kibana if name == KIBANA else self.ask_json
        deadline, why = time.monotonic() + JSON_SECONDS, ""
        while time.monotonic() < deadline:
            try:
                status, why = ask_once(event)
            except OSError as error:
                status, why = 0, str(error)
            if status == 200 and not why:
                ms = round((time.monotonic() - self.sent) * 1000)
                self.proofs[-1].hops.append({"name": name, "ms": ms})
                return
            if status in (401, 403, 429):
                break  # asking on would count as guessing, and lock this machine out
            time.sleep(0.2)
        self.stop(name)
        self.proofs[-1].cause += f": {why}"

    def ask_json(self, event: dict[str, Any]) -> tuple[int, str]:
        """HTTP status and why the line is not shown; "" if it is. Raises OSError."""
        query = {"since": event["at"] - 5, "until": event["at"] + 120, "q": event["address"]}
        status, body = get(self.c.host, f"/map/api/lines?{urlencode(query)}", self.way_in)
        if status != 200:
            tried = (
                ", since too many logins of this address failed; try again in a minute"
                if status == 429
                else ""
            )
            return status, f"Apache answers {status}{tried}"
        return status, "" if has(body, f"SPT={event['port']} ") else "the line is not among the answers"

    def ask_kibana(self, event: dict[str, Any]) -> tuple[int, str]:
        """By a visitor's session, as a panel of the dashboard asks. Raises OSError."""
        page = request(self.c.host, f"{KIBANA_PATH}/app/home", self.way_in)
        if page.status != 200 or not page.cookie:
            return page.status, f"Kibana's page answers {page.status}, and begins no session"
        search = {"size": 1, "query": {"ids": {"values": [event["id"]]}}}
        body = json.dumps({"params": {"index": "logs-iptables.ssh-*", "body": search}}).encode()
        headers = {**KIBANA_HEADERS, "Cookie": page.cookie}
        found = request(self.c.host, f"{KIBANA_PATH}/internal/search/es", self.way_in, headers, body)
        if found.status != 200:
            return found.status, f"Kibana's search answers {found.status}"
        return 200, "" if has_hit(found.body) else "the document is not among the answers"


# Where it stopped → why, and what to type next.
STOPS = {
    HOPS[0]: (
        "nothing of it came to the rule at {to}: something between here and the host filters port 22, such as the provider's firewall",
        "open TCP 22 in the provider's firewall, then {fab} doctor",
    ),
    HOPS[1]: (
        "the rule counted it and no line came: the kernel wrote none (in a container: net.netfilter.nf_log_all_netns), or the syslog daemon does not read the kernel's log",
        "{ssh} 'dmesg | tail -n 5; journalctl -u rsyslog -n 20'",
    ),
    HOPS[2]: (
        "its line is in the log, and no row came: the collector does not read on, or cannot write",
        "{ssh} journalctl -u knockmap-collector -n 20",
    ),
    HOPS[3]: (
        "its row is in the database, and it is not shown behind the login",
        "{ssh} journalctl -u knockmap-dashboard -u apache2 -n 20",
    ),
    DOCUMENT: (
        "its line is in the log, and Elasticsearch has no event of it: Logstash does not read on, or cannot write",
        "{ssh} journalctl -u logstash -n 20",
    ),
    KIBANA: (
        "its document is in Elasticsearch, and it is not shown behind the login",
        "{ssh} journalctl -u kibana -u apache2 -n 20",
    ),
}
KIBANA_PATH = "/kibana"
# What Kibana asks of a request to its inner search, which is the one that its own panels use.
KIBANA_HEADERS = {
    "Content-Type": "application/json",
    "kbn-xsrf": "knockmap",
    "x-elastic-internal-origin": "Kibana",
    "elastic-api-version": "1",
}


def has(body: bytes, mark: str) -> bool:
    try:
        return any(mark in str(line["text"]) for line in json.loads(body)["lines"])
    except (ValueError, KeyError, TypeError):
        return False


def has_hit(body: bytes) -> bool:
    try:
        return bool(json.loads(body)["rawResponse"]["hits"]["hits"])
    except (ValueError, KeyError, TypeError):
        return False


class Reply(NamedTuple):
    """What came back, with the session's cookie as a browser would send it again."""

    status: int
    body: bytes
    cookie: str


def get(host: str, path: str, way_in: dict[str, Any], port: int = 443) -> tuple[int, bytes]:
    """Status and body, with the stored login, from nobody but the pinned certificate. Raises OSError."""
    return request(host, path, way_in, port=port)[:2]


def request(
    host: str,
    path: str,
    way_in: dict[str, Any],
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    port: int = 443,
) -> Reply:
    """As `get`; with a body it is a POST. Raises OSError."""
    import http.client  # here and not above: every `fab` command would wait for them
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the pin is more than that
    seconds = 20 if way_in.get("kibana") else 3  # Kibana's first pages take their time
    # The name is that of our site, which may be one of many there, and leads from here to anywhere.
    connection = http.client.HTTPSConnection(way_in["name"], port, timeout=seconds, context=context)
    try:
        connection.sock = socket.create_connection((host, port), seconds)
        connection.sock = tls = context.wrap_socket(connection.sock, server_hostname=way_in["name"])
        shown: bytes = tls.getpeercert(True) or b""
        if hashlib.sha256(shown).hexdigest() != way_in["certificate"]:
            raise OSError(f"{host}:{port} shows another certificate than the host has")
        login = base64.b64encode(f"{way_in['user']}:{way_in['password']}".encode()).decode()
        given = {"Authorization": f"Basic {login}", **(headers or {})}
        connection.request("POST" if body else "GET", path, body, given)
        answer = connection.getresponse()
        cookies = [value.split(";")[0] for value in answer.headers.get_all("Set-Cookie") or []]
        return Reply(answer.status, answer.read(1 << 20), "; ".join(cookies))
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {type(error).__name__}") from error
    finally:
        connection.close()
