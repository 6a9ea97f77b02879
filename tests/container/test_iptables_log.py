"""SYNs to port 22 are logged on a real box, by real netfilter, beside every firewall; tests run in this order."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest
from box import Box
from box.attack import Attack, attack
from testinfra.host import Host

from tests.container.conftest import Fab

FabCommand = Callable[..., Fab]
PROGRAM = "/usr/local/lib/knockmap/rules"
FAMILIES = (("v4", "iptables"), ("v6", "ip6tables"))
IN_FORCE = ["1 -A INPUT -p tcp -m tcp --dport 22 --tcp-flags FIN,SYN,RST,ACK SYN -j KNOCKMAP"]

# A neighbour behind a pair of interfaces; what it sends to the box passes INPUT like anything from outside.
NEIGHBOUR = """
ip netns add outside
ip link add out0 type veth peer name out1 netns outside
ip addr add 198.18.33.1/30 dev out0
ip -6 addr add fd22:33::1/64 dev out0 nodad
ip link set out0 up
ip -n outside addr add 198.18.33.2/30 dev out1
ip -n outside -6 addr add fd22:33::2/64 dev out1 nodad
ip -n outside link set out1 up
"""
TARGETS = ("198.18.33.1", "fd22:33::1")
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()
    print("accepted")
except OSError as error:
    print(type(error).__name__)
"""


def sh(box: Box, script: str) -> str:
    """Run a script in the box that must succeed."""
    status, output = box.run(["bash", "-euc", script])
    assert status == 0, output
    return output


def jumps(box: Box, tool: str = "iptables") -> list[str]:
    """Where INPUT enters our chain, with its place: read from the kernel, not from our program."""
    rules = [line for line in sh(box, f"{tool} -w 10 -S INPUT").splitlines() if line.startswith("-A INPUT")]
    return [f"{i} {line}" for i, line in enumerate(rules, 1) if line.endswith("-j KNOCKMAP")]


def both_in_force(box: Box) -> bool:
    """First, and once, in both families, with the rules of the chain."""
    return all(
        jumps(box, tool) == IN_FORCE and "-j LOG" in sh(box, f"{tool} -w 10 -S KNOCKMAP")
        for _, tool in FAMILIES
    )


def counts(box: Box) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(sh(box, f"{PROGRAM} counts"))
    return found


def logs_an_attack(box: Box) -> bool:
    """Whether every SYN of an attack is seen and logged."""
    before = counts(box)
    sent = attack(box, sources=10, count=20, rate=100)
    after = counts(box)
    return all(
        after[family][key] - before[family][key] == number
        for family, number in (("v4", sent.v4), ("v6", sent.v6))
        for key in ("seen", "logged")
    )


def connect(box: Box, target: str, port: int) -> str:
    """What becomes of a connection from the neighbour: accepted, TimeoutError or ConnectionRefusedError."""
    return box.run(["ip", "netns", "exec", "outside", "python3", "-c", CONNECT, target, str(port)])[1].strip()


def install(box: Box, *packages: str) -> None:
    names = " ".join(packages)
    sh(box, f"DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends {names} 2>&1")


def wait_for(what: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.2)
    return what()


def heals(box: Box) -> bool:
    """Whether all is in force soon after the timer's service was started, as the timer does every 5 minutes.

    Three such looks, since what flushes on a busy machine may come after the first one's second try.
    """
    for _ in range(3):
        sh(box, "systemctl start --no-block knockmap-rules-check")
        if wait_for(lambda: both_in_force(box)):
            return True
    return False


def state(box: Box) -> str:
    """What a failure is to show."""
    return sh(
        box,
        "for t in iptables ip6tables; do $t -S INPUT; $t -S KNOCKMAP; done 2>&1; cat /run/knockmap/rules.*; "
        "journalctl -o short-iso --no-pager -n 40 -u 'knockmap-rules*' -u firewalld; true",
    )


def test_check_writes_nothing_and_announces_all(fab: FabCommand, box: Box) -> None:
    look = "find /etc /usr /var/lib -newer /tmp/mark | sort; systemctl list-unit-files; nft list ruleset 2>&1 || true"
    sh(box, "touch /tmp/mark")
    before = sh(box, look)
    done = fab(box, "iptables-log", "--check", "--diff")
    assert done.rc == 0 and re.match(r"0 ok, \d+ would change, 0 failed, 0 skipped", done.last), done.out
    assert sh(box, look) == before


def test_apply_brings_the_chain_in_for_both_families(fab: FabCommand, box: Box) -> None:
    done = fab(box, "iptables-log")
    assert done.rc == 0, done.out
    assert both_in_force(box)


def test_no_connection_is_tracked_for_it(box: Box) -> None:
    """Where nobody else wants that: the table is small on a small host, and full it has packets dropped."""
    sh(box, "if nft list ruleset | grep 'ct state'; then exit 1; fi")
    attack(box, sources=10, count=20, rate=100)
    assert sh(box, "cat /proc/sys/net/netfilter/nf_conntrack_count").strip() == "0"


def test_rules_of_an_earlier_version_give_way(fab: FabCommand, box: Box) -> None:
    """One that had conntrack match every SYN, as it was written down when it was loaded."""
    former = "--syn -m conntrack --ctstate NEW -j KNOCKMAP"
    sh(
        box,
        f"sed -i 's/--syn -j KNOCKMAP/{former}/' /etc/knockmap/rules.v4 /etc/knockmap/rules.v6; {PROGRAM} load",
    )
    assert "ctstate" in jumps(box)[0] and "ctstate" in jumps(box, "ip6tables")[0]
    done = fab(box, "iptables-log")
    assert done.rc == 0 and both_in_force(box), done.out


def test_a_second_run_changes_nothing(fab: FabCommand, box: Box) -> None:
    done = fab(box, "iptables-log", "--fail-on-change")
    assert done.rc == 0 and re.match(r"\d+ ok, 0 changed, 0 failed, 0 skipped", done.last), done.out


def test_units_are_there_to_keep_it(host: Host) -> None:
    for name in ("knockmap-rules.service", "knockmap-rules.timer"):
        assert host.service(name).is_running and host.service(name).is_enabled


def test_every_syn_to_22_is_counted_and_logged_and_nothing_else(box: Box) -> None:
    before = counts(box)
    sent: Attack = attack(box, sources=20, count=100, rate=100)
    after = counts(box)
    for family, number in (("v4", sent.v4), ("v6", sent.v6)):
        assert number > 0
        for key, wanted in (("seen", number), ("logged", number), ("over_limit", 0)):
            assert after[family][key] - before[family][key] == wanted, (family, key)


@pytest.mark.parametrize(
    "drift",
    (
        "iptables -F INPUT",
        "ip6tables -F KNOCKMAP",
        "iptables -I INPUT 1 -s 203.0.113.1 -j DROP",
        "ip6tables -A INPUT -p tcp --dport 22 -j KNOCKMAP",
        "nft flush ruleset",
        "rm /etc/knockmap/rules.v6; systemctl disable --now -q knockmap-rules.timer",
    ),
)
def test_drift_is_seen_and_repaired(fab: FabCommand, box: Box, drift: str) -> None:
    if drift.startswith("nft"):
        install(box, "nftables")
        sh(
            box, "systemctl start knockmap-rules-check.service"
        )  # its start began a look, which is to end first
    sh(box, drift)
    assert fab(box, "iptables-log", "--check", "--fail-on-change").rc == 1
    done = fab(box, "iptables-log")
    assert done.rc == 0 and " 0 changed" not in done.last, done.out
    assert both_in_force(box)
    sh(box, "iptables -D INPUT -s 203.0.113.1 -j DROP 2>/dev/null || true")


def test_a_flush_by_hand_is_healed_by_what_the_timer_starts(box: Box) -> None:
    assert "knockmap-rules-check.service" in sh(box, "systemctl show -p Triggers knockmap-rules.timer")
    sh(box, "iptables -F INPUT; ip6tables -F; ip6tables -X KNOCKMAP")
    assert heals(box)


def test_counters_go_on_when_only_the_jump_was_displaced(box: Box) -> None:
    attack(box, sources=2, count=10, rate=100)
    before = counts(box)
    assert before["v4"]["seen"] and before["v6"]["seen"]
    sh(box, f"iptables -I INPUT 1 -s 203.0.113.1 -j DROP; {PROGRAM} load; {PROGRAM} load")
    sh(box, "iptables -D INPUT -s 203.0.113.1 -j DROP")
    assert both_in_force(box)
    assert counts(box) == before


def test_loads_that_come_at_the_same_time_bring_one_jump(box: Box) -> None:
    sh(box, "iptables -F; ip6tables -F; " + f"{PROGRAM} load & " * 5 + "wait")
    assert both_in_force(box)


def test_another_limit_is_in_force_at_once(fab: FabCommand, box: Box) -> None:
    """The kernel would go on with the former limit under the same hashlimit name."""
    done = fab(box, "iptables-log", KNOCKMAP_KNOCK_LIMIT="1", KNOCKMAP_KNOCK_BURST="5")
    assert done.rc == 0 and both_in_force(box), done.out
    sent = attack(box, sources=10, count=200, rate=1000)
    for family, number in (("v4", sent.v4), ("v6", sent.v6)):
        found = counts(box)[family]
        assert found["seen"] == number == found["logged"] + found["over_limit"]
        assert 5 <= found["logged"] <= 10
    assert fab(box, "iptables-log").rc == 0


def test_a_kernel_without_ipv6_gets_ipv4_and_says_so(box: Box) -> None:
    sh(box, "iptables -F INPUT")
    said = sh(
        box, f"unshare -m sh -c 'mount -t tmpfs none /proc/sys/net; {PROGRAM} load; {PROGRAM} counts' 2>&1"
    )
    assert "this kernel has no IPv6" in said and '"v6": null' in said
    assert both_in_force(box)


def test_back_after_a_reboot(fab: FabCommand, box: Box) -> None:
    box.restart()
    assert both_in_force(box)
    done = fab(box, "iptables-log")
    assert re.match(r"\d+ ok, 0 changed, 0 failed, 0 skipped", done.last), done.out


def sshd_on(box: Box, port: int) -> None:
    """Where sshd listens, as harden_ssh would leave it."""
    sh(box, f"echo Port {port} >/etc/ssh/sshd_config.d/10-test.conf; systemctl restart ssh")


def listen_on_22(box: Box) -> None:
    sh(box, "systemd-run -q --unit test-listener python3 -m http.server 22 --bind ::")
    assert wait_for(lambda: ":22 " in sh(box, "ss -Hltn 'sport = :22'"))


def stop_listening(box: Box) -> None:
    sh(box, "systemctl stop test-listener")


def answers(box: Box, port: int) -> set[str]:
    """What becomes of connections over IPv4 and IPv6."""
    return {connect(box, target, port) for target in TARGETS}


@pytest.fixture(scope="module")
def moved(box: Box) -> Iterator[None]:
    """A neighbour, sshd on 2222, and no timer that looks in the middle of a test."""
    sh(box, NEIGHBOUR)
    sshd_on(box, 2222)
    sh(box, "systemctl stop knockmap-rules.timer")
    yield
    sshd_on(box, 22)


@pytest.mark.usefixtures("moved")
@pytest.mark.parametrize(
    ("policy", "answer"),
    (("log", "accepted"), ("drop", "TimeoutError"), ("reject", "ConnectionRefusedError")),
)
def test_a_policy_holds_for_port_22_and_for_no_other(
    fab: FabCommand, box: Box, policy: str, answer: str
) -> None:
    done = fab(box, "iptables-log", KNOCKMAP_KNOCK_POLICY=policy)
    assert done.rc == 0 and both_in_force(box), done.out
    sh(box, "systemctl stop knockmap-rules.timer")
    before = counts(box)
    listen_on_22(box)
    assert answers(box, 22) == {answer}
    assert answers(box, 2222) == {"accepted"}
    stop_listening(box)
    for family in ("v4", "v6"):
        assert counts(box)[family]["logged"] > before[family]["logged"]


@pytest.mark.usefixtures("moved")
def test_a_policy_gives_way_to_an_sshd_that_is_back_on_22(fab: FabCommand, box: Box) -> None:
    assert fab(box, "iptables-log", KNOCKMAP_KNOCK_POLICY="drop").rc == 0
    listen_on_22(box)
    sh(box, f"{PROGRAM} load")
    assert answers(box, 22) == {"accepted"} and both_in_force(box)
    stop_listening(box)
    sh(box, f"{PROGRAM} load")
    assert "-j DROP" in sh(box, "iptables -S KNOCKMAP") and "-j DROP" in sh(box, "ip6tables -S KNOCKMAP")


@pytest.mark.usefixtures("moved")
def test_a_policy_that_would_lock_out_is_refused_before_it_is_in_place(fab: FabCommand, box: Box) -> None:
    assert fab(box, "iptables-log").rc == 0
    sshd_on(box, 22)
    done = fab(box, "iptables-log", KNOCKMAP_KNOCK_POLICY="drop")
    assert done.rc == 1 and "move sshd first" in done.out, done.out
    assert answers(box, 22) == {"accepted"}
    assert "DROP" not in sh(box, "cat /etc/knockmap/rules.v4 /etc/knockmap/rules.v6")


# Beside firewalls. Each is installed in the box as an operator would, after us.


def test_ufw_keeps_its_package_and_its_rules_and_we_stay_first(fab: FabCommand, box: Box) -> None:
    install(box, "ufw")
    for command in (
        "allow 22",
        "--force enable",
        "reload",
        "limit 22",
        "deny 22",
        "disable",
        "--force reset",
    ):
        sh(box, f"ufw {command} 2>&1")
        assert both_in_force(box), command
    sh(box, "ufw allow 22; ufw allow 2222; ufw --force enable; systemctl restart ufw")
    assert both_in_force(box)
    done = fab(box, "iptables-log")
    assert re.match(r"\d+ ok, 0 changed, 0 failed, 0 skipped", done.last), done.out
    assert "install ok installed" in sh(box, "dpkg-query -W -f '${Status}' ufw")
    assert "ufw" not in sh(box, "cat /etc/knockmap/rules.v4 /etc/knockmap/rules.v6")


def test_logged_although_ufw_denies(box: Box) -> None:
    sh(box, "ufw deny 22")
    assert logs_an_attack(box)


def test_back_after_a_reboot_with_ufw(box: Box) -> None:
    box.restart()
    assert "Status: active" in sh(box, "ufw status")
    assert both_in_force(box)
    sh(box, "ufw --force reset; apt-get purge -qq -y ufw 2>&1")


def test_docker_and_we_leave_each_other_alone(box: Box) -> None:
    """Its engine writes chains of its own at every start; it flushes nothing, and neither do we."""
    install(box, "docker.io")
    for command in ("start", "restart", "reload"):
        sh(box, f"systemctl {command} docker")
        assert both_in_force(box) and dockers_own(box), command
    assert logs_an_attack(box)
    sh(box, f"iptables -F INPUT; {PROGRAM} load")
    assert both_in_force(box) and dockers_own(box)
    box.restart()
    assert wait_for(lambda: dockers_own(box))
    assert both_in_force(box)
    sh(box, "DEBIAN_FRONTEND=noninteractive apt-get purge -qq -y --autoremove docker.io containerd 2>&1")


def dockers_own(box: Box) -> bool:
    """Whether the rules that Docker's engine sets are in force, for what it forwards and what it translates."""
    rules = sh(box, "iptables -w 10 -S FORWARD; iptables -w 10 -t nat -S POSTROUTING")
    return "-A FORWARD -j DOCKER-USER" in rules and "-j MASQUERADE" in rules


# An operator's own firewall, which begins as Debian's does and lets nobody in but by eth0, where fab comes from.
NFTABLES = """
flush ruleset
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname { lo, eth0 } accept
        meta l4proto ipv6-icmp accept
    }
}
"""


def test_back_after_everything_that_nftables_service_does(box: Box) -> None:
    install(box, "nftables")
    sh(box, f"cp /etc/nftables.conf /root/; cat >/etc/nftables.conf <<'end'\n{NFTABLES}end")
    for verb in ("start", "reload", "restart", "restart", "reload"):
        sh(box, f"systemctl {verb} nftables")
        assert wait_for(lambda: both_in_force(box)), verb
    assert logs_an_attack(box), "nftables dropped what we did not see"
    sh(box, "systemctl stop nftables; mv /root/nftables.conf /etc/")  # nothing follows a stop
    assert heals(box)
    assert sh(box, "systemctl is-enabled nftables || true").strip() == "disabled"


def test_firewalld_and_we_stand_beside_each_other(box: Box) -> None:
    install(box, "firewalld")
    for backend in ("nftables", "iptables"):
        sh(box, f"sed -i s/^FirewallBackend=.*/FirewallBackend={backend}/ /etc/firewalld/firewalld.conf")
        for verb in ("restart", "reload"):
            sh(box, f"systemctl {verb} firewalld")
            time.sleep(1.5)  # it flushes after it says that it is done
            # A busy machine's firewalld may flush after our second look; then the timer's look brings them back.
            healed = wait_for(lambda: both_in_force(box)) or heals(box)
            assert healed, f"{backend}, {verb}:\n{state(box)}"
        for command in ("firewall-cmd --reload", "systemctl stop firewalld"):
            sh(box, f"{command} 2>&1")  # no unit sees these
            assert heals(box), f"{backend}, {command}:\n{state(box)}"
    sh(box, "apt-get purge -qq -y firewalld 2>&1")


def test_rules_go_where_the_others_are_when_that_is_legacy(fab: FabCommand, box: Box) -> None:
    sh(box, "nft flush ruleset; iptables-legacy -A INPUT -s 203.0.113.9 -j DROP")
    done = fab(box, "iptables-log")
    assert done.rc == 0, done.out
    assert jumps(box, "iptables-legacy") == IN_FORCE and jumps(box, "iptables-nft") == []
    assert jumps(box, "ip6tables-nft") == IN_FORCE
    assert logs_an_attack(box)
    sh(box, f"iptables-legacy -D INPUT -s 203.0.113.9 -j DROP; {PROGRAM} load")
    assert both_in_force(box) and jumps(box, "iptables-legacy") == []


def test_undo_takes_out_what_is_ours_and_nothing_else(fab: FabCommand, box: Box) -> None:
    sh(box, "iptables -A INPUT -s 203.0.113.1 -j DROP")
    sh(box, "systemctl start --no-block knockmap-rules-check")  # which looks twice, 3 s apart
    done = fab(box, "undo", "--task", "iptables-log")
    assert done.rc == 0, done.out
    time.sleep(3.5)
    for tool in ("iptables-save", "ip6tables-save"):
        assert "KNOCKMAP" not in sh(box, tool)
    assert "203.0.113.1" in sh(box, "iptables-save")
    left = sh(box, "find /etc /usr/local /run/knockmap -name '*knockmap*' 2>/dev/null || true")
    assert left == ""
