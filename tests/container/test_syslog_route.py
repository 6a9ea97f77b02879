"""What the kernel logs arrives in one file, whole, on a real box; tests run in this order."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from box import Box
from box.attack import attack
from testinfra.host import Host

from tests.container.conftest import Fab

FabCommand = Callable[..., Fab]
LOG = "/var/log/iptables.log"
DROP_IN = "/etc/rsyslog.d/10-knockmap.conf"
ROTATE = ("logrotate", "--state", "/var/lib/knockmap/logrotate.status", "/etc/knockmap/logrotate.conf")
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|\+00:00) \S+ kernel: knockmap IN=\S+ OUT= MAC=\S* SRC=\S+ DST=\S+ .* "
    r"PROTO=TCP SPT=\d+ DPT=22 .* SYN URGP=0 "
)
NOTHING_CHANGED = r"\d+ ok, 0 changed, 0 failed, 0 skipped"

# A neighbour behind a pair of interfaces, whose IPv6 SYNs from one port give the same text: nothing in it counts up.
NEIGHBOUR = """
ip netns add outside
ip link add out0 type veth peer name out1 netns outside
ip -6 addr add {box}/64 dev out0 nodad
ip link set out0 up
ip -n outside -6 addr add {neighbour}/64 dev out1 nodad
ip -n outside link set out1 up
"""
SAME_SYNS = """
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
neighbour, box, *ports = sys.argv[1:]
out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP)
for port in map(int, ports):
    header = struct.pack("!HHIIBBHHH", port, 22, 7, 0, 5 << 4, 2, 1024, 0, 0)
    ends = b"".join(socket.inet_pton(socket.AF_INET6, end) for end in (neighbour, box))
    pseudo = ends + struct.pack("!IHBB", 20, 0, 0, 6)
    out.sendto(header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:], (box, 0))
"""


def sh(box: Box, script: str) -> str:
    """Run a script in the box that must succeed."""
    status, output = box.run(["bash", "-euc", script])
    assert status == 0, output
    return output


def lines(box: Box) -> list[str]:
    """What was sent by attacks and neighbours over all rotations, oldest first; eth0 is how fab comes in."""
    script = f"for f in $(ls -v -r {LOG}*); do case $f in *.gz) zcat $f ;; *) cat $f ;; esac; done"
    return [line for line in sh(box, script).splitlines() if " IN=eth0 " not in line]


def settled_lines(box: Box) -> list[str]:
    """The lines when no more arrive."""
    found = lines(box)
    for _ in range(60):
        time.sleep(0.5)
        found, before = lines(box), found
        if len(found) == len(before):
            break
    return found


def rsyslogd(box: Box) -> str:
    return sh(box, "systemctl show -p MainPID --value rsyslog")


def test_check_writes_nothing_and_announces_all(fab: FabCommand, box: Box) -> None:
    look = "find /etc /usr /var/log /var/lib -newer /tmp/mark ! -path '*/journal*' | sort; getent passwd"
    sh(box, "touch /tmp/mark")
    before = sh(box, look)
    done = fab(box, "syslog-route", "--check", "--diff")
    assert done.rc == 0 and re.match(r"0 ok, \d+ would change, 0 failed, 0 skipped", done.last), done.out
    assert sh(box, look) == before


def test_apply_installs_rsyslog_and_hands_it_the_lines(fab: FabCommand, box: Box, host: Host) -> None:
    done = fab(box, "iptables-log", "syslog-route")
    assert done.rc == 0, done.out
    assert host.service("rsyslog").is_running and host.service("knockmap-logrotate.timer").is_enabled


def test_a_second_run_changes_nothing_and_restarts_nothing(fab: FabCommand, box: Box) -> None:
    before = rsyslogd(box)
    done = fab(box, "syslog-route", "--fail-on-change")
    assert done.rc == 0 and re.match(NOTHING_CHANGED, done.last), done.out
    assert rsyslogd(box) == before


def test_every_syn_is_one_line_in_the_log_and_nowhere_else(box: Box) -> None:
    sent = attack(box, sources=20, count=100, rate=200)
    found = settled_lines(box)
    assert len(found) == 100 == sent.v4 + sent.v6
    assert [line for line in found if not LINE.fullmatch(line)] == []
    assert sh(box, f"grep -rl 'knockmap IN=' /var/log | grep -v '^{LOG}$' || true") == ""


def test_only_the_readers_group_can_read(box: Box, host: Host) -> None:
    log = host.file(LOG)
    assert (log.user, log.group, log.mode) == ("root", "knockmap", 0o640)
    assert box.run(["setpriv", "--reuid=knockmap", "--regid=knockmap", "--clear-groups", "cat", LOG])[0] == 0
    assert box.run(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "cat", LOG])[0] != 0


@pytest.mark.parametrize(
    ("drift", "restarts"),
    (
        (f"echo stop >>{DROP_IN}", True),
        (f"rm {LOG}", True),
        ("systemctl disable -q --now knockmap-logrotate.timer", False),
        ("sed -i s/daily/weekly/ /etc/knockmap/logrotate.conf", False),
        ("systemctl stop -q syslog.socket rsyslog", True),
    ),
)
def test_drift_is_repaired_and_rsyslog_restarts_only_for_what_it_reads(
    fab: FabCommand, box: Box, drift: str, restarts: bool
) -> None:
    before = rsyslogd(box)
    sh(box, drift)
    done = fab(box, "syslog-route")
    assert done.rc == 0 and " 0 changed" not in done.last, done.out
    assert (rsyslogd(box) != before) == restarts
    written = len(lines(box))
    sent = attack(box, sources=2, count=4, rate=100)
    assert 0 <= written + 4 - len(settled_lines(box)) <= sent.overruns
    assert box.run(["stat", "-c", "%U:%G %a", LOG])[1].strip() == "root:knockmap 640"


def test_a_drop_in_that_rsyslog_refuses_does_not_stay(fab: FabCommand, box: Box) -> None:
    """Somebody else's file is broken: ours goes back to what it was, and the running daemon is left alone."""
    sh(box, f"echo 'stopp everything' >/etc/rsyslog.d/90-broken.conf; echo '# edited' >>{DROP_IN}")
    before = rsyslogd(box), sh(box, f"cat {DROP_IN}")
    done = fab(box, "syslog-route")
    assert done.rc == 1 and "what was there before is back" in done.out and "90-broken.conf" in done.out, (
        done.out
    )
    assert (rsyslogd(box), sh(box, f"cat {DROP_IN}")) == before
    sh(box, "rm /etc/rsyslog.d/90-broken.conf")
    assert fab(box, "syslog-route").rc == 0


def test_an_rsyslogd_that_is_no_root_makes_the_log_anew_for_its_readers(
    fab: FabCommand, fresh_box: Box
) -> None:
    """As Ubuntu's, which begins as root and goes on as syslog; Debian's unit would not let it."""
    ubuntus = r"$PrivDropToUser syslog\n$PrivDropToGroup syslog"
    allowed = r"[Service]\nCapabilityBoundingSet=CAP_SETUID CAP_SETGID\nSystemCallFilter=\n"
    unit = "/etc/systemd/system/rsyslog.service.d"
    sh(
        fresh_box,
        f"mkdir -p {unit}; printf '{allowed}' >{unit}/test.conf; apt-get install -qq -y rsyslog >/dev/null; "
        "useradd -r -U -s /usr/sbin/nologin -G adm syslog; chown root:syslog /var/log; chmod 775 /var/log; "
        f"sed -i '1i {ubuntus}' /etc/rsyslog.conf; rm -f /var/log/syslog; systemctl restart rsyslog",
    )
    for task in ("syslog-route", "iptables-log"):
        done = fab(fresh_box, task)
        assert done.rc == 0, done.out
    assert "0 changed, 0 failed" in fab(fresh_box, "syslog-route").last
    sh(fresh_box, f"rm {LOG}; systemctl restart rsyslog")
    sent = attack(fresh_box, sources=10, count=20, rate=100)
    assert len(settled_lines(fresh_box)) == sent.v4 + sent.v6
    assert fresh_box.run(["stat", "-c", "%U:%G %a", LOG])[1].strip() == "syslog:knockmap 640"
    assert fab(fresh_box, "undo", "syslog-route").rc == 0
    assert "knockmap" not in fresh_box.run(["id", "-nG", "syslog"])[1]


def test_what_rsyslog_reduces_still_counts(box: Box) -> None:
    """Ubuntu's rsyslog writes `message repeated 5 times`; the log keeps these words, for the collector to expand."""
    sh(box, "sed -i '1i $RepeatedMsgReduction on' /etc/rsyslog.conf; systemctl restart rsyslog")
    before = counts(box)["seen"]
    written = len(lines(box))
    network = f"fd22:{box.address.rsplit('.', 1)[1]}"
    ends = {"neighbour": f"{network}::2", "box": f"{network}::1"}
    sh(box, NEIGHBOUR.format(**ends))
    for port in ("4000", "4001"):
        box.run(["ip", "netns", "exec", "outside", "python3", "-c", SAME_SYNS, *ends.values(), *[port] * 6])
    time.sleep(1)
    sh(box, "sed -i 1d /etc/rsyslog.conf; systemctl restart rsyslog")  # writes down what it still counted
    found = settled_lines(box)[written:]
    repeated = [
        re.search(r"kernel: message repeated (\d+) times: \[ knockmap IN=.*\]$", line) for line in found
    ]
    total = sum(int(again[1]) if again else 1 for again in repeated)
    assert total == 12 == counts(box)["seen"] - before
    assert all(again or LINE.fullmatch(line) for again, line in zip(repeated, found, strict=True))


class Rotations(threading.Thread):
    """logrotate -f again and again, while it is entered."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.box, self.done, self.going = box, 0, True
        self.failed: list[str] = []

    def run(self) -> None:
        while self.going:
            status, output = self.box.run([*ROTATE[:1], "-f", *ROTATE[1:]])
            self.done += 1
            if status:
                self.failed.append(output)
            time.sleep(0.3)

    def __enter__(self) -> Rotations:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.going = False
        self.join()


@dataclass(frozen=True)
class Flood:
    """What came of a flood: packets sent, packets of each counter and lines in the log; `proof` if it was fast
    enough and the harness gave the box every line of the kernel."""

    sent: int
    seen: int
    over_limit: int
    lines: int
    rotations: int
    proof: bool


def flood(box: Box) -> Flood:
    """20,000 SYNs at 6,000 a second, while the log is rotated."""
    written, overruns, before = len(settled_lines(box)), box.overruns(), counts(box)
    with Rotations(box) as rotations:
        sent = attack(box, count=20_000, rate=6_000)
    assert rotations.failed == []
    new, after = len(settled_lines(box)) - written, counts(box)
    return Flood(
        sent=sent.v4 + sent.v6,
        seen=after["seen"] - before["seen"],
        over_limit=after["over_limit"] - before["over_limit"],
        lines=new,
        rotations=rotations.done,
        proof=sent.seconds <= 4 and box.overruns() == overruns,
    )


def counts(box: Box) -> dict[str, int]:
    """IPv4 and IPv6 together."""
    found = json.loads(sh(box, "/usr/local/lib/knockmap/rules counts"))
    return {key: found["v4"][key] + found["v6"][key] for key in found["v4"]}


@pytest.mark.parametrize(("limit", "burst"), ((500, 1000), (10_000, 100_000)))
def test_no_line_is_lost_in_a_flood_with_rotations(fab: FabCommand, box: Box, limit: int, burst: int) -> None:
    """Lines over all rotations + what is over the limit = what the counting rule saw."""
    settings = {
        "KNOCKMAP_KNOCK_LIMIT": str(limit),
        "KNOCKMAP_KNOCK_BURST": str(burst),
        "KNOCKMAP_LOG_ROTATE_KEEP": "365",
    }
    assert fab(box, "iptables-log", "syslog-route", **settings).rc == 0
    # On a busy machine the harness itself may lose lines before the box can read them, and says so.
    done = next((result for result in (flood(box) for _ in range(5)) if result.proof), None)
    assert done is not None, (
        "the harness lost lines of the kernel five times: this machine is too busy for a proof"
    )
    assert done.rotations >= 3
    assert done.seen == done.sent == 20_000
    assert done.lines + done.over_limit == done.seen
    assert (done.over_limit == 0) == (limit == 10_000)


def test_the_timers_service_rotates_by_size_and_only_then(fab: FabCommand, box: Box) -> None:
    assert fab(box, "iptables-log", "syslog-route", KNOCKMAP_LOG_ROTATE_MEGABYTES="1").rc == 0
    sh(box, f"rm -f {LOG}.*; truncate -s 900K {LOG}; systemctl start knockmap-logrotate.service")
    assert sh(box, f"ls {LOG}*").split() == [LOG]
    sh(box, f"truncate -s 1100K {LOG}; systemctl start knockmap-logrotate.service")
    assert sh(box, f"ls {LOG}*").split() == [LOG, f"{LOG}.1"]
    assert sh(box, f"stat -c '%U:%G %a' {LOG} {LOG}.1").split("\n")[:2] == ["root:knockmap 640"] * 2
    assert fab(box, "syslog-route").rc == 0


def test_rotates_where_a_group_may_write_to_var_log(box: Box) -> None:
    """As on Ubuntu, whose /var/log belongs to root:syslog with mode 775."""
    sh(box, "chgrp adm /var/log; chmod 775 /var/log")
    attack(box, sources=2, count=4, rate=100)
    sh(box, f"systemctl start rsyslog; {ROTATE[0]} -f {' '.join(ROTATE[1:])}")
    sh(box, "chgrp root /var/log; chmod 755 /var/log")


def test_all_as_before_after_a_reboot(fab: FabCommand, box: Box) -> None:
    box.restart()
    written = len(lines(box))
    attack(box, sources=4, count=20, rate=100)
    assert len(settled_lines(box)) == written + 20
    done = fab(box, "iptables-log", "syslog-route", KNOCKMAP_LOG_ROTATE_KEEP="14")
    assert re.match(NOTHING_CHANGED, done.last), done.out


def test_a_log_on_a_memory_disk_is_back_at_boot_with_its_rights(box: Box) -> None:
    sh(box, f"rm {LOG}; systemd-tmpfiles --create /etc/tmpfiles.d/knockmap.conf; systemctl restart rsyslog")
    assert sh(box, f"stat -c '%U:%G %a' {LOG}").strip() == "root:knockmap 640"


def test_undo_takes_the_drop_in_out_and_keeps_the_log(fab: FabCommand, box: Box) -> None:
    attack(box, sources=2, count=4, rate=100)
    written = len(settled_lines(box))
    done = fab(box, "undo", "--task", "syslog-route")
    assert done.rc == 0, done.out
    left = sh(box, "ls /etc/rsyslog.d /etc/systemd/system /etc/tmpfiles.d /etc/knockmap 2>&1")
    assert not re.search(r"10-knockmap|knockmap-logrotate|knockmap\.conf|logrotate\.conf", left), left
    attack(box, sources=2, count=4, rate=100)
    assert len(settled_lines(box)) == written > 0
    done = fab(box, "undo", "--task", "syslog-route", "--data")
    assert done.rc == 0, done.out
    assert box.run(["sh", "-c", f"ls -d {LOG}* /var/lib/knockmap/logrotate.status"])[0] != 0
    assert box.run(["getent", "passwd", "knockmap"])[0] != 0


def test_syslog_ng_stays_and_writes_the_lines(fab: FabCommand, fresh_box: Box) -> None:
    """Debian's other daemon. In a box the journal has no kernel lines, so it is told to read the kernel itself."""
    sh(
        fresh_box,
        "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends syslog-ng-core 2>&1; "
        'sed -i \'s|^ *system();|pipe("/proc/kmsg" program-override("kernel") flags(kernel));|\' '
        "/etc/syslog-ng/syslog-ng.conf; systemctl restart syslog-ng",
    )
    done = fab(fresh_box, "iptables-log", "syslog-route")
    assert done.rc == 0, done.out
    assert re.match(NOTHING_CHANGED, fab(fresh_box, "iptables-log", "syslog-route").last)
    lost = 0  # of the kernel's lines, of whichever box
    for total in (20, 40):
        lost += attack(fresh_box, sources=4, count=20, rate=100).overruns
        found = settled_lines(fresh_box)
        assert total - lost <= len(found) <= total and all(LINE.fullmatch(line) for line in found), found[-1:]
        sh(fresh_box, f"{ROTATE[0]} -f {' '.join(ROTATE[1:])}")
    assert fresh_box.run(["dpkg-query", "-W", "rsyslog"])[0] != 0
    assert sh(fresh_box, f"stat -c '%U:%G %a' {LOG} {LOG}.1").split("\n")[:2] == ["root:knockmap 640"] * 2
    # What does not hold with syslog-ng: Debian reads drop-ins last, so its own logs keep a copy.
    assert int(sh(fresh_box, "grep -c 'knockmap IN=syn0' /var/log/kern.log").strip()) == 40
