"""What doctor says of what it sees: verdicts, the root cause, the marks of a packet, and the last hop over real TLS.

The upstream of the last tests is a double: a small HTTPS server in this process that answers as the dashboard does.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fabfile import doctor as task
from fabfile import proof_packet
from fabfile.doctor import Diagnosis, Link, clock_link
from fabfile.engine.fleet import Outcome
from fabfile.engine.report import Answer
from fabfile.proof_packet import Course, Packet, Proof
from tests.unit.tls import certificate

# Last: the target's modules import their neighbours by bare name.
sys.path += [str(task.FOLDER), str(task.OTHERS["mmdb"].parent)]

import doctor
import look
import packet
import sensor
import storage
import web

DAY = 86400
LINE = (
    b"2026-11-24T15:00:00.000000+00:00 box kernel: knockmap IN=eth0 OUT= MAC=aa SRC=%s DST=192.0.2.1 LEN=60 TOS=0x00"
    b" PREC=0x00 TTL=64 ID=1 DF PROTO=TCP SPT=%d DPT=22 WINDOW=%d RES=0x00 SYN URGP=0"
)


# --- which one is the root cause ----------------------------------------------------------------------------------


def test_the_first_bad_link_is_the_root_cause_and_the_last_line() -> None:
    found = Diagnosis(
        "h", [Link("disk", "warn", "w"), Link("rule", "bad", "gone", "do"), Link("log", "bad", "x")]
    )
    assert found.root and found.root.name == "rule" and not found.ok
    assert found.summary == "root cause: rule: gone; next: do"


def test_a_packet_that_stopped_is_the_root_cause_where_no_link_is_bad() -> None:
    found = Diagnosis(
        "h", [Link("rule", "ok", "")], [Proof(4, "a", state="bad", cause="filtered", next="open it")]
    )
    assert found.root and found.root.name == "proof packet" and "filtered" in found.summary


def test_warnings_and_what_is_not_deployed_are_not_bad() -> None:
    found = Diagnosis("h", [Link("disk", "warn", ""), Link("Apache", "absent", ""), Link("rule", "ok", "")])
    assert found.ok and found.summary == "nothing is bad: 1 ok, 1 to look at, 1 not deployed"


def test_the_exit_code_is_that_of_what_was_found() -> None:
    assert Outcome("h", answer=Answer("text", ok=False)).failed
    assert not Outcome("h", answer=Answer("text")).failed
    assert Outcome("h", answer=Answer("text", True, "last")).last_line == "last"


def test_a_symptom_is_told_as_the_databases() -> None:
    symptom = look.bad("behind", "next", symptom=True)
    told = doctor.told_as_causes({"collector": symptom, "database": look.bad("locked", "next")})
    assert told["collector"].state == "warn" and told["collector"].cause == "behind; see database"
    alone = doctor.told_as_causes({"collector": symptom, "database": look.ok("")})
    assert alone["collector"].state == "bad"


def test_a_link_that_cannot_be_looked_at_does_not_hide_the_others() -> None:
    def breaks(target: look.Target) -> look.Link:
        raise RuntimeError("oops")

    assert doctor.looked_at(breaks, SimpleNamespace()) == look.bad(
        "it cannot be looked at: RuntimeError: oops", "{fab} deploy"
    )


# --- the clock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "state"),
    [(100.1, "ok"), (104.0, "ok"), (120.0, "warn"), (80.0, "warn"), (0.0, "bad"), (300.0, "bad")],
)
def test_clocks_differ_only_by_what_the_way_cannot_explain(there: float, state: str) -> None:
    link = clock_link(there, sent=100.0, received=100.5)
    assert link.state == state
    assert state == "ok" or ("behind" if there < 100 else "ahead of") in link.cause


# --- the rule, the counter ------------------------------------------------------------------------------------------

NF_LOG = " 1 NONE (nfnetlink_log)\n 2 NONE (%s,nfnetlink_log)\n10 nf_log_syslog (%s)\n"


@pytest.mark.parametrize(
    ("text", "v4", "v6"),
    [
        (NF_LOG % ("nf_log_syslog", "nf_log_syslog"), True, True),
        (NF_LOG % ("nf_log_ipv4", "nf_log_ipv6"), True, True),
        (NF_LOG % ("nf_log_arp", "nf_log_syslog"), False, True),
        ("", True, True),
    ],
)
def test_the_kernel_tells_who_writes_log_lines(text: str, v4: bool, v6: bool) -> None:
    assert (sensor.unheard("v4", text) == "", sensor.unheard("v6", text) == "") == (v4, v6)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """What the rules program and iptables print."""

    def set_(rules: str, all_rules: str = "") -> None:
        def run(*argv: str, **_: Any) -> Any:
            return SimpleNamespace(
                stdout=rules if argv[0] == sensor.RULES_PROGRAM else all_rules, returncode=0
            )

        monkeypatch.setattr(sensor, "run", run)

    return set_


LOG_RULE = '-A KNOCKMAP -m hashlimit -j LOG --log-prefix "knockmap "\n'


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("", "is gone"),
        (LOG_RULE, "does not enter"),
        ("1 -A INPUT -j KNOCKMAP\n", "does not log"),
        ("2 -A INPUT -j KNOCKMAP\n" + LOG_RULE, "-A INPUT -p tcp -j DROP"),
        ("1 -A INPUT -j KNOCKMAP\n3 -A INPUT -j KNOCKMAP\n" + LOG_RULE, "2 times"),
    ],
)
def test_says_what_is_wrong_with_the_chain(shown: Callable[[str, str], None], rules: str, words: str) -> None:
    shown(rules, "-P INPUT ACCEPT\n-A INPUT -p tcp -j DROP\n-A INPUT -j KNOCKMAP\n")
    problem = sensor.rule_problem("v6")
    assert words in problem and "IPv6" in problem


def test_a_chain_that_is_first_and_logs_has_no_problem(shown: Callable[[str, str], None]) -> None:
    shown("1 -A INPUT -j KNOCKMAP\n" + LOG_RULE, "")
    assert sensor.rule_problem("v4") == ""


def test_a_counter_over_the_limit_that_grows_is_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"v4": {"seen": 90, "logged": 50, "over_limit": 40}}
    monkeypatch.setattr(sensor, "counts", lambda: now)
    before = {"v4": {"seen": 80, "logged": 45, "over_limit": 35}}
    target: Any = SimpleNamespace(tasks={"iptables_log"}, job={"counts": before})
    assert sensor.counter(target).state == "warn" and "5 SYNs" in sensor.counter(target).cause
    target.job["counts"] = now
    assert sensor.counter(target) == look.ok("IPv4 90 seen, 50 logged, 40 over the limit")


# --- the journal ----------------------------------------------------------------------------------------------------


def test_files_of_ours_that_are_gone_or_edited_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("same", "edited", "gone")]
    for path in paths[:2]:
        path.write_text("ours\n")
    digest = look.sha256(str(paths[0]))
    after = {"type": "file", "sha256": digest}
    entries = {
        f"file:{p}": {"task": "t", "kind": "file", "want": {"path": str(p)}, "after": after} for p in paths
    }
    (tmp_path / "journal.json").write_text(json.dumps(entries))
    monkeypatch.setattr(look, "JOURNAL", str(tmp_path / "journal.json"))
    paths[1].write_text("theirs\n")
    target = look.Target({})
    assert target.tasks == {"t"}
    assert target.gone("t") == str(paths[2]) and target.edited("t") == str(paths[1])
    assert target.gone("other") == "" and target.edited("other") == ""


def test_what_an_undo_keeps_is_not_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [
        {"task": "iptables_log", "kind": "package", "want": {"names": ["iptables"]}},
        {"task": "syslog_route", "kind": "file", "want": {"path": "/var/log/iptables.log", "data": True}},
        {"task": "collector", "kind": "directory", "want": {"path": "/var/lib/knockmap"}},
    ]
    (tmp_path / "journal.json").write_text(json.dumps({str(n): entry for n, entry in enumerate(kept)}))
    monkeypatch.setattr(look, "JOURNAL", str(tmp_path / "journal.json"))
    assert "nothing of knockmap is deployed" in doctor.examine(look.Target({}))["rule"].cause


def test_nothing_deployed_is_the_one_thing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "JOURNAL", str(tmp_path / "journal.json"))
    found = doctor.examine(look.Target({}))
    assert list(found) == ["rule"] and found["rule"].next == "{fab} deploy"


def test_what_is_not_deployed_is_absent_and_not_looked_at() -> None:
    target: Any = SimpleNamespace(tasks={"something"}, job={}, entries={})
    links = {name: check(target).state for name, check in doctor.LINKS if name != "disk"}
    assert set(links.values()) == {"absent"}


# --- the certificate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [1999, 2026, 2049, 2050, 2120])
def test_the_end_of_a_certificate_is_read_in_both_forms_of_time(year: int) -> None:
    until = datetime(year, 5, 6, 7, 8, 9, tzinfo=timezone.utc)
    assert web.not_after(certificate(until)[0]) == until.timestamp()


@pytest.mark.parametrize(("days", "state"), [(-1, "bad"), (5, "warn"), (60, "ok")])
def test_a_certificate_warns_before_its_end(monkeypatch: pytest.MonkeyPatch, days: int, state: str) -> None:
    der = certificate(datetime.now(timezone.utc) + timedelta(days=days))[0]
    monkeypatch.setattr(web, "https", lambda path: web.Answer(401, b"", der))
    target: Any = SimpleNamespace(tasks={"apache_proxy"})
    assert web.certificate(target).state == state


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("ServerName 192.0.2.1\nServerAlias [2001:db8::1]\nServerAlias vps.example\n", "vps.example"),
        ("ServerName shop.example\nServerAlias vps.example\n", "vps.example"),
        ("ServerName shop.example\nServerAlias [2001:db8::1]\n", "2001:db8::1"),
        ("ServerName shop.example\n", "shop.example"),
        ("", "127.0.0.1"),
    ],
)
def test_apache_is_asked_for_our_site_among_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, name: str
) -> None:
    def ask(connection: web.Here, path: str) -> web.Answer:
        assert connection.port == 443
        return web.Answer(
            401, b"", b"", f'Basic realm="{"shop" if connection.host == "shop.example" else "knockmap"}"'
        )

    monkeypatch.setattr(web, "ask", ask)
    monkeypatch.setattr(web, "NAMES", str(tmp_path / "names.conf"))
    (tmp_path / "names.conf").write_text(lines)
    assert web.site_name() == name


def test_no_other_site_gets_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        web, "ask", lambda connection, path, headers=None: asked.append(headers) or web.Answer(200, b"", b"")
    )
    monkeypatch.setattr(web, "stored_password", lambda target: "hidden")
    target: Any = SimpleNamespace(job={}, tasks={"apache_proxy"})
    assert "was not tried" in web.tried(target, "1 user").cause and asked and not any(asked)


# --- the marks of our packet ----------------------------------------------------------------------------------------

OURS = {"port": 50000, "window": 1234, "from": ["198.51.100.7"], "family": 4}


@pytest.mark.parametrize(
    ("address", "port", "window", "ours"),
    [
        (b"198.51.100.7", 50000, 1234, True),
        (b"203.0.113.9", 61000, 1234, True),  # NAT changes address and port
        (b"203.0.113.9", 50000, 64240, True),  # a system without TCP_WINDOW_CLAMP behind NAT
        (b"198.51.100.7", 61000, 64240, True),  # a proxy makes a connection of its own
        (b"203.0.113.9", 61000, 64240, False),
    ],
)
def test_a_syn_is_ours_by_any_of_its_marks(address: bytes, port: int, window: int, ours: bool) -> None:
    seen = packet.seen_in(LINE % (address, port, window))
    assert seen == (address.decode(), port, window)
    assert bool(packet.likeness(seen, OURS)) == ours


def test_ipv6_is_printed_in_full_by_the_kernel_and_compared_in_short() -> None:
    seen = packet.seen_in(LINE % (b"2001:0db8:0000:0000:0000:0000:0000:0001", 1, 2))
    assert seen and seen.address == "2001:db8::1"


def test_other_ports_and_other_lines_are_nobodys() -> None:
    assert packet.seen_in(LINE.replace(b"DPT=22", b"DPT=23") % (b"192.0.2.9", 1, 2)) is None
    assert packet.seen_in(b"no packet") is None


class Count:
    """Stands for the rules program of the target."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = 10
        monkeypatch.setattr(packet, "counts", lambda: {"v4": {"seen": self.seen, "over_limit": 0}})


def test_what_others_sent_meanwhile_is_not_taken_for_our_arrival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"")
    count = Count(monkeypatch)
    monkeypatch.setattr(packet.LogEnd.__init__, "__defaults__", (str(log),))
    watch = packet.Watch(OURS)
    with log.open("ab") as file:
        file.write(LINE % (b"203.0.113.9", 61000, 64240) + b"\n")
    count.seen = 11
    assert watch.counter() is None
    assert watch.all_of_others(watch.counted()) and not watch.all_of_others(2)
    with log.open("ab") as file:
        file.write(LINE % (b"192.0.2.77", 61000, 1234) + b"\n")
    count.seen = 12
    assert not watch.all_of_others(1)
    assert watch.counter() and watch.log_line() == "192.0.2.77 port 61000"


def test_the_end_of_the_log_is_followed_over_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old\n")
    end = packet.LogEnd(str(log))
    with log.open("ab") as file:
        file.write(b"one\nhal")
    assert end.lines() == [b"one"]
    with log.open("ab") as file:
        file.write(b"f\n")
    log.rename(tmp_path / "log.1")
    log.write_bytes(b"new\n")
    assert end.lines() == [b"half"] and end.lines() == [b"new"]


# --- the database ---------------------------------------------------------------------------------------------------


def test_a_lines_age_is_that_of_its_stamp() -> None:
    stamp = datetime.now(timezone.utc).isoformat().encode()
    assert abs(storage.stamp(stamp + b" box kernel: x\n") - time.time()) < 1
    assert abs(storage.stamp(b"garbage\n") - time.time()) < 1


def test_ages_are_in_words_of_their_size() -> None:
    now = time.time()
    assert [storage.age(now - seconds) for seconds in (5, 300, 8000, 5 * DAY)] == [
        "5 s",
        "5 minutes",
        "2 hours",
        "5 days",
    ]


# --- on the operator's side -----------------------------------------------------------------------------------------


def test_a_packet_knows_its_port_before_it_is_sent_and_reaches_the_other_end() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        packets = proof_packet.prepare("127.0.0.1", [], "198.51.100.7")
        job = packets[0].job()
        assert job["family"] == 4 and job["to"] == ["127.0.0.1"] and job["port"] > 0
        assert job["from"] == ["198.51.100.7", "127.0.0.1"] and 1200 <= job["window"] < 1400
        assert packets[0].send("127.0.0.1") == ""
        for one in packets:
            one.close()


def test_where_the_packet_goes_can_be_said() -> None:
    packets = proof_packet.prepare("vps.invalid", ["192.0.2.7"], "")
    assert [(one.family, one.to) for one in packets] == [(4, "192.0.2.7")]
    packets[0].close()


def test_without_an_address_to_send_to_it_says_so() -> None:
    name = "a..b"  # no name at all, which Python's resolver does not take either
    assert proof_packet.prepare("127.0.0.1", [name], "") == []
    proof = proof_packet.unsent("127.0.0.1", [name])
    assert proof.state == "warn" and "no address of a..b" in proof.lines()[1]
    assert Diagnosis("h", [Link("rule", "ok", "")], [proof]).ok


def course(way_in: dict[str, Any] | None = None, gateway: Any = None) -> Course:
    c = SimpleNamespace(host="127.0.0.1", gateway=gateway)
    made = Course(c, [Packet(4, "127.0.0.1", "")], [], lambda command: command)
    made.way_in = way_in or {}
    made.proofs.append(Proof(4, "127.0.0.1"))
    made.sent = time.monotonic()
    return made


def stop_at(name: str, **options: Any) -> Proof:
    made = course(**options)
    made.take({"event": "stopped", "name": name, "over_limit": False})
    made.packets[0].close()
    return made.proofs[0]


@pytest.mark.parametrize("name", proof_packet.HOPS)
def test_every_stop_has_a_cause_and_a_next_command(name: str) -> None:
    proof = stop_at(name)
    assert proof.state == "bad" and proof.stopped == name and proof.cause and proof.next


def test_behind_a_jump_host_a_packet_that_does_not_arrive_is_no_proof() -> None:
    assert stop_at("counter", gateway=object()).state == "warn"
    assert stop_at("log line", gateway=object()).state == "bad"


def test_hops_count_from_the_moment_of_sending() -> None:
    made = course()
    made.sent = time.monotonic() - 0.1
    made.take({"event": "hop", "name": "counter", "ms": 40, "found": ""})
    made.take({"event": "hop", "name": "log line", "ms": 50, "found": "192.0.2.1 port 5"})
    made.packets[0].close()
    first, second = (hop["ms"] for hop in made.proofs[0].hops)
    assert 100 <= first < 200 and second == first + 10 and made.proofs[0].seen_as == "192.0.2.1 port 5"


# --- the last hop, at a double of the dashboard ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """A double of Apache and the dashboard: (port, SHA-256 of its certificate). Knows one line and one password."""
    der, pem = certificate(datetime.now(timezone.utc) + timedelta(days=9))
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(pem)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == web.authorization("knockmap", "right")["Authorization"]
            body = json.dumps({"lines": [{"text": "SRC=192.0.2.7 SPT=50000 DPT=22"}]}).encode()
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(body if known else b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_address[1], hashlib.sha256(der).hexdigest()
    server.shutdown()


def ask(port: int, fingerprint: str, password: str = "right") -> tuple[int, bytes]:
    way_in = {"certificate": fingerprint, "name": "vps.example", "user": "knockmap", "password": password}
    return proof_packet.get("127.0.0.1", "/map/api/lines?q=x", way_in, port)


def test_the_line_is_found_behind_the_login(double: tuple[int, str]) -> None:
    status, body = ask(*double)
    assert status == 200 and proof_packet.has(body, "SPT=50000 ") and not proof_packet.has(body, "SPT=5000 ")
    assert not proof_packet.has(b"<html>", "SPT=50000 ")


def test_a_wrong_password_is_an_answer(double: tuple[int, str]) -> None:
    assert ask(*double, password="wrong")[0] == 401


def test_nobody_but_the_pinned_certificate_gets_the_password(double: tuple[int, str]) -> None:
    with pytest.raises(OSError, match="another certificate"):
        ask(double[0], "0" * 64)


def test_an_apache_that_is_down_on_the_host_stops_the_last_hop() -> None:
    made = course({"trouble": "Apache does not answer"})
    made.take({"event": "stored", "address": "192.0.2.1", "port": 5, "at": 0})
    made.packets[0].close()
    assert made.proofs[0].stopped == proof_packet.HOPS[3] and "does not answer" in made.proofs[0].cause


def test_no_secret_is_in_what_is_printed() -> None:
    made = course()
    made.take({"event": "way in", "certificate": "c", "user": "knockmap", "password": "hidden"})
    made.packets[0].close()
    found = Diagnosis("h", [Link("rule", "ok", "")], made.proofs)
    assert "hidden" not in json.dumps(found.document()) and "hidden" not in task.text(
        found, lambda word, code: word
    )


# --- the program ----------------------------------------------------------------------------------------------------


def test_the_program_is_one_source_of_the_standard_library_alone() -> None:
    source = task.program().decode()
    paths = {path.stem: path for path in (*task.FOLDER.glob("*.py"), *task.OTHERS.values())}
    names = set(paths)
    assert names == set(task.MODULES)
    compile(source, "doctor", "exec")
    found = {line.split()[1].split(".")[0] for path in paths.values() for line in imports(path.read_text())}
    # maxminddb is looked for when GeoIP data are there, since the collector reads them by it.
    assert found - names - {"maxminddb"} <= set(sys.stdlib_module_names)


def imports(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(("import ", "from "))]
