"""From the line to the event: the files of Logstash's pipeline, Logstash itself, its queues, its GeoIP data."""

from __future__ import annotations

import contextlib
import glob
import http.client
import json
import os
import re
import time
from typing import Any

from elastic import AGAIN, complaint, touched
from look import ABSENT, LOG, Link, Target, bad, ok, running_for, text_of, unit, warn
from mmdb import metadata
from storage import OLD_DAYS, USELESS_DAYS, age, stamp
from web import DAY, ask

UNIT, PORT = "logstash.service", 9600
ETC, CONF, DATA = "/etc/logstash", "/etc/logstash/conf.d", "/var/lib/logstash"
GEO = "/var/lib/knockmap/logstash-geo"  # the operator's own
ENVIRONMENT, VARIABLE = f"{ETC}/knockmap.env", "KNOCKMAP_WRITER_KEY"
WORDS = "{ssh} journalctl -u logstash -n 30"
# Below these, what Logstash has downloaded or brought along; City is what the map needs.
BUNDLED = ("/usr/share/logstash/vendor", f"{DATA}/geoip_database_management")
EMPTY = 16  # a segment of dead letters begins with a byte or two that are none
START_SECONDS, PATIENCE = 180, 5.0
# What Elasticsearch said of an event, in a dead letter of Ruby's or of JSON's form.
LETTER = re.compile(rb'"reason\\?"\s*(?:=>|:)\s*\\?"([^"\\]{5,300})')
DEEPER = re.compile(rb"caused_by[^{]{0,12}\{[^}]*\}")  # in words of Java's


def api(path: str) -> Any:
    """Logstash's own word. Raises OSError."""
    answer = ask(http.client.HTTPConnection("127.0.0.1", PORT, timeout=5), path)
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise OSError(f"no JSON from port {PORT} ({answer.status})") from error


# --- files ------------------------------------------------------------------------------------------------------


def files(target: Target) -> Link:
    """The pipeline as it was deployed: Logstash joins all files of its folder into one."""
    if "install_elk" not in target.tasks:
        return ABSENT
    ours = [path for path in target.files("install_elk") if path.startswith(f"{CONF}/")]
    if gone := target.gone("install_elk", ETC) or target.gone("install_elk", "/etc/systemd/system/logstash"):
        return bad(f"{gone} is gone, so Logstash's next start fails, or reads nothing", AGAIN)
    if others := sorted(set(glob.glob(f"{CONF}/*.conf")) - set(ours)):
        return warn(f"{others[0]} is read as a part of our pipeline, and is not ours", f"{{ssh}} ls {CONF}")
    if edited := target.edited("install_elk", ETC):
        return warn(f"{edited} was edited since it was deployed", AGAIN)
    return ok(f"{len(ours)} files, as deployed")


# --- Logstash ---------------------------------------------------------------------------------------------------


def logstash(target: Target) -> Link:
    if "install_elk" not in target.tasks:
        return ABSENT
    found = unit(UNIT)
    if found.get("ActiveState") == "inactive":
        return bad("Logstash is stopped, so no line becomes an event", AGAIN)
    pid = found.get("MainPID", "0")
    if unread := may_not_read(pid):  # seen before it is ready, too
        return bad(unread, AGAIN)
    if other_key(pid):
        return bad(
            "Logstash runs with another key than the one that is kept", "{ssh} systemctl restart logstash"
        )
    edited = touched(target.edited("install_elk", CONF))
    if trouble := at_work(found, edited):
        return trouble
    if news := restarted(edited):
        return news
    if found.get("UnitFileState") != "enabled":
        return warn("Logstash runs and is not enabled, so it will not after a reboot", AGAIN)
    return ok("its pipeline runs")


def at_work(found: dict[str, str], edited: str) -> Link | None:
    """What is wrong where the pipeline does not run: a broken one ends Logstash, which systemd starts again and again."""
    deadline = time.monotonic() + PATIENCE
    while (why := idle()) and time.monotonic() < deadline:
        found.update(unit(UNIT))
        if ends(found):
            break
        time.sleep(0.5)
    if not why:
        return None
    if ends(found):
        return again_and_again(edited)
    seconds = running_for(found)
    if seconds < START_SECONDS:
        return warn(f"Logstash was started {seconds:.0f} s ago and is not ready: {why}", "{fab} doctor")
    return bad(f"Logstash runs, and {why}{edited}{complaint(UNIT)}", WORDS)


def ends(found: dict[str, str]) -> bool:
    return found.get("NRestarts", "0") != "0" or found.get("ActiveState") != "active"


def again_and_again(edited: str) -> Link:
    return bad(f"Logstash ends again and again{edited}{complaint(UNIT)}", AGAIN if edited else WORDS)


def restarted(edited: str) -> Link | None:
    """What there is to say of a pipeline that ran a moment ago: an event may end it, which it then reads again."""
    found = unit(UNIT)
    if found.get("ActiveState") != "active":
        return again_and_again(edited)
    seconds = running_for(found)
    if not ends(found) or seconds >= START_SECONDS:
        return None
    text = f"Logstash had ended, and systemd started it again {seconds:.0f} s ago"
    return warn(f"{text}{edited}{complaint(UNIT)}", AGAIN if edited else WORDS)


def idle() -> str:
    """Why the pipeline does not run; "" if it does. Logstash knows it before its plugins are registered."""
    try:
        pipelines = api("/_health_report")["indicators"]["pipelines"]["indicators"]
        state = pipelines["main"]["details"]["status"]["state"] if "main" in pipelines else "missing"
    except OSError as error:
        return f"its API on port {PORT} does not answer ({error})"
    except KeyError as error:
        return f"its API on port {PORT} does not say how its pipeline is (no {error})"
    return "" if state == "RUNNING" else f"its pipeline does not ({state})"


def may_not_read(pid: str) -> str:
    """Whether this process has the right to read the log: its groups are those of its start."""
    try:
        info = os.stat(LOG)
    except OSError:
        return ""  # told by the log's own link
    uid, groups = credentials(text_of(f"/proc/{pid}/status"))
    if uid == 0 or readable(info, uid, groups):
        return ""
    return f"Logstash may not read {LOG}: its process is not in the file's group"


def credentials(status: str) -> tuple[int, set[int]]:
    """The effective user, and all groups, of a process by its status in /proc."""
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    uid, gid = (int((found.get(key) or "0 0").split()[1]) for key in ("Uid", "Gid"))
    return uid, {gid, *map(int, found.get("Groups", "").split())}


def readable(info: os.stat_result, uid: int, groups: set[int]) -> bool:
    if info.st_uid == uid:
        return bool(info.st_mode & 0o400)
    return bool(info.st_mode & (0o040 if info.st_gid in groups else 0o004))


def other_key(pid: str) -> bool:
    """Whether the process was started with another key than systemd would give it now."""
    given = dict(line.split("=", 1) for line in text_of(f"/proc/{pid}/environ").split("\0") if "=" in line)
    kept = dict(line.split("=", 1) for line in text_of(ENVIRONMENT).splitlines() if "=" in line)
    return VARIABLE in given and given[VARIABLE] != kept.get(VARIABLE, "").strip()


# --- queues -----------------------------------------------------------------------------------------------------


def queue(target: Target) -> Link:
    """What was read and not stored yet, what was not read yet, and what Elasticsearch refused for good."""
    if "install_elk" not in target.tasks:
        return ABSENT
    try:
        told = api("/_node/stats/pipelines")["pipelines"]["main"]
    except (OSError, KeyError) as error:
        return warn(f"not known while Logstash does not answer ({error})", "{fab} doctor")
    waiting, letters = told.get("queue", {}), told.get("dead_letter_queue", {})
    size, most = waiting.get("queue_size_in_bytes", 0), waiting.get("max_queue_size_in_bytes", 0)
    count = waiting.get("events_count", waiting.get("events", 0))
    if most and count and size > 0.9 * most:
        return bad(f"the queue is full: {count} events wait for Elasticsearch", WORDS, symptom=True)
    if letters.get("queue_size_in_bytes", 0) > EMPTY and (found := dead_letters()):
        return found
    seconds, unread = behind()
    if seconds > 60:
        return bad(
            f"Logstash runs and is {seconds:.0f} s and {unread / 1000:.0f} kB behind", WORDS, symptom=True
        )
    if count > 1000:
        return warn(f"{count} events wait for Elasticsearch", WORDS)
    return ok(f"{count} events wait, no dead letters")


def dead_letters() -> Link | None:
    """Refused events are not on the map. Bad for an hour; then they only lie there."""
    folder = f"{DATA}/dead_letter_queue/main"
    segments = [path for path in glob.glob(f"{folder}/*.log*") if os.path.getsize(path) > EMPTY]
    if not segments:
        return None
    newest = max(segments, key=os.path.getmtime)
    since, why = os.path.getmtime(newest), last_reason(newest)
    text = f"Elasticsearch refused events, the last {age(since)} ago, and they are dead letters{why}"
    if time.time() - since < 3600:
        return bad(text, AGAIN)
    return warn(text, f"{{ssh}} 'systemctl stop logstash; rm -r {folder}; systemctl start logstash'")


def last_reason(path: str) -> str:
    """What Elasticsearch said of the last one: text, also in Logstash's own binary form."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - (64 << 10)))
        if found := LETTER.findall(DEEPER.sub(b"", file.read())):
            return f" ({found[-1].decode(errors='replace')[:200]})"
    return ""


def behind() -> tuple[float, int]:
    """How old the first line is that Logstash has not read, in seconds, and how many bytes are unread."""
    with contextlib.suppress(OSError, ValueError), open(LOG, "rb") as log:
        info = os.fstat(log.fileno())
        position = read_up_to(text_of(f"{DATA}/knockmap.sincedb"), info.st_ino)
        log.seek(position)
        line = log.readline()
        if line.endswith(b"\n"):
            return max(0.0, time.time() - stamp(line)), info.st_size - position
    return 0.0, 0


def read_up_to(sincedb: str, inode: int) -> int:
    """The position in the file with this inode: lines of inode, major, minor, position, time, path."""
    rows = [line.split() for line in sincedb.splitlines()]
    return max((int(row[3]) for row in rows if len(row) > 3 and row[0] == str(inode)), default=0)


# --- GeoIP ------------------------------------------------------------------------------------------------------


def geo_data(target: Target) -> Link:
    """The databases that Logstash looks into: the operator's own, or those that it brought along."""
    if "install_elk" not in target.tasks:
        return ABSENT
    deployed = [path for path in target.files("install_elk") if path.startswith(f"{GEO}/")]
    if gone := next((path for path in deployed if not os.path.exists(path)), ""):
        return bad(f"the GeoIP database {gone} is missing, so places are unknown", AGAIN)
    paths = deployed or bundled()
    if not paths:
        return ABSENT._replace(cause="there is none, so places are unknown")
    built = {path: metadata(path)[0] for path in paths}
    if damaged := next((path for path in paths if not built[path]), ""):
        return bad(f"the GeoIP database {damaged} cannot be read", AGAIN)
    days = (time.time() - min(built.values())) / DAY
    newer = "take newer data by the settings logstash_geoip = own and geo_databases, then " + AGAIN
    if deployed and days > USELESS_DAYS:
        return bad(f"the GeoIP data are {days:.0f} days old, too old to say where a source is", newer)
    if days > OLD_DAYS:
        return warn(f"the GeoIP data are {days:.0f} days old", newer)
    return ok(f"{len(paths)} {'of your own' if deployed else 'of Logstash'}, {days:.0f} days old")


def bundled() -> list[str]:
    found = [path for folder in BUNDLED for path in glob.glob(f"{folder}/**/*.mmdb", recursive=True)]
    return [path for path in found if re.search(r"/GeoLite2-(City|ASN)\.mmdb$", path)]
