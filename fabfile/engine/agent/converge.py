"""Bring every resource to what it shall be: observe, compare, apply, observe again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from . import wire
from .facts import fact
from .files import File
from .item import changed_ids, forget_observations
from .journal import Journal
from .machine import ask_ahead, at, forget_ahead, run
from .packages import Package, apt_get, wait_for_locks, will_bring
from .start import units_of
from .units import will_ask
from .wire import Failure, Have, Want, emit

FREE_BYTES = 64 << 20  # a change is not begun with less than this on the disk


# Where each kind is; a module that no resource needs is not loaded.
KINDS = {
    **dict.fromkeys(("file", "directory", "link", "secret"), "files"),
    **dict.fromkeys(("command", "requirement"), "commands"),
    "package": "packages",
    "service": "units",
    "user": "accounts",
    "rules": "rules",
    "rest": "rest",
}
TARGET = {"id": "target", "task": ""}  # stands for the machine itself where no resource is to blame


def converge(job: dict[str, Any]) -> None:
    """Bring every resource to what it shall be, in order. The first failure stops; the rest are skipped."""
    check = job["mode"] == "check"
    journal = Journal()
    will_ask(units_of(job["resources"]))
    ask_ahead(questions(job["resources"], journal))
    wants = [
        want for want in job["resources"] if not want["when"] or fact(want["when"][0]) == want["when"][1]
    ]
    will_bring(wants)
    required = [want for want in wants if want["kind"] == "requirement"]
    unmet = [want for want in required if not attempt(want, item_of(want, journal).require)]
    broken = bool(unmet)
    if job.get("bootstrap"):
        journal.bootstrapped(job["bootstrap"])
    if not check and not broken:
        broken = not attempt(TARGET, partial(preflight, job, wants, journal))
    if job.get("preflight"):
        return
    for want in wants:
        if want in unmet:
            continue
        if broken or wire.gone:
            emit("result", id=want["id"], task=want["task"], status="skipped", message="")
            continue
        emit("start", id=want["id"], task=want["task"])
        if want["task"] in job.get("held", ()) and not check:
            broken = not attempt(want, partial(hold, want, journal))
        else:
            broken = not attempt(want, partial(settle, want, wants, journal, check, job["diff"]))
    for id in former(job["resources"], journal):
        was = {"id": id, "task": journal.entries[id]["task"]}
        if broken or wire.gone:
            emit("result", **was, status="skipped", message="")
            continue
        emit("start", **was)
        broken = not attempt(was, partial(take_back, id, journal, check))


def item_of(want: Want, journal: Journal) -> Any:
    module = import_module(f".{KINDS[want['kind']]}", __package__)
    return getattr(module, want["kind"].capitalize())(want, journal)


def questions(wants: list[Want], journal: Journal) -> dict[tuple[str, ...], None]:
    """All that will be asked of other programs, once each; not of what may not exist on this target."""
    items = (item_of(want, journal) for want in wants if not want["when"])
    return dict.fromkeys(argv for item in items for argv in item.questions())


def hold(want: Want, journal: Journal) -> None:
    """Look at a resource that may only be changed in stages: what differs is said, and left to those."""
    item = item_of(want, journal)
    have, wanted = item.observe(), item.wanted()
    if any(have.get(key) != wanted[key] for key in wanted):
        emit("data", value={"held": want["id"]})
    else:
        emit("result", id=want["id"], task=want["task"], status="ok", message="")


def former(wants: list[Want], journal: Journal) -> list[str]:
    """The files that a task once put into a folder which it keeps tidy, and that it plans no more."""
    planned = {want["id"] for want in wants}
    tidy = {(want["task"], want["path"]) for want in wants if want.get("tidy")}
    return [
        id
        for id, entry in journal.entries.items()
        if entry["kind"] == "file"
        and id not in planned
        and (entry["task"], os.path.dirname(entry["want"]["path"])) in tidy
    ]


def take_back(id: str, journal: Journal, check: bool) -> None:
    """As undo does for a single file: what was there before us comes back, and the journal has nothing more to undo."""
    entry = journal.entries[id]
    if not check:
        item = item_of({**entry["want"], "kind": entry["kind"], "task": entry["task"]}, journal)
        item.restore(entry["before"], {"data": False})
        journal.forget(id)
    message = "removed" if entry["before"]["type"] == "absent" else "back to what it was before us"
    emit("result", id=id, task=entry["task"], status="changed", message=message)


def attempt(want: Want, work: Callable[[], None]) -> bool:
    """Run `work`; what goes wrong becomes a failed result. Returns whether all went well."""
    try:
        work()
        return True
    except Failure as failure:
        message, output = str(failure), failure.output
    except OSError as error:
        message, output = f"{error.strerror} ({error.filename or want['id']})", ""
    emit("result", id=want["id"], task=want["task"], status="failed", message=message, output=output)
    return False


def settle(want: Want, wants: list[Want], journal: Journal, check: bool, diff: bool) -> None:
    item = item_of(want, journal)
    have, wanted = item.observe(), item.wanted()
    differing = [key for key in wanted if have.get(key) != wanted[key]]
    if not differing:
        if not check and journal.unfinished(want):
            item.resume()
            journal.after(want, have)
        emit("result", id=want["id"], task=want["task"], status="ok", message="")
        return
    shown = {"diff": item.diff(have)} if diff else {}
    if not check:
        forget_ahead()
        item.prepare(have)
        journal.before(want, have)
        for service in (w for w in wants if w["kind"] == "service"):
            if want["id"] in service["restart_on"] + service["reload_on"]:
                journal.await_restart(service["unit"], want["id"])
        item.apply(have)
        forget_observations()  # a unit's file that changed asks for a daemon-reload
        now, wanted = item.observe(), item.wanted()
        for key in wanted:
            if now.get(key) != wanted[key]:
                raise Failure(
                    f"{key} is still {now.get(key)!r} after it was applied; it shall be {wanted[key]!r}"
                )
        item.finish()
        journal.after(want, now)
    if want["kind"] not in ("service", "rules"):
        changed_ids.add(want["id"])
    emit(
        "result",
        id=want["id"],
        task=want["task"],
        status="changed",
        message=describe(have, wanted, differing),
        **shown,
    )


def describe(have: Have, wanted: Have, differing: list[str]) -> str:
    """A few words on what differed, such as `mode 0600 → 0644, content` or `install rsyslog`."""
    if "type" in differing:
        was = "new" if have["type"] == "absent" else f"was a {have['type']}"
        return "removed" if wanted["type"] == "absent" else was
    if "running" in differing and "current" in differing:
        differing = [key for key in differing if key != "current"]  # a start is a restart, too
    return ", ".join(filter(None, (word(key, have.get(key), wanted[key]) for key in differing)))


def word(key: str, have: Any, wanted: Any) -> str:
    if key == "mode":
        return f"mode {have:04o} → {wanted:04o}"
    if key == "missing":
        return "install " + " ".join(have)
    if key in PHRASES:
        return PHRASES[key][bool(wanted)]
    return f"{key} {have} → {wanted}" if have is not None else f"{key} {wanted}"


PHRASES = {  # key: (what is done when it shall not be, when it shall be)
    "sha256": ("", "content"),
    "v4": ("", "IPv4 rules"),
    "v6": ("", "IPv6 rules"),
    "running": ("stop", "start"),
    "enabled": ("disable", "enable"),
    "current": ("", "restart"),
    "user": ("", "new"),
    "present": ("", "new"),
    "done": ("", ""),
    "unheld": ("hold", ""),
    "document": ("", "content"),
}


def preflight(job: dict[str, Any], wants: list[Want], journal: Journal) -> None:
    """Find what would stop us half-way while nothing has been touched yet."""
    needed = FREE_BYTES + sum(
        w["blob"]["size"] for w in wants if w.get("blob") and File(w, journal).observe() == {"type": "absent"}
    )
    for folder in ("/etc", "/var/lib", "/usr"):
        free = os.statvfs(at(folder))
        if free.f_bavail * free.f_frsize < needed:
            raise Failure(
                f"the disk of {folder} has {free.f_bavail * free.f_frsize >> 20} MiB left and {needed >> 20} MiB are "
                "needed, so nothing was touched; make room (see `df -h`) and run again"
            )
    packages = [w for w in wants if w["kind"] == "package"]
    missing = [n for w in packages for n in Package(w, journal).observe()["missing"]]
    if not missing:
        return
    skew = time.time() - job.get("time", time.time())
    if abs(skew) > 86400:
        raise Failure(
            f"the target's clock is {abs(skew) / 3600:.0f} hours {'ahead' if skew > 0 else 'behind'}, so apt would trust no archive; set it (`timedatectl`) and run again; nothing was touched"
        )
    if run("dpkg", "--audit").stdout.strip():
        wait_for_locks("target")  # another may be in the middle of its work
    if run("dpkg", "--audit").stdout.strip():
        if run("dpkg", "--configure", "-a").returncode:  # a package that was unpacked without what it needs
            apt_get("target", "install", "--fix-broken")
        emit("notice", text="an interrupted dpkg was repaired first (dpkg --configure -a)")
    # One of an exact version comes from a source, or a file, that this very run may bring (`packages.fetch`).
    if usual := [name for name in missing if "=" not in name]:
        apt_get("target", "install", "--download-only", *usual)
