"""Undo puts a box back to what it was, hash for hash, and refuses where somebody edited since."""

from __future__ import annotations

import json
from collections.abc import Callable

from box import Box

from tests.container.conftest import Fab

# What a deploy and an undo may leave on a box: where other programs write by themselves while we work.
REMAINDER = (
    "/etc/passwd-",  # the copies that useradd and userdel leave of the former files
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/ld.so.cache",  # rewritten by ldconfig with other times
    "/var/lib/apache2 ",  # Debian's apache2 leaves this empty folder when it is purged
    "/var/cache/",  # apt's and ldconfig's
    "/var/lib/apt/",  # package lists, and which packages came automatically
    "/var/lib/dpkg/",  # dpkg's copies of its former status, and the log of triggers
    "/var/lib/systemd/",  # stamps of timers, the random seed
    "/var/log/",  # what others logged
    "/root/.ssh",
    "/run/",
    "/tmp/",
    "/var/tmp/",
    "/.box/",
)
# What changes on a box by itself, and by a login, while somebody only looks: no list of packages, no cache.
LOOKED_AT = ("/var/log/", "/var/lib/systemd/", "/var/lib/wtmpdb/", "/run/", "/tmp/", "/var/tmp/", "/.box/")
SNAPSHOT = r"""
cd / && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev \) -prune -o -printf '%p %y %m %U %G %l\n' | cut -c2- | sort
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./var/cache -o -path ./.box \) -prune -o -type f -print0 |
  xargs -0 sha256sum | awk '{sum = $1; $1 = ""; sub(/^ \.?/, ""); print $0, sum}' | sort
systemctl list-unit-files --no-legend | awk '{print "unit-file", $1, $2}' | sort
systemctl list-units --all --no-legend --plain --type=service,socket,timer | awk '{print "unit", $1, $3}' | sort
"""


def snapshot(box: Box, left_out: tuple[str, ...] = REMAINDER) -> set[str]:
    """One line for each path (type, mode, owner, target, content) and each unit (enabled, active)."""
    status, out = box.run(["bash", "-c", SNAPSHOT])
    assert status == 0
    lines = [line for line in out.splitlines() if line]
    assert len(lines) > 3000  # else find did not see the box
    # These start and end by themselves, whatever we do.
    quiet = (
        "unit apt-daily",
        "unit dpkg-db-backup",
        "unit systemd-tmpfiles-clean",
        "unit logrotate",
        "unit e2scrub",
        "unit fstrim",
    )
    return {
        line
        for line in lines
        if not line.startswith((*left_out, *quiet))
        and "unit user@" not in line
        and "unit user-runtime" not in line
    }


def test_check_writes_nothing_and_names_every_change_of_the_later_run(
    box: Box, fab: Callable[..., Fab]
) -> None:
    before = snapshot(box, LOOKED_AT)
    checked = fab(box, "deploy", "--check", "--json")
    assert checked.rc == 0
    assert sorted(snapshot(box, LOOKED_AT) ^ before) == []
    assert fab(box, "deploy", "--check", "--fail-on-change").rc == 1
    assert fab(box, "--dry", "deploy").rc == 0
    assert sorted(snapshot(box, LOOKED_AT) ^ before) == []
    would = ids(checked)
    done = ids(fab(box, "deploy", "--json"))
    # The stages of the SSH move pass through states that the end does not show.
    assert would <= done and {id for id in done - would if "sshd listens" not in id} == set()


def ids(fab: Fab) -> set[str]:
    document = json.loads(fab.out[fab.out.index("{") :])
    return {result["id"] for result in document["results"] if result["status"] == "changed"}


def test_second_deploy_changes_nothing(box: Box, fab: Callable[..., Fab]) -> None:
    again = fab(box, "deploy")
    assert again.rc == 0
    assert again.last.endswith(" ok, 0 changed, 0 failed, 0 skipped")
    assert fab(box, "deploy", "--check", "--fail-on-change").rc == 0


def test_undo_refuses_what_somebody_edited_and_shows_it(box: Box, fab: Callable[..., Fab]) -> None:
    path = "/etc/rsyslog.d/10-knockmap.conf"
    box.run(["sh", "-c", f"cp -p {path} /root/kept; echo '# edited by hand' >>{path}"])
    refused = fab(box, "undo", "syslog_route")
    assert refused.rc == 1
    assert "changed by somebody since" in refused.out and "+# edited by hand" in refused.out
    assert box.run(["tail", "-1", path])[1].strip() == "# edited by hand"
    box.run(["sh", "-c", f"cat /root/kept >{path}; touch -r /root/kept {path}; rm /root/kept"])


def test_undo_leaves_the_box_as_it_was(fresh_box: Box, fab: Callable[..., Fab]) -> None:
    before = snapshot(fresh_box)
    assert fab(fresh_box, "deploy").rc == 0
    assert snapshot(fresh_box) != before
    undone = fab(fresh_box, "undo", "--packages", "--data")
    assert undone.rc == 0, undone.out
    after = snapshot(fresh_box)
    assert sorted(after - before) == []
    assert sorted(before - after) == []


def test_undo_of_all_leaves_all_where_one_file_was_edited_unless_told(
    fab: Callable[..., Fab], box: Box
) -> None:
    path = "/etc/ssh/sshd_config.d/10-knockmap-hardening.conf"
    box.run(["sh", "-c", f"echo '# my edit' >>{path}"])
    refused = fab(box, "undo")
    assert refused.rc == 1 and "changed by somebody since" in refused.out
    assert " 0 changed, 1 failed," in refused.last, refused.out
    assert box.run(["test", "-e", "/etc/rsyslog.d/10-knockmap.conf"])[0] == 0
    kept = fab(box, "undo", "--keep-edited")
    assert kept.rc == 0, kept.out
    assert box.run(["tail", "-1", path])[1].strip() == "# my edit"
    assert box.run(["test", "-e", "/etc/rsyslog.d/10-knockmap.conf"])[0] == 1
