"""The rules as they are written, and what stands in which order."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fabfile.engine.agent import item, machine, rules
from fabfile.engine.agent.journal import Journal
from fabfile.engine.agent.wire import Failure
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
        assert jumps == ["-I INPUT 1 -p tcp --dport 22 --syn -j KNOCKMAP"]


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


# What follows is the engine's side: rules of which it knows only what a program loads and shows.

PROGRAM = """#!/bin/sh
cd {folder}
case $1 in
load) sed 's/^/-A X -j /' rules >kernel && sed -i '1i 1 -A INPUT -j X' kernel ;;
show) cat kernel 2>/dev/null ;;
unload) rm -f kernel ;;
esac
"""


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> rules.Rules:
    monkeypatch.setattr(machine, "ROOT", str(tmp_path))
    monkeypatch.setattr(item, "changed_ids", set())
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "rules").write_text("LOG\n")
    program = tmp_path / "program"
    program.write_text(PROGRAM.format(folder=tmp_path))
    program.chmod(0o755)
    verbs = {verb: [str(program), verb] for verb in ("load", "show", "unload")}
    return rules.Rules({"chain": "X", "files": ["file:/rules"], **verbs}, Journal())


def in_force(chain: rules.Rules) -> bool:
    return chain.observe() == chain.wanted()


def test_rules_are_in_force_once_they_were_loaded(chain: rules.Rules) -> None:
    assert not in_force(chain)
    chain.apply(chain.observe())
    assert in_force(chain)
    assert chain.observe()["v6"] == ["1 -A INPUT -j X", "-A X -j LOG"]


def test_a_rule_file_that_changed_and_rules_that_are_gone_are_to_be_loaded(
    chain: rules.Rules, tmp_path: Path
) -> None:
    chain.apply(chain.observe())
    (tmp_path / "rules").write_text("DROP\n")
    assert not in_force(chain)
    chain.apply(chain.observe())
    (tmp_path / "kernel").write_text("1 -A INPUT -j X\n")
    assert not in_force(chain)
    assert chain.diff(chain.observe()) == "+v4: -A X -j DROP\n+v6: -A X -j DROP\n"


def test_a_chain_that_is_not_entered_first_after_loading_is_a_failure(
    chain: rules.Rules, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text(program.read_text().replace("1i 1 ", "1i 2 "))
    with pytest.raises(Failure, match="not entered first"):
        chain.apply(chain.observe())


def test_undo_unloads(chain: rules.Rules) -> None:
    before = chain.observe()
    chain.apply(before)
    chain.restore(before, {})
    assert chain.observe() == before == {"v4": [], "v6": []}
