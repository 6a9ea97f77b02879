"""Who knocked, as the box's collector knows it: totals, countries, networks, sources and the last lines."""

from __future__ import annotations

import json as jsonlib
import time
from typing import Any

from fabric import Connection  # type: ignore[import-untyped]

from fabfile import collector, elastic_store
from fabfile.elastic_pipeline import elsewhere
from fabfile.engine.errors import HostError, UsageError
from fabfile.engine.fleet import host_task, settings
from fabfile.engine.transport import ask
from fabfile.settings import Settings

SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LONGEST = 10 * 365 * 86400
FOLDERS = {"elastic": elastic_store.FOLDER, "embedded": collector.FOLDER}
# What the licences of free GeoIP data ask for, by a mark of their kind.
CREDITS = {
    "dbip": " IP geolocation by DB-IP, https://db-ip.com",
    "city ipv": " IP geolocation by DB-IP, https://db-ip.com",
    "ipinfo": " IP address data powered by IPinfo, https://ipinfo.io",
    "geolite2": " This product includes GeoLite2 data created by MaxMind, https://www.maxmind.com",
}
# Of two programs the first one that is there: a host may have another stack than the operator's settings say.
EITHER = (
    'for program in "$1" "$2"; do [ ! -e "$program" ] || { shift 2; exec /usr/bin/python3 -B "$program" "$@"; }; done; '
    'echo "neither $1 nor $2 is there" >&2; exit 1'
)


@host_task(
    help={
        "since": "How far back, such as 30m, 24h, 7d, 4w.",
        "rows": "How many networks, sources and lines to show.",
        "json": "One JSON document in place of tables.",
    }
)
def scanners(c: Connection, since: str = "24h", rows: int = 10, json: bool = False) -> str:
    """Show which countries, networks and addresses knocked."""
    if rows < 1:
        raise UsageError(f"--rows {rows}: must be 1 or more")
    refuse_elsewhere(settings(c), "scanners")
    words = ("--seconds", str(span(since)), "--limit", str(rows))
    status, out, error = ask(
        c, of_stack(settings(c), {s: f"{f}/scanners.py" for s, f in FOLDERS.items()}, *words)
    )
    if status:
        raise HostError(
            f"{c.original_host}: {error.decode(errors='replace').strip()[-300:]}\n"
            "Is knockmap deployed there? `fab -H … deploy` does it; `fab -H … doctor` says what is wrong."
        )
    report = {"host": str(c.original_host), **jsonlib.loads(out)}
    return jsonlib.dumps(report, ensure_ascii=False) if json else text(report, since)


def refuse_elsewhere(chosen: Settings, what: str, then: str = "ask there") -> None:
    """For what asks the host for its events. Raises UsageError where it only ships them."""
    if chosen.stack == "elastic" and elsewhere(chosen):
        name = "elastic_hosts" if chosen.elastic_hosts else "elastic_cloud_id"
        raise UsageError(f"{what}: the events are in another cluster ({name}): {then}")


def of_stack(chosen: Settings, programs: dict[str, str], *words: str) -> tuple[str, ...]:
    """An argv that runs the chosen stack's program, or the other one's where that is what the host has."""
    paths = sorted(programs, key=lambda stack: stack != chosen.stack)
    return ("/bin/sh", "-c", EITHER, "sh", *(programs[stack] for stack in paths), *words)


def span(text: str) -> int:
    """Seconds of `24h` and the like. Raises UsageError."""
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in SPANS or not 0 < int(number) * SPANS[unit] <= LONGEST:
        raise UsageError(f"--since {text}: must be a number and one of m, h, d, w, such as 24h or 7d")
    return int(number) * SPANS[unit]


def text(report: dict[str, Any], since: str) -> str:
    """The report for a terminal."""
    total = report["total"]
    head = f"{thin(total)} SYNs to port 22 in the last {since}: {thin(report['ipv4'])} IPv4, {thin(report['ipv6'])} IPv6"
    unparsed = (
        f"{thin(report['unparsed'])} lines of the log were no packets that we understand; they are kept."
    )
    if not total and report["unparsed"]:
        return f"{head}\n{unparsed}\nDoes something else write to the log, or in another form? fab … doctor\n"
    if not total:
        return head + "\nNobody knocked, or TCP 22 is not reachable from outside: a provider's firewall?\n"
    countries = [(row["name"], row["count"], share(row["count"], total)) for row in report["countries"]]
    networks = [(row["network"], row["code"], row["count"]) for row in report["networks"]]
    sources = [(row["address"], row["code"], row["city"], row["count"]) for row in report["sources"]]
    parts = [head, table(("Country", "SYNs", "Share"), countries)]
    parts += [table(("Network", "In", "SYNs"), networks), table(("Source", "In", "City", "SYNs"), sources)]
    parts += ["Last lines\n" + "\n".join(f"  {line.strip()}" for line in report["lines"])]
    if report["unparsed"]:
        parts.append(unparsed)
    return "\n\n".join([*parts, geo(report["geo"])]) + "\n"


def geo(known: dict[str, Any]) -> str:
    """What the places are from, how old that is, and the credit that its licence asks for."""
    if not known["kinds"]:
        return "No GeoIP database is there, so no country is known: see the setting geo_source."
    days = (time.time() - known["built"]) / 86400
    credit = "".join(words for mark, words in CREDITS.items() if mark in known["kinds"].lower())
    return f"Places are approximate, by a database ({known['kinds']}) that is {days:.0f} days old.{credit}"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Columns as wide as they must be, numbers to the right, a thin line under the head."""
    cells = [
        head,
        *(tuple(thin(cell) if isinstance(cell, int) else str(cell) for cell in row) for row in rows),
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    right = [bool(rows) and (isinstance(cell, int) or str(cell).endswith("%")) for cell in rows[0]]

    def line(row: tuple[str, ...]) -> str:
        parts = (
            cell.rjust(width) if r else cell.ljust(width)
            for cell, width, r in zip(row, widths, right, strict=True)
        )
        return "  " + "  ".join(parts).rstrip()

    rule = "  " + "  ".join("─" * width for width in widths)
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def thin(number: int) -> str:
    """12 345 with narrow no-break spaces, as tables of numbers are set."""
    return f"{number:,}".replace(",", "\u202f")


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"
