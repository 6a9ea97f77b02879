"""systemd units: running, enabled, and restarted when their files changed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from typing import Any

from . import wire
from .item import Item, changed_ids, forget_observations, observed
from .machine import about_units, begin, must, run
from .wire import Failure, Have, emit

READY_SECONDS = 600  # a small machine needs minutes for a JVM

asked_units: list[str] = []  # one question is about all of them


class Service(Item):
    def questions(self) -> list[tuple[str, ...]]:
        return [about_units(asked_units)]

    def awaited(self, key: str) -> bool:
        """True if something this unit must be restarted (reloaded) for changed, in this run or an interrupted one."""
        since = {*self.journal.pending.get(self.want["unit"], ()), *changed_ids}
        return bool(since & set(self.want[key]))

    def wanted(self) -> Have:
        wanted = {key: self.want[key] for key in ("running", "enabled") if self.want[key] is not None}
        return {**wanted, "current": True}

    def observe(self) -> Have:
        state = units(self.want["unit"])
        running = state.get("ActiveState") in ("active", "reloading")
        awaited = self.awaited("restart_on") or self.awaited("reload_on")
        # A unit that is not to run picks a change up when it is started.
        current = not awaited or (self.want["running"] is not True and not running)
        return {
            "running": running,
            "enabled": state.get("UnitFileState") in ("enabled", "alias"),
            "current": current,
        }

    def apply(self, have: Have) -> None:
        unit = self.want["unit"]
        state, verb = units(unit), ""
        if self.want["enabled"] is not None and have["enabled"] != self.want["enabled"]:
            verb = "enable" if self.want["enabled"] else "disable"
            done = run("systemctl", verb, unit)  # has systemd read its units anew, too
        elif state.get("NeedDaemonReload") == "yes" or state.get("LoadState") == "not-found":
            must("systemd did not reload its units", "systemctl", "daemon-reload")
        forget_observations()
        if units(unit).get("LoadState") == "not-found":
            raise Failure(f"the target has no unit {unit}")
        if verb and done.returncode:
            raise Failure(f"systemctl {verb} {unit} failed", done.stdout + done.stderr)
        self.drive(unit, self.observe())
        forget_observations()
        if self.want["running"] and unit.endswith(".service"):  # a timer starts at once or not at all
            self.settle()
        # Not before: what ends again and again is "active" in between, and the next run must not take that for well.
        self.journal.restarted(unit)
        changed_ids.difference_update(self.want["restart_on"], self.want["reload_on"])

    def drive(self, unit: str, have: Have) -> None:
        if self.want["running"] is False:
            verb = "stop" if have["running"] else ""
        elif not have["running"]:
            verb = "start" if self.want["running"] else ""
        elif self.awaited("restart_on"):
            verb = "restart"
        else:
            verb = "reload" if self.awaited("reload_on") else ""
        if not verb:
            return
        run(
            "systemctl", "reset-failed", unit
        )  # five quick restarts in an earlier run must not refuse this one
        returncode, said = patiently(self.want["id"], f"{verb} of {unit}", ("systemctl", verb, unit))
        if returncode:
            raise Failure(f"systemctl {verb} {unit} failed", said + last_words(unit) + self.reasons())

    def settle(self) -> None:
        """Look for a moment: a unit that fails in its first second must not count as running."""
        quiet = 0
        for _ in range(100):
            state = run("systemctl", "show", "-P", "SubState", self.want["unit"]).stdout.strip()
            if state in ("auto-restart", "failed"):
                raise Failure(
                    f"{self.want['unit']} ends as soon as it is started",
                    last_words(self.want["unit"]) + self.reasons(),
                )
            if state == "exited":  # one that does its work once, and has
                break
            quiet = 0 if state in ("start", "start-pre", "start-post", "stop", "reload") else quiet + 1
            if quiet == 6:
                break
            time.sleep(0.1)
        if self.want["ready"]:
            self.await_work()

    def await_work(self) -> None:
        """Wait until the unit does its work, and say meanwhile how far it is."""
        unit, begun, starts = self.want["unit"], time.monotonic(), restarts(self.want["unit"])
        while (done := run(*self.want["ready"])).returncode:
            words = (done.stdout + done.stderr).strip().splitlines() or ["no word yet"]
            waited = time.monotonic() - begun
            emit("progress", id=self.want["id"], text=f"{unit}, {waited:.0f} s: {words[-1][:100]}")
            failed = restarts(unit) >= starts + 2 or units_state(unit) == "failed"
            if failed or waited > READY_SECONDS or wire.gone:
                why = "is started again and again" if failed else f"does not work after {waited:.0f} s"
                raise Failure(f"{unit} {why}: {words[-1]}", last_words(unit) + self.reasons())
            time.sleep(1)

    def reasons(self) -> str:
        return run(*self.want["why"]).stdout if self.want["why"] else ""

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True  # a unit that the operator stopped himself is no edit that could be lost

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        unit = self.want["unit"]
        if units(unit).get("LoadState") == "not-found":
            return ""
        if self.want["enabled"] is not None and self.observe()["enabled"] != before["enabled"]:
            run("systemctl", "enable" if before["enabled"] else "disable", unit)
        # What is still on its way up has to be stopped, too.
        running = units(unit).get("ActiveState") not in ("inactive", "failed")
        if self.want["running"] is not None and running != before["running"]:
            must(f"{unit}", "systemctl", "start" if before["running"] else "stop", unit)
        forget_observations()
        return ""


def patiently(id: str, what: str, argv: tuple[str, ...]) -> tuple[int, str]:
    """Run a program that may take minutes, with a word on it every few seconds: (exit status, what it said)."""
    begun, process = time.monotonic(), begin(argv)
    if isinstance(process, str):
        return 127, process
    while True:
        try:
            out, err = process.communicate(timeout=3)
            return process.returncode, out + err
        except subprocess.TimeoutExpired:
            emit("progress", id=id, text=f"{what}, {time.monotonic() - begun:.0f} s")


def restarts(unit: str) -> int:
    """How often systemd started the unit again by itself."""
    said = run("systemctl", "show", "-P", "NRestarts", unit).stdout.strip()
    return int(said) if said.isdigit() else 0


def units_state(unit: str) -> str:
    return run("systemctl", "show", "-P", "ActiveState", unit).stdout.strip()


def last_words(unit: str) -> str:
    return run("journalctl", "-u", unit, "-n", "8", "--no-pager", "-o", "cat").stdout


def will_ask(units: Iterable[str]) -> None:
    asked_units.extend(unit for unit in units if unit not in asked_units)


def units(unit: str) -> dict[str, str]:
    """systemd's view of one unit."""
    if unit not in asked_units:
        asked_units.append(unit)
        observed.pop("units", None)
    if "units" not in observed:
        blocks = run(*about_units(asked_units)).stdout.strip().split("\n\n")
        parsed = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
        observed["units"] = dict(zip(asked_units, parsed, strict=False))
    return observed["units"].get(unit, {})  # type: ignore[no-any-return]
