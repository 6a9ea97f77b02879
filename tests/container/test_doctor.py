"""A box is broken in one way after another, and doctor names that very cause first; mended, all is well again.

Real boxes, real services, real packets, with two exceptions that a shared machine forces: a container cannot set the
clock and cannot unload a kernel module, so there the operator's clock and the kernel's list of writers are injected.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from box import Box, attack
from box.images import client
from box.machine import relay_name
from docker.types import IPAMConfig, IPAMPool
from fabric.config import Config

import fabfile
from fabfile.doctor import Diagnosis, examine
from fabfile.engine.connection import VerifiedConnection
from fabfile.settings import Settings
from tests.container.conftest import Fab
from tests.container.test_iptables_log import sh
from tests.unit import mmdb
from tests.unit.tls import certificate

FabCommand = Callable[..., Fab]
DB = "/var/lib/knockmap/collector/knockmap.db"
STOP, START = (
    "systemctl stop knockmap-collector",
    "systemctl reset-failed; systemctl start knockmap-collector",
)
# While the dashboard has the database open, the collector's end leaves the WAL there, and with it the pages as they were.
STOP_ALL = f"systemctl stop knockmap-dashboard; {STOP}"
START_ALL = f"{START}; systemctl start knockmap-dashboard"
DAY = 86400
# With what `web` deploys, the chain goes on to the browser.
WEB = {"dashboard", "apache_proxy"} <= set(fabfile.TASKS)


class Breakage(NamedTuple):
    """A way to break a box, the link that is to be named for it, some of its words, and how to mend the box."""

    name: str
    broken: str
    mended: str
    link: str
    words: str


def aside(path: str) -> tuple[str, str]:
    return f"mv {path} {path}.aside", f"mv {path}.aside {path}"


def on_site(directive: str) -> str:
    """Shell for the value of a directive in Apache's sites."""
    return f"$(grep -RhoP '^\\s*{directive}\\s+\\K\\S+' /etc/apache2/sites-enabled/ | head -n 1 | tr -d '\"')"


SQL = "import sqlite3; db = sqlite3.connect('%s', isolation_level=None); db.execute('%s')"
HOLD = f"import sqlite3, time; db = sqlite3.connect('{DB}', isolation_level=None); db.execute('BEGIN IMMEDIATE'); time.sleep(60)"
SMALL = f"""{STOP}; mkdir -p /root/kept; cp -a /var/lib/knockmap/collector/. /root/kept/
mount -t tmpfs -o size=32M,uid=$(id -u knockmap),gid=$(id -g knockmap),mode=750 tmpfs /var/lib/knockmap/collector
cp -a /root/kept/. /var/lib/knockmap/collector/; {START}"""

EXPIRED = certificate(datetime.now(timezone.utc) - timedelta(days=3))[1].decode()
EXPIRE = f"""cp -a {on_site("SSLCertificateFile")} /root/was.pem
echo '{EXPIRED}' >{on_site("SSLCertificateFile")}; systemctl reload apache2"""

CHAIN = [
    Breakage("disk-full", SMALL, f"{STOP}; umount /var/lib/knockmap/collector; {START}", "disk", "MiB are free in /var/lib/knockmap/collector"),
    Breakage("sshd-overruled", "echo 'X11Forwarding yes' >/etc/ssh/sshd_config.d/05-other.conf", "rm /etc/ssh/sshd_config.d/05-other.conf", "sshd", "05-other.conf:1: X11Forwarding yes"),
    Breakage("sshd-config-invalid", "echo 'Nonsense yes' >/etc/ssh/sshd_config.d/05-other.conf", "rm /etc/ssh/sshd_config.d/05-other.conf", "sshd", "refuses its configuration"),
    Breakage("sshd-drop-in-gone", *aside("/etc/ssh/sshd_config.d/10-knockmap-hardening.conf"), "sshd", "10-knockmap-hardening.conf is gone"),
    Breakage("rule-v4-flushed", "systemctl stop knockmap-rules.timer; iptables -F INPUT; iptables -F KNOCKMAP; iptables -X KNOCKMAP", "/usr/local/lib/knockmap/rules load; systemctl start knockmap-rules.timer", "rule", "the IPv4 rule is gone"),
    Breakage("rule-v6-removed", "systemctl stop knockmap-rules.timer; ip6tables -F INPUT", "/usr/local/lib/knockmap/rules load; systemctl start knockmap-rules.timer", "rule", "INPUT of IPv6 does not enter"),
    Breakage("rule-does-not-log", "systemctl stop knockmap-rules.timer; ip6tables -F KNOCKMAP", "/usr/local/lib/knockmap/rules load; systemctl start knockmap-rules.timer", "rule", "KNOCKMAP of IPv6 does not log"),
    Breakage("port-22-dropped-before", "systemctl stop knockmap-rules.timer; iptables -I INPUT 1 -p tcp --dport 22 -j DROP", "iptables -D INPUT -p tcp --dport 22 -j DROP; systemctl start knockmap-rules.timer", "rule", "--dport 22 -j DROP"),
    Breakage("log-unreadable", "chmod 000 /var/log/iptables.log", "chmod 640 /var/log/iptables.log", "log", "mode 0000"),
    Breakage("log-deleted", "rm /var/log/iptables.log", "install -m 640 -g knockmap /dev/null /var/log/iptables.log; systemctl restart rsyslog", "log", "/var/log/iptables.log is gone"),
    Breakage("rsyslog-stopped", "systemctl stop syslog.socket rsyslog", "systemctl start rsyslog", "syslog", "rsyslog does not run"),
    Breakage("rsyslog-drop-in-gone", *aside("/etc/rsyslog.d/10-knockmap.conf"), "syslog", "10-knockmap.conf is gone"),
    Breakage("log-replaced-beneath-rsyslog", "rm /var/log/iptables.log; install -m 640 -g knockmap /dev/null /var/log/iptables.log", "systemctl restart rsyslog", "syslog", "writes into a removed"),
    Breakage("rotation-timer-disabled", "systemctl disable -q --now knockmap-logrotate.timer", "systemctl enable -q --now knockmap-logrotate.timer", "rotation", "timer does not run"),
    Breakage("logrotate-config-broken", "cp -a /etc/knockmap/logrotate.conf /root/; sed -i 's/ rotate .*/ rotate many/' /etc/knockmap/logrotate.conf", "cp -a /root/logrotate.conf /etc/knockmap/", "rotation", "logrotate refuses"),
    Breakage("collector-stopped", STOP, START, "collector", "the collector is stopped"),
    Breakage("collector-program-broken", "cd /usr/local/lib/knockmap/collector; cp -a geoip.py /root/; echo 'raise SystemExit(\"broken\")' >geoip.py; systemctl restart knockmap-collector; sleep 0.5", f"cp -a /root/geoip.py /usr/local/lib/knockmap/collector/; {STOP}; {START}", "collector", "ends again and again"),
    Breakage("mmdb-missing", *aside("/var/lib/knockmap/geo/small.mmdb"), "GeoIP", "is missing"),
    Breakage("mmdb-unreadable", "cp -a /var/lib/knockmap/geo /root/; for f in /var/lib/knockmap/geo/*; do echo nonsense >$f; done", "cp -a /root/geo/. /var/lib/knockmap/geo/", "GeoIP", "cannot be read by the collector"),
    Breakage("mmdb-damaged", "cp -a /var/lib/knockmap/geo /root/; for f in /var/lib/knockmap/geo/*; do printf x | dd of=$f bs=1 seek=40 conv=notrunc status=none; done", "cp -a /root/geo/. /var/lib/knockmap/geo/", "GeoIP", "search tree is corrupt"),
    Breakage("mmdb-replaced", "cp -a /var/lib/knockmap/geo /root/; sed -i s/Test-City/Fest-City/ /var/lib/knockmap/geo/*", "cp -a /root/geo/. /var/lib/knockmap/geo/", "GeoIP", "is not what was deployed"),
    Breakage("database-locked", f'systemd-run -q --unit hold python3 -c "{HOLD}"; sleep 0.3', "systemctl stop hold", "database", "locked"),
    Breakage("database-damaged", f"{STOP_ALL}; cp -a {DB} /root/; dd if=/dev/urandom of={DB} bs=4096 seek=1 count=20 conv=notrunc status=none; {START_ALL}; sleep 0.5", f"{STOP_ALL}; cp -a /root/knockmap.db {DB}; {START_ALL}", "database", "is damaged"),
    Breakage("database-gone", f"{STOP}; mkdir /root/away; mv {DB}* /root/away/; chmod 500 /var/lib/knockmap/collector; {START}", f"{STOP}; chmod 750 /var/lib/knockmap/collector; mv /root/away/* /var/lib/knockmap/collector/; rmdir /root/away; {START}", "database", "there is no database"),
    Breakage("port-22-filtered", "iptables -t raw -I PREROUTING -p tcp --dport 22 -j DROP", "iptables -t raw -F", "proof packet", "filters port 22"),
]  # fmt: skip
BROWSER = [
    Breakage("api-stopped", "systemctl stop knockmap-dashboard", "systemctl start knockmap-dashboard", "dashboard", "is stopped"),
    Breakage("apache-stopped", "systemctl stop apache2", "systemctl start apache2", "Apache", "does not run"),
    Breakage("apache-config-broken", "echo Nonsense >/etc/apache2/conf-enabled/zz.conf", "rm /etc/apache2/conf-enabled/zz.conf", "Apache", "refuses its configuration"),
    Breakage("certificate-expired", EXPIRE, f"cat /root/was.pem >{on_site('SSLCertificateFile')}; systemctl reload apache2", "certificate", "has expired"),
    Breakage("htpasswd-emptied", f"cp -a {on_site('AuthUserFile')} /root/users; : >{on_site('AuthUserFile')}", f"cat /root/users >{on_site('AuthUserFile')}", "login", "has no users"),
]  # fmt: skip
BREAKAGES = [*CHAIN, *(BROWSER if WEB else ())]


@pytest.fixture(scope="module")
def geo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small GeoIP database, built just now."""
    path = tmp_path_factory.mktemp("geo") / "small.mmdb"
    mmdb.write(path, {"10.0.0.0/8": {"country_code": "DE"}}, built=int(time.time()) - DAY)
    return {"KNOCKMAP_GEO_DATABASES": str(path)}


@pytest.fixture(scope="module")
def deployed(fab: FabCommand, box: Box, geo: dict[str, str]) -> Fab:
    done = fab(box, "deploy", **geo)
    assert done.rc == 0, done.out
    return done


def diagnose(fab: FabCommand, box: Box) -> dict[str, Any]:
    shown = fab(box, "doctor", "--json")
    found: dict[str, Any] = json.loads(shown.out)
    assert shown.rc == (0 if found["ok"] else 1), shown.out
    return found


def first_bad(found: dict[str, Any]) -> tuple[str, str]:
    """Name and cause of the first link, or else of the packet's stop, that is bad; empty if none is."""
    stops = [{"name": "proof packet", **proof} for proof in found["proof"]["packets"]]
    bad = [(one["name"], one["cause"]) for one in [*found["links"], *stops] if one["state"] == "bad"]
    return bad[0] if bad else ("", "")


def state(found: dict[str, Any], link: str) -> str:
    return str(next(one["state"] for one in found["links"] if one["name"] == link))


def by_hand(box: Box, **injected: Any) -> Diagnosis:
    """As `fab doctor`, with something injected."""
    config = Config(runtime_ssh_path=str(box.ssh_config))
    with VerifiedConnection(box.name, config=config, settings=Settings()) as c:
        return examine(c, Settings(), proof=False, **injected)


def test_a_host_without_knockmap_is_told_how_to_get_it(fab: FabCommand, box: Box) -> None:
    sh(box, "touch /tmp/mark")
    found = diagnose(fab, box)
    name, cause = first_bad(found)
    assert name == "rule" and "nothing of knockmap is deployed" in cause
    assert found["links"][-1]["next"].endswith("deploy")
    assert sh(box, "find /etc /usr /var/lib -newer /tmp/mark -not -path '*/systemd/*'") == ""


def test_deploy_says_at_its_end_what_doctor_sees(deployed: Fab) -> None:
    notes = [line for line in deployed.out.splitlines() if "doctor: " in line]
    assert len(notes) == 1 and "doctor: nothing is bad" in notes[0], deployed.out


def test_a_deploy_that_changes_nothing_does_not_look_again(
    fab: FabCommand, box: Box, deployed: Fab, geo: dict[str, str]
) -> None:
    assert "doctor" not in fab(box, "deploy", **geo).out


def test_all_is_well_and_one_syn_is_followed_to_the_end(fab: FabCommand, box: Box, deployed: Fab) -> None:
    before = json.loads(sh(box, "/usr/local/lib/knockmap/rules counts"))["v4"]["seen"]
    found = diagnose(fab, box)
    assert first_bad(found) == ("", "")
    packet = found["proof"]["packets"][0]
    hops = ["counter", "log line", "database row", *(["JSON behind the login"] if WEB else [])]
    assert [hop["name"] for hop in packet["hops"]] == hops
    times = [hop["ms"] for hop in packet["hops"]]
    assert times == sorted(times) and times[0] >= 0 and times[-1] < 3000
    assert json.loads(sh(box, "/usr/local/lib/knockmap/rules counts"))["v4"]["seen"] == before + 1
    address, port = packet["seen_as"].split(" port ")
    lines = fab(box, "scanners", "--json").out
    assert f"SRC={address} " in lines and f"SPT={port} " in lines


def test_over_ipv6_a_syn_is_followed_as_well(fab: FabCommand, box: Box, deployed: Fab) -> None:
    """By a network of its own, since the ports of a box are published over IPv4 alone."""
    pool = IPAMPool(subnet=f"fd22:{os.getpid() % 0xFFFF:x}::/64")
    network = client().networks.create(
        f"{box.container}-v6", enable_ipv6=True, ipam=IPAMConfig(pool_configs=[pool])
    )
    try:
        network.connect(box.container)
        networks = client().containers.get(box.container).attrs["NetworkSettings"]["Networks"]
        shown = fab(box, "doctor", "--json", "--to", networks[network.name]["GlobalIPv6Address"])
        network.disconnect(box.container)
    finally:
        network.remove()
    found = json.loads(shown.out)
    (packet,) = found["proof"]["packets"]
    assert found["ok"] and packet["family"] == 6 and ":" in packet["seen_as"]
    assert [hop["name"] for hop in packet["hops"]][:3] == ["counter", "log line", "database row"]


def test_the_links_stand_in_the_order_of_the_chain(fab: FabCommand, box: Box, deployed: Fab) -> None:
    chain = "clock disk sshd rule counter log syslog rotation collector GeoIP database dashboard Apache certificate login"
    found = diagnose(fab, box)
    assert [link["name"] for link in found["links"]] == chain.split()
    web = {state(found, name) for name in ("dashboard", "Apache", "certificate", "login")}
    assert web == ({"ok"} if WEB else {"absent"})


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_names_the_very_cause_first(fab: FabCommand, box: Box, deployed: Fab, breakage: Breakage) -> None:
    sh(box, breakage.broken)
    try:
        found = diagnose(fab, box)
    finally:
        sh(box, breakage.mended)
    name, cause = first_bad(found)
    assert name == breakage.link and breakage.words in cause, found
    assert found["summary"].startswith(f"root cause: {name}: {cause}; next: ")
    assert not found["ok"]
    mended = diagnose(fab, box)
    assert mended["ok"], first_bad(mended)


def test_every_breakage_has_a_next_command(fab: FabCommand, box: Box, deployed: Fab) -> None:
    sh(box, STOP)
    shown = fab(box, "doctor")
    sh(box, START)
    assert shown.rc == 1
    assert f"-H {box.name} collector" in shown.last and shown.last.startswith("root cause: collector")
    assert fab(box, "doctor").last.startswith("nothing is bad")


def test_old_geoip_data_are_named(
    fab: FabCommand, box: Box, deployed: Fab, geo: dict[str, str], tmp_path: Path
) -> None:
    for days, wanted in ((400, "warn"), (800, "bad")):
        mmdb.write(tmp_path / "small.mmdb", {"10.0.0.0/8": {}}, built=int(time.time()) - days * DAY)
        assert fab(box, "collector", KNOCKMAP_GEO_DATABASES=str(tmp_path / "small.mmdb")).rc == 0
        found = diagnose(fab, box)
        assert state(found, "GeoIP") == wanted and found["ok"] == (wanted == "warn")
        assert f"{days} days old" in next(li["cause"] for li in found["links"] if li["name"] == "GeoIP")
    assert fab(box, "collector", **geo).rc == 0
    assert state(diagnose(fab, box), "GeoIP") == "ok"


def test_a_line_that_the_kernel_does_not_hand_on_stops_the_packet_there(
    fab: FabCommand, box: Box, deployed: Fab
) -> None:
    relay = client().containers.get(relay_name(box.name))  # which hands the kernel's lines to the box
    relay.pause()
    try:
        found = diagnose(fab, box)
    finally:
        relay.unpause()
    assert first_bad(found)[0] == "proof packet"
    packet = found["proof"]["packets"][0]
    assert packet["stopped"] == "log line" and [hop["name"] for hop in packet["hops"]] == ["counter"]
    assert diagnose(fab, box)["ok"]


def test_another_scanner_is_not_taken_for_our_packet(fab: FabCommand, box: Box, deployed: Fab) -> None:
    """Ours is filtered, by its source; others go on to knock meanwhile."""
    mine = diagnose(fab, box)["proof"]["packets"][0]["seen_as"].split(" port ")[0]
    sh(box, f"iptables -t raw -I PREROUTING -p tcp --dport 22 -s {mine} -j DROP")
    knocks = "import socket, time\nfor i in range(40):\n s = socket.socket()\n s.setblocking(False)\n s.connect_ex(('198.18.33.1', 22))\n time.sleep(.1)"
    sh(
        box,
        "ip netns add outside; ip link add out0 type veth peer name out1 netns outside; ip addr add 198.18.33.1/30 dev out0; ip link set out0 up; ip -n outside addr add 198.18.33.2/30 dev out1; ip -n outside link set out1 up",
    )
    sh(box, f'systemd-run -q ip netns exec outside python3 -c "{knocks}"')
    try:
        found = diagnose(fab, box)
    finally:
        sh(box, "iptables -t raw -F; ip netns del outside")
    packet = found["proof"]["packets"][0]
    assert packet["stopped"] == "counter" and packet["hops"] == [], packet
    assert diagnose(fab, box)["ok"]


def test_a_clock_that_is_off_is_named(box: Box, deployed: Fab) -> None:
    for shift, wanted in ((-600, "bad"), (600, "bad"), (20, "warn"), (0, "ok")):
        found = by_hand(box, clock=lambda shift=shift: time.time() + shift)
        assert found.links[0].name == "clock" and found.links[0].state == wanted
        assert found.ok == (wanted != "bad")
        assert wanted == "ok" or f"{abs(shift)} s" in found.links[0].cause


def test_a_kernel_that_prints_every_line_on_the_console_is_named(box: Box, deployed: Fab) -> None:
    """Told to doctor, since a container may not say what the kernel of all prints."""
    sh(box, "echo '7 4 1 7' >/root/printk")
    found = {link.name: link for link in by_hand(box, printk="/root/printk").links}
    assert found["rule"].state == "warn" and "begins with 7" in found["rule"].cause, found["rule"]
    assert "kernel.printk = 4 4 1 7" in found["rule"].next


def test_a_kernel_that_lacks_nf_log_is_named(box: Box, deployed: Fab) -> None:
    sh(box, "sed 's/nf_log_[a-z0-9]*/nothing/g' /proc/net/netfilter/nf_log >/root/nf_log")
    found = by_hand(box, nf_log="/root/nf_log")
    assert found.root and found.root.name == "rule" and "nf_log_syslog is missing" in found.root.cause
    assert by_hand(box).ok


def test_warns_of_what_may_become_bad(fab: FabCommand, box: Box, deployed: Fab) -> None:
    """Each is told, and none is bad by itself."""
    sh(box, "/usr/local/lib/knockmap/ssh arm 300")
    sh(box, "echo 'no packet at all' >>/var/log/iptables.log")
    note = SQL % (DB, 'INSERT OR REPLACE INTO meta VALUES(\\"paused\\", 1)')
    sh(box, f'runuser -u knockmap -- python3 -c "{note}"; sleep 1')
    try:
        found = diagnose(fab, box)
    finally:
        sh(box, "/usr/local/lib/knockmap/ssh disarm")
        sh(
            box,
            f'runuser -u knockmap -- python3 -c "{SQL % (DB, "DELETE FROM meta WHERE key = char(112,97,117,115,101,100)")}"',
        )
        sh(box, f'runuser -u knockmap -- python3 -c "{SQL % (DB, "UPDATE unparsed SET ts = 0")}"')
    assert found["ok"]
    assert {name: state(found, name) for name in ("disk", "sshd", "database")} == dict.fromkeys(
        ("disk", "sshd", "database"), "warn"
    )
    again = diagnose(fab, box)
    assert not [link for link in again["links"] if link["state"] == "warn"], again


def test_a_flood_over_the_limit_is_told(fab: FabCommand, box: Box, deployed: Fab) -> None:
    assert fab(box, "iptables-log", KNOCKMAP_KNOCK_LIMIT="1", KNOCKMAP_KNOCK_BURST="1").rc == 0
    attack(box, sources=4, count=40, rate=400)
    found = diagnose(fab, box)
    assert "over the limit" in next(li["cause"] for li in found["links"] if li["name"] == "counter")
    assert fab(box, "iptables-log").rc == 0


def test_sudo_and_several_hosts_work_and_nothing_is_written(fab: FabCommand, box: Box, deployed: Fab) -> None:
    sh(box, "sleep 1.1; touch /tmp/mark")
    shown = fab(box, "doctor", user="op")
    assert shown.rc == 0, shown.out
    changed = sh(
        box, "find /etc /usr /var/lib/knockmap -newer /tmp/mark -type f -not -path '*/collector/knockmap.db*'"
    )
    assert changed == ""
    assert sh(box, "find /var/lib/knockmap/collector -not -user knockmap") == ""
    both = fab(f"{box.name},nowhere.invalid", "doctor")
    assert both.rc == 1 and "nothing is bad" in both.out
