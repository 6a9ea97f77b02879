"""sshd listens on a port of its own, hardened, and at no moment can its operator be locked out.

The one task with stages: both ports live → a new login over the new port → hardened → a new login → the old port
closed → a new login, which alone disarms the way back. Until then a timer on the target, armed before the first change
and surviving reboots and a killed operator, puts everything back. On a box that is there already, all stages are the
one list of `resources`, held in the one pass of `deploy`: looked at, and only touched in stages again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import paramiko

from fabfile.engine import fleet, host_records
from fabfile.engine.connection import VerifiedConnection
from fabfile.engine.converge import converge
from fabfile.engine.converge import undo as put_back
from fabfile.engine.errors import HostError, TransportError, UnreachableError
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import Command, Directory, File, Plan, Resource, render
from fabfile.engine.transport import ask, server_keys, server_port
from fabfile.settings import Settings

NAME, WAY_BACK = "harden_ssh", "harden_ssh_way_back"
PATIENCE = 3.0  # seconds
PROGRAM = "/usr/local/lib/knockmap/ssh"
ARMED = "/var/lib/knockmap/ssh/armed.json"
DROP_INS = "/etc/ssh/sshd_config.d"
PORT_FILE, KEYS_FILE = f"{DROP_INS}/00-knockmap-port.conf", f"{DROP_INS}/20-knockmap-keys.conf"
PROGRAMS = Directory("/usr/local/lib/knockmap")


class StageError(HostError):
    """A stage did not come to its proof; the message says what the target is like now."""


def resources(
    settings: Settings, ports: tuple[int, ...] = (), hardened: bool = True, by_key: bool = True
) -> list[Resource]:
    """What is there in the end; with `ports` and `hardened`, what is there after a stage.

    `by_key`: a login by key was proven in this run, so passwords may go.
    """
    ports = ports or (settings.ssh_port,)
    test = (PROGRAM, "test")
    port = File(PORT_FILE, text=render("harden_ssh/port.conf.j2", ports=ports), verify=test)
    hardening = File(
        f"{DROP_INS}/10-knockmap-hardening.conf",
        text=render("harden_ssh/hardening.conf.j2", strict=settings.ssh_strict),
        verify=test,
    )
    keys = File(KEYS_FILE, text=render("harden_ssh/keys.conf"), verify=test)
    # Debian's ssh.socket, where an operator chose it, knows nothing of sshd_config.
    folder = Directory("/etc/systemd/system/ssh.socket.d", when=("ssh_owner", "socket"))
    socket = File(
        "/etc/systemd/system/ssh.socket.d/zz-knockmap.conf",
        text=render("harden_ssh/socket.conf.j2", ports=ports),
        when=("ssh_owner", "socket"),
    )
    words = tuple(map(str, ports))
    listening = Command(
        f"sshd listens on {' and '.join(words)} alone",
        (PROGRAM, "listen", *words),
        unless=(PROGRAM, "listens", *words),
        undo=(PROGRAM, "close", words[-1]),
    )
    return [
        port,
        *([hardening] if hardened else []),
        *([keys] if hardened and by_key else []),
        folder,
        socket,
        listening,
    ]


def way_back() -> list[Resource]:
    """The program and the timer that bring the former configuration back. They stay for the next move."""
    units = ("knockmap-ssh-revert.service", "knockmap-ssh-revert.timer")
    return [
        PROGRAMS,
        File(PROGRAM, text=render("harden_ssh/ssh.py"), mode=0o755),
        *(File(f"/etc/systemd/system/{name}", text=render(f"harden_ssh/{name}")) for name in units),
    ]


def plan(c: VerifiedConnection, settings: Settings) -> Plan:
    """This task's part of `deploy`'s one pass."""
    # A move that broke off looks done until its timer takes it back.
    at_rest = Command(
        "no way back is armed", (PROGRAM, "disarmed"), unless=("/usr/bin/test", "!", "-e", ARMED)
    )
    return {WAY_BACK: way_back(), NAME: [*resources(settings, by_key=logged_in_by_key(c)), at_rest]}


def logged_in_by_key(c: VerifiedConnection) -> bool:
    """True if sshd let this very connection in by a key."""
    return getattr(c.transport.auth_handler, "auth_method", "") == "publickey"


@host_task
def harden_ssh(c: VerifiedConnection, check: bool = False, diff: bool = False) -> Report:
    """Move sshd to a port of its own and harden it, with a way back until a login proves it."""
    return settle(c, fleet.settings(c), {}, check=check, diff=diff)


def settle(c: VerifiedConnection, settings: Settings, others: Plan, *, check: bool, diff: bool) -> Report:
    """This task, then `others` (task → resources), in one pass where sshd is on its port already."""
    c.open()
    check = check or bool(c.config.run.dry)

    def whole() -> Plan:
        return {**plan(c, settings), **others}

    if check or c.port == settings.ssh_port:
        if check and c.port != settings.ssh_port:
            refuse(c, settings.ssh_port, check=True)
        report = converge(c, whole(), check=check, diff=diff, held=[NAME])
        if not report.ok or not any("held" in entry for entry in report.data):
            return report
        return report + move(c, settings, diff=diff)
    # What would stop the others half-way shall do so while sshd is where it was.
    report = converge(c, others, preflight=True)
    if report.ok:
        report += move(c, settings, diff=diff)
    return report + converge(c, others, diff=diff) if report.ok and others else report


def move(c: VerifiedConnection, settings: Settings, *, diff: bool) -> Report:
    """The stages. Raises StageError when a proof failed: then the target has gone back."""
    old, new = c.port, settings.ssh_port
    report = refuse(c, new)
    moved_before = ask(c, ["test", "-e", PORT_FILE])[0] == 0  # by whomever, from wherever
    report += converge(c, {WAY_BACK: way_back()}, diff=diff)
    if not report.ok:
        return report
    by_key = logged_in_by_key(c)
    if not by_key:
        c.tell(
            "you logged in with a password, so sshd goes on taking passwords; with a key they would be switched off"
        )
    stages: list[tuple[str, list[Resource]]] = [
        (f"sshd also listens on {new}", resources(settings, (old, new), hardened=False)),
        ("sshd is hardened", resources(settings, (old, new), by_key=by_key)),
        (f"port {old} is closed", resources(settings, by_key=by_key)),
    ]
    if old == new:
        stages = [(f"sshd listens on {new} alone, hardened", resources(settings, by_key=by_key))]
    done, proof = staged(c, new, settings, stages, diff)
    report += done
    if proof is not None:
        _, kept, _ = ask(proof, ["grep", "AuthenticationMethods", KEYS_FILE])
        for line in kept.decode(errors="replace").splitlines():
            c.tell(f"left as it was, for all users: {line.lstrip('# ')}")
        first = host_records.recorded(c.original_host).old_port or (
            None if moved_before or old == new else old
        )
        host_records.record(c.original_host, server_keys(c), [new], old_port=first)
        proof.close()
    return report


def staged(
    c: VerifiedConnection, port: int, settings: Settings, stages: list[tuple[str, list[Resource]]], diff: bool
) -> tuple[Report, VerifiedConnection | None]:
    """Arm, go through the stages with a proof after each, disarm over the last proof's connection."""
    report, proof = Report(c.original_host), None
    arm(c, settings.ssh_revert_seconds)
    try:
        for said, nouns in stages:
            report += converge(c, {NAME: nouns}, diff=diff)
            if not report.ok:
                break
            c.tell(f"{said}; proving a new login over port {port}")
            if proof is not None:
                proof.close()
            proof = prove(c, port)
        if report.ok and proof is not None:
            order(proof, "disarm", "the way back could not be disarmed")
            c.tell(f"a login over port {port} is proven; the way back is disarmed")
            c.tell(f"from now on: ssh -p {port} {c.user}@{c.original_host}; fab finds the port by itself")
            return report, proof
    except TransportError as error:
        strict = settings.ssh_strict and isinstance(error.__cause__, paramiko.ssh_exception.IncompatiblePeer)
        reason = "; ssh_strict leaves only key exchange that this client lacks" if strict else ""
        raise StageError(
            f"{c.original_host}: no login over port {port}, {gone_back(c, settings)}: {error}{reason}"
        ) from error
    c.tell(gone_back(c, settings))
    return report, None


def prove(c: VerifiedConnection, port: int) -> VerifiedConnection:
    """A new login from here, as the same user, with the same host key, to sshd on this port, that can become root."""
    other = new_login(c, port)
    if (
        other.host_key
        and c.host_key
        and other.host_key.type == c.host_key.type
        and other.host_key != c.host_key
    ):
        raise TransportError(f"port {port} shows another host key")
    if (reached := server_port(other)) != port:
        raise TransportError(
            f"the login meant for port {port} came in on {reached}: a ProxyCommand or a forward is in between"
        )
    status, out, _ = ask(other, ["id", "-u"])
    if status or out.strip() != b"0":
        raise TransportError(f"the login over port {port} cannot become root")
    return other


def new_login(c: VerifiedConnection, port: int) -> VerifiedConnection:
    """Raises TransportError; sshd, which was just reloaded, may take a moment until it listens."""
    keys, deadline = server_keys(c), time.monotonic() + PATIENCE
    while True:
        other: VerifiedConnection = c.sibling(port, keys)
        try:
            other.open()
            return other
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def arm(c: VerifiedConnection, seconds: int) -> None:
    order(c, "arm", "the way back could not be armed, so sshd was not touched", str(seconds))
    c.tell(
        f"the way back is armed: without a proven login the target goes back within {seconds} s, by itself"
    )


def order(c: VerifiedConnection, verb: str, failed: str, *words: str) -> str:
    """Have the program on the target do something. Raises StageError with its words."""
    status, out, error = ask(c, [PROGRAM, verb, *words])
    if status:
        raise StageError(f"{c.original_host}: {failed}: {(error or out).decode(errors='replace').strip()}")
    return out.decode(errors="replace")


def gone_back(c: VerifiedConnection, settings: Settings) -> str:
    """Let the target go back at once over the first connection, which is still open; else its timer does."""
    with contextlib.suppress(HostError):
        order(c, "revert", "", "--now")
        return f"so the target went back to port {c.port} as it was"
    return f"so the target goes back to port {c.port} as it was, within {settings.ssh_revert_seconds} s, by itself"


# --- what cannot work, found before anything is touched -----------------------------------------------------------


def refuse(c: VerifiedConnection, port: int, check: bool = False) -> Report:
    """Look at the target's sshd. Raises StageError when the move cannot work; gives a report if Python came first."""
    report = Report(c.original_host)
    found = look(c, port)
    if found is None and not check:
        report = converge(c, {})
        found = look(c, port)
    if found is None:
        return report
    if (inside := server_port(c)) != c.port:
        raise StageError(
            f"{c.original_host}: you come in on port {inside}, but reached it as {c.port}: a forward is in between, so "
            f"port {port} cannot be proven from here; log in without it"
        )
    if reason := refusal(found, c.port, port):
        raise StageError(f"{c.original_host}: {reason}; nothing was touched")
    return report


def look(c: VerifiedConnection, port: int) -> dict[str, Any] | None:
    """The target's `facts`, by the program on stdin: nothing is written for it. None without Python there."""
    program = render("harden_ssh/ssh.py").encode()
    status, out, error = ask(c, ["/usr/bin/python3", "-IS", "-", "facts", str(port)], program)
    if status in (126, 127) or b"ModuleNotFoundError" in error:  # python3-minimal lacks some
        return None
    if status:
        raise StageError(
            f"{c.original_host}: sshd could not be looked at: {error.decode(errors='replace').strip()[-300:]}"
        )
    return dict(json.loads(out))


def refusal(found: dict[str, Any], old: int, new: int) -> str:
    """Why the move from `old` to `new` cannot work on a target with these facts; empty if it can."""
    reasons: list[tuple[Callable[[], bool], str]] = [
        (
            lambda: bool(found["refused"]),
            f"its sshd already refuses its configuration ({found['refused']}); mend that first",
        ),
        (
            lambda: found["lacks_ss"],
            "it lacks `ss`, without which nobody can say who listens on a port; run `apt-get install iproute2` first",
        ),
        (
            lambda: bool(found["port_lines"]),
            f"other lines decide about sshd's ports ({'; '.join(found['port_lines'])}); remove them first, since we do not edit files of others",
        ),
        (
            lambda: not found["reads_drop_ins"],
            "its /etc/ssh/sshd_config does not include /etc/ssh/sshd_config.d/*.conf before any Match block, so nothing that we write would be read; add that line at the top first",
        ),
        (
            lambda: found["owner"] == "socket" and found["accept"],
            "its ssh.socket starts a server for each connection (Accept=yes), which we do not move; run `systemctl disable --now ssh.socket` and `systemctl enable --now ssh.service` first",
        ),
        (
            lambda: "ssh.socket" in found["enabled"] and found["owner"] == "service",
            "ssh.socket is enabled while ssh.service holds the port, so after a reboot the socket would win and lose the new port; run `systemctl disable ssh.socket` and `systemctl enable ssh.service` first",
        ),
        (
            lambda: found["on_port"] not in ("", "nobody"),
            f"port {new} is taken there by {found['on_port']}; choose another ssh_port",
        ),
        (
            lambda: found["selinux"] == "Enforcing",
            f"SELinux is enforcing there: run `semanage port -a -t ssh_port_t -p tcp {new}` first",
        ),
        (
            lambda: old not in found["ports"],
            f"sshd there listens on {found['ports']}, no longer on {old}, by which we came: another run moved it, or is at it; run again",
        ),
    ]
    return next((text for holds, text in reasons if holds()), "")


# --- undo -------------------------------------------------------------------------------------------------------


EVERYTHING = (NAME, WAY_BACK, "engine")


def undo_move(c: VerifiedConnection, settings: Settings, **options: Any) -> Report:
    """Back to the former port, staged like the move: both ports → a login over the old one → what was there before."""
    c.open()
    old = host_records.recorded(c.original_host).old_port or 22
    if options["check"] or c.config.run.dry or ask(c, ["test", "-x", PROGRAM])[0]:
        return put_back(c, EVERYTHING, **options)
    preview = put_back(c, [NAME], **{**options, "check": True}, on_event=lambda event: None)
    if not preview.ok:  # somebody edited a file since: say so, with nothing touched
        return put_back(c, [NAME], **options)
    report = Report(c.original_host)
    arm(c, settings.ssh_revert_seconds)
    try:
        if c.port != old:
            report += converge(c, {NAME: both_ports(settings, c.port, old)})
            c.tell(f"sshd also listens on {old}; proving a new login over it")
            prove(c, old).close()
        report += put_back(c, [NAME], **options)
        if not report.ok:
            c.tell(gone_back(c, settings))
            return report
        order(c, "reload", "sshd could not be brought back")
        c.tell(f"sshd is as it was; proving a new login over port {old}")
        proof = prove(c, old)
        order(proof, "disarm", "the way back could not be disarmed")
    except TransportError as error:
        raise StageError(
            f"{c.original_host}: no login over port {old}, {gone_back(c, settings)}: {error}"
        ) from error
    ask(proof, [PROGRAM, "keep"])  # the old port stays open in the firewall, since sshd is there
    host_records.forget(c.original_host)
    return report + put_back(proof, EVERYTHING[1:], **options)


def both_ports(settings: Settings, new: int, old: int) -> list[Resource]:
    """The stage of undo in which both ports live. It opens the old port in the firewall and never closes it."""
    nouns = resources(settings, (new, old), hardened=False)
    return [replace(noun, undo=()) if isinstance(noun, Command) else noun for noun in nouns]
