"""The rules as they are written, and what stands in which order."""

from __future__ import annotations

import re
import subprocess

import pytest

from fabfile.engine.resources import ROOT, File, Package, Resource, Rules, Service
from fabfile.iptables_log import CHAIN, PREFIX, resources, rule_file
from fabfile.settings import Settings


def rule_lines(family: int, **values: object) -> list[str]:
    """What iptables-restore would take from the rule file."""
    text = rule_file(family, Settings(**values)).text  # type: ignore[arg-type]
    assert text is not None
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def position(wanted: type[Resource], name: str) -> int:
    return next(i for i, r in enumerate(resources(Settings())) if isinstance(r, wanted) and name in r.name)


def test_only_new_syns_to_port_22_enter_the_chain_and_first_of_all() -> None:
    for family in (4, 6):
        jumps = [line for line in rule_lines(family) if line.endswith(f"-j {CHAIN}")]
        assert jumps == ["-I INPUT 1 -p tcp --dport 22 --syn -m conntrack --ctstate NEW -j KNOCKMAP"]


def test_every_syn_is_counted_before_the_limit_decides() -> None:
    counted, logged = (line for line in rule_lines(4) if line.startswith("-A"))
    assert " -j " not in counted
    assert f'-j LOG --log-prefix "{PREFIX}" --log-level warning' in logged


@pytest.mark.parametrize("family", (4, 6))
@pytest.mark.parametrize(
    ("policy", "last"), (("drop", "-j DROP"), ("reject", "-p tcp -j REJECT --reject-with tcp-reset"))
)
def test_a_policy_comes_after_the_log_and_inside_the_chain(family: int, policy: str, last: str) -> None:
    rules = [line for line in rule_lines(family, knock_policy=policy) if line.startswith("-A")]
    assert [line.startswith(f"-A {CHAIN} ") for line in rules] == [True] * 3
    assert "-j LOG" in rules[1] and rules[2] == f"-A {CHAIN} {last}"


def test_the_default_policy_stops_nothing() -> None:
    assert not re.search(r"DROP|REJECT", "\n".join(rule_lines(4) + rule_lines(6)))


def test_another_limit_gets_another_table_in_the_kernel() -> None:
    """The kernel goes on with the limit under which it first saw a hashlimit name."""
    names = {
        re.findall(
            r"--hashlimit-name (\S+)", "\n".join(rule_lines(family, knock_limit=limit, knock_burst=9))
        )[0]
        for family in (4, 6)
        for limit in (1, 2)
    }
    assert len(names) == 4


def test_the_prefix_fits_and_ends_in_a_blank() -> None:
    assert len(PREFIX) <= 29 and PREFIX.endswith(" ")


def test_rules_are_tried_before_they_are_in_place_and_loaded_before_the_units_start() -> None:
    assert all(rule_file(family, Settings()).validate for family in (4, 6))
    order = [
        position(Package, "iptables"),
        position(File, "knockmap/rules"),
        position(File, "rules.v4"),
        position(Rules, CHAIN),
        position(File, "knockmap-rules.service"),
        position(Service, "knockmap-rules.service"),
        position(Service, "knockmap-rules.timer"),
    ]
    assert order == sorted(order)


def test_nothing_is_installed_that_would_remove_a_firewall_or_freeze_others_rules() -> None:
    names = [name for r in resources(Settings()) if isinstance(r, Package) for name in r.names]
    assert names == ["iptables"]


def test_the_loader_is_posix_shell() -> None:
    for shell in (["sh", "-n"], ["bash", "--posix", "-n"]):
        subprocess.run([*shell, str(ROOT / "files/iptables_log/rules")], check=True)
