"""Which link of the chain is broken, and what to type next; then one SYN from here, followed to where it is shown.

The links are looked at by a program on the target that writes nothing (files/doctor/). What only the operator's side
can know is added here: how far the clocks are apart, and whether a packet from outside arrives.
"""

from __future__ import annotations

import contextlib
import functools
import json as jsonlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fabric import Connection  # type: ignore[import-untyped]

from fabfile import proof_packet
from fabfile.engine.errors import HostError, UsageError
from fabfile.engine.fleet import host_task, settings
from fabfile.engine.report import Answer, printable
from fabfile.engine.resources import ROOT
from fabfile.engine.root_channel import Channel
from fabfile.engine.transport import run_agent
from fabfile.proof_packet import Proof
from fabfile.settings import Settings

FOLDER = ROOT / "files" / "doctor"
MODULES = (  # in order of import
    *("look", "sensor", "storage", "web", "elasticsearch", "elastic"),
    *("mmdb", "pipeline", "kibana", "packet", "doctor"),
)
# Brought along, since what is on the target may be gone.
OTHERS = {name: ROOT / "files" / "install_elk" / f"{name}.py" for name in ("elasticsearch", "mmdb")}
MARKS = {"ok": "32", "warn": "33", "bad": "31", "absent": "2"}
CLOCK_WARN, CLOCK_BAD = 5, 60  # seconds
Clock = Callable[[], float]

_LOADER = """
import sys, types
for name, source in MODULES.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, "doctor/" + name + ".py", "exec"), module.__dict__)
sys.modules["doctor"].main()
"""


@dataclass(frozen=True)
class Link:
    """One link: state ok, warn, bad or absent (not deployed), the cause in a sentence, the command to type next."""

    name: str
    state: str
    cause: str
    next: str = ""


@dataclass
class Diagnosis:
    """All links in the order of the chain, and the proof packets: at most one for IPv4 and one for IPv6."""

    host: str
    links: list[Link] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)

    @property
    def root(self) -> Link | None:
        """What is bad first; where no link is, where the packet stopped."""
        stops = [Link("proof packet", proof.state, proof.cause, proof.next) for proof in self.proofs]
        return next((link for link in (*self.links, *stops) if link.state == "bad"), None)

    @property
    def ok(self) -> bool:
        return self.root is None

    @property
    def summary(self) -> str:
        """The last line."""
        if self.root:
            return f"root cause: {self.root.name}: {self.root.cause}; next: {self.root.next}"
        count = {state: sum(link.state == state for link in self.links) for state in MARKS}
        words = [f"{count['ok']} ok", f"{count['warn']} to look at", f"{count['absent']} not deployed"]
        return "nothing is bad: " + ", ".join(words)

    def document(self) -> dict[str, Any]:
        links = [vars(link) for link in self.links]
        proof = {"packets": [proof.document() for proof in self.proofs]}
        return {"host": self.host, "links": links, "proof": proof, "ok": self.ok, "summary": self.summary}


@host_task(
    help={
        "json": "One JSON document in place of lines.",
        "to": "Where the proof packet goes if not where ssh goes: addresses of the host as seen from outside.",
    }
)
def doctor(c: Connection, json: bool = False, to: str = "") -> Answer:
    """Say which link of the chain is broken, and follow one SYN from here to the map."""
    addresses = [address.strip() for address in to.split(",") if address.strip()]
    if to and not addresses:
        raise UsageError(f"--to {to}: holds no address; give those of the host as seen from outside")
    found = examine(c, settings(c), proof=True, to=addresses)
    if json:
        return Answer(jsonlib.dumps(found.document(), ensure_ascii=False), found.ok, found.summary)
    return Answer(text(found, c.screen.paint), found.ok, found.summary)


def after_deploy(c: Connection, chosen: Settings) -> None:
    """Tell what is not well, in one notice each. No packet is sent: it would count on the map."""
    try:
        found = examine(c, chosen, proof=False)
    except HostError as error:  # what was deployed is deployed
        c.tell(f"doctor: {error}")
        return
    for link in found.links:
        if link.state in ("warn", "bad"):
            c.tell(f"doctor: {link.state}: {link.name}: {link.cause}; next: {link.next}")
    c.tell(f"doctor: {found.summary}; `{on_host(c, '{fab}')} doctor` also sends a proof packet")


def examine(
    c: Connection,
    chosen: Settings,
    *,
    proof: bool,
    to: Sequence[str] = (),
    clock: Clock = time.time,
    **injected: Any,
) -> Diagnosis:
    """Look at every link and follow the proof packets. `clock` is the operator's; `injected` is for tests, which
    cannot change what the kernel of a shared machine says."""
    c.open()
    found = Diagnosis(str(c.original_host))
    packets = proof_packet.prepare(c.host, to, came_from(c)) if proof else []
    if proof and not packets:
        found.proofs.append(proof_packet.unsent(c.host, to))
    course = proof_packet.Course(c, packets, found.proofs, functools.partial(on_host, c))
    sent_at = clock()

    def take(event: dict[str, Any]) -> None:
        if event["event"] == "hello":
            clocks = clock_link(float(event["now"]), sent_at, clock())
            found.links.append(replace(clocks, next=on_host(c, clocks.next)))
        elif event["event"] == "link":
            told = {key: str(event[key]) for key in ("name", "state", "cause")}
            found.links.append(Link(**told, next=on_host(c, event["next"])))
            course.root = course.root or (found.links[-1] if told["state"] == "bad" else None)
        elif event["event"] == "result":  # there is no Python there, which the engine has just said
            found.links.append(
                Link(
                    "rule", "bad", "nothing of knockmap is deployed on this host", on_host(c, "{fab} deploy")
                )
            )
        else:
            course.take(event)

    job = {"mode": "check", "packets": [packet.job() for packet in packets], **tunables(chosen), **injected}
    with contextlib.ExitStack() as stack:
        for packet in packets:
            stack.callback(packet.close)
        run_agent(c, job, {}, take, program())
    return found


def tunables(chosen: Settings) -> dict[str, Any]:
    names = ("log_rotate_megabytes", "dashboard_port", "web_user")
    return {name: getattr(chosen, name) for name in names}


def program() -> bytes:
    """files/doctor/ as one Python source."""
    paths = {name: FOLDER / f"{name}.py" for name in MODULES} | OTHERS
    sources = {name: paths[name].read_text(encoding="utf-8") for name in MODULES}
    return f"MODULES = {sources!r}\n{_LOADER}".encode()


def came_from(c: Connection) -> str:
    """Our address as the target sees it."""
    with Channel(c, 'echo "$SSH_CONNECTION"', "the question for our address") as channel:
        out = b"".join(out for out, _ in channel.receive())
    return (out.decode(errors="replace").split() or [""])[0]


def clock_link(there: float, sent: float, received: float) -> Link:
    """The target read its clock between our two looks at ours, so that much of a difference is none."""
    apart = max(sent - there, there - received, 0.0)
    if apart < CLOCK_WARN:
        return Link("clock", "ok", f"within {max(received - sent, apart):.1f} s of this machine's")
    way = "behind" if there < sent else "ahead of"
    return Link(
        "clock",
        "bad" if apart > CLOCK_BAD else "warn",
        f"the target's clock is {apart:.0f} s {way} this machine's, so times on the map are wrong, or here",
        "{ssh} timedatectl, and timedatectl here: which one is not synchronized?",
    )


def on_host(c: Connection, command: str) -> str:
    """A command with what leads to this host in place of `{fab}` and `{ssh}`."""
    config = getattr(c.config, "_runtime_ssh_path", None)
    host = str(c.original_host)
    user = f"{c.user}@" if c.user != c.ssh_config.get("user", c.config.user) else ""
    fab = ["fab", *(["-S", config] if config else []), "-H", f"{user}{host}"]
    ssh = ["ssh", *(["-F", config] if config else []), "-p", str(c.port), f"{c.user}@{host}"]
    return command.replace("{fab}", shlex.join(fab)).replace("{ssh}", shlex.join(ssh))


# --- for a terminal -----------------------------------------------------------------------------------------------


def text(found: Diagnosis, paint: Callable[[str, str], str]) -> str:
    lines = []
    width = max([12, *(len(link.name) for link in found.links)])
    for link in found.links:
        mark = paint(f"{'–' if link.state == 'absent' else link.state:<5}", MARKS[link.state])
        lines.append(f"{mark} {link.name:<{width}} {printable(link.cause)}")
        if link.next and link.state in ("warn", "bad"):
            lines.append(f"{'':<{width + 7}}{printable(link.next)}")
    for proof in found.proofs:
        lines += map(printable, proof.lines())
    return "\n".join([*lines, printable(found.summary)])
