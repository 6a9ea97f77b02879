"""The program that runs as root on the target: observe, compare, apply the difference, observe again.

Standard library only, one file, Python 3.10 or later. It arrives on stdin together with its job (see
`transport.py` for the frames), answers one JSON object per line on stdout and leaves nothing behind but its state:

    /var/lib/knockmap/journal/   what was there before our first change: journal.json and objects/<sha256>
    /var/lib/knockmap/secrets/   secrets that were born here
    /var/lib/knockmap/incoming/  large files on their way, resumed by the next run

In check mode it writes nothing at all. If the operator goes away it finishes the resource at hand and stops.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import signal
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

Want = dict[str, Any]  # a resource as it came over the wire
Have = dict[str, Any]  # what was observed

ROOT = ""  # the unit tests put everything below a folder of theirs
STATE = "/var/lib/knockmap"
LOCK_SECONDS = 600  # how long we wait for apt, dpkg and another run of ours
FREE_BYTES = 64 << 20  # a change is not begun with less than this on the disk
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_MODE": "l",  # Ubuntu's needrestart would restart what we did not change
    "HOME": "/root",
}


class Failure(Exception):
    """A resource cannot be what it shall be; the message is one sentence for a person."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = "\n".join(output.strip().splitlines()[-12:])


def at(path: str) -> str:
    return ROOT + path


# --- talking to the operator ------------------------------------------------------------------------------------

gone = False  # the operator's end is closed, or we were told to stop


def emit(event: str, **fields: Any) -> None:
    """One line to the operator. A closed connection is remembered, never raised: the work at hand goes on."""
    global gone
    try:
        sys.stdout.write(json.dumps({"event": event, **fields}, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    except OSError:
        gone = True


def read_frame(stream: BinaryIO) -> bytes:
    size = stream.readline()
    data = stream.read(int(size)) if size.strip().isdigit() else b""
    if not size or len(data) != int(size):
        raise Failure("the connection broke while data was sent; run again, it goes on from there")
    return data


# --- running programs -------------------------------------------------------------------------------------------


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Exit status 127 stands for a program that is not there, as in a shell."""
    try:
        return subprocess.run(  # noqa: S603 - argv lists only
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=ENVIRONMENT
        )
    except (FileNotFoundError, PermissionError) as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))


def must(message: str, *argv: str) -> str:
    done = run(*argv)
    if done.returncode:
        raise Failure(
            f"{message}: `{' '.join(argv)}` exited with {done.returncode}", done.stdout + done.stderr
        )
    return done.stdout


# --- files: what is at a path, and putting something there ------------------------------------------------------


def look(path: str) -> Have:
    """What is at `path`: its type and, by type, sha256, mode, owner, group, mtime (ns) or link target."""
    try:
        info = os.lstat(at(path))
    except (FileNotFoundError, NotADirectoryError):
        return {"type": "absent"}
    if stat.S_ISLNK(info.st_mode):
        return {"type": "link", "target": os.readlink(at(path))}
    have: Have = {
        "mode": stat.S_IMODE(info.st_mode),
        "owner": user_name(info.st_uid),
        "group": group_name(info.st_gid),
    }
    if stat.S_ISDIR(info.st_mode):
        return {"type": "directory", **have}
    if not stat.S_ISREG(info.st_mode):
        return {"type": "special", **have}
    return {"type": "file", **have, "sha256": digest(path, info), "mtime": info.st_mtime_ns}


def digest(path: str, info: os.stat_result) -> str:
    """The file's SHA-256. For large files a former result counts while inode, size and mtime are the same."""
    mark = [info.st_ino, info.st_size, info.st_mtime_ns]
    if info.st_size > 1 << 20 and (known := load("digests.json", {}).get(path)) and known[:3] == mark:
        return str(known[3])
    sha = hashlib.sha256()
    with open(at(path), "rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
    return sha.hexdigest()


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def own(path: str, mode: int, owner: str, group: str) -> None:
    """Rights of a file or directory that is there. Owner first: chown clears the set-id bits."""
    try:
        uid = int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise Failure(f"{path}: shall belong to {owner}:{group}, but {error.args[0]}") from None
    if os.geteuid() == 0:
        os.chown(path, uid, gid)
    os.chmod(path, mode)


@contextlib.contextmanager
def beside(path: str) -> Iterator[str]:
    """A new file's name in the same folder, removed if the block fails. The name is no `*.conf` on purpose."""
    temporary = f"{os.path.dirname(at(path))}/.knockmap-{os.path.basename(path)}-{os.getpid()}"
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def put(
    path: str, content: bytes, mode: int = 0o600, owner: str = "0", group: str = "0", check: Any = None
) -> None:
    """Write beside, check, rename into place: a reader or a crash sees the old file or the new one, whole."""
    with beside(path) as temporary:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        own(temporary, mode, owner, group)
        if check:
            check(temporary)
        os.rename(temporary, at(path))
    sync_folder(path)


def sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(at(path)), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    if look(path)["type"] == "directory":
        os.rmdir(at(path))
    else:
        os.unlink(at(path))


# --- our state on the target ------------------------------------------------------------------------------------


def load(name: str, default: Any) -> Any:
    try:
        with open(at(f"{STATE}/journal/{name}"), encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return default


def store(name: str, value: Any) -> None:
    for folder, mode in ((STATE, 0o755), (f"{STATE}/journal", 0o700)):
        if not os.path.isdir(at(folder)):
            os.makedirs(at(folder), mode)
            os.chmod(at(folder), mode)
    put(f"{STATE}/journal/{name}", json.dumps(value, indent=1).encode())


class Journal:
    """What every resource was before we first changed it, and what we left it as: `entries`, oldest first.

    An entry: {id, kind, task, want, before, after}. `pending` names, for each unit, the resources that changed since
    it was last restarted; so an interrupted run cannot swallow a restart.
    """

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = load("journal.json", {})
        self.pending: dict[str, list[str]] = load("pending.json", {})

    def before(self, want: Want, have: Have) -> None:
        if want["id"] not in self.entries:
            if have.get("type") == "file" and "sha256" in have and not holds_data(want):
                self.keep(want["path"], have["sha256"])
            self.entries[want["id"]] = {"before": have, "after": have}
        self.entries[want["id"]].update(kind=want["kind"], task=want["task"], want=slim(want))
        store("journal.json", self.entries)

    def after(self, want: Want, have: Have) -> None:
        """What we left, with a copy of small files: so undo can show what somebody changed since."""
        if have.get("type") == "file" and not holds_data(want) and not want.get("blob"):
            self.keep(want["path"], have["sha256"])
        self.entries[want["id"]]["after"] = have
        store("journal.json", self.entries)

    def keep(self, path: str, sha256: str) -> None:
        store("journal.json", self.entries)  # makes the folder
        objects = f"{STATE}/journal/objects"
        os.makedirs(at(objects), 0o700, exist_ok=True)
        with open(at(path), "rb") as file:
            put(f"{objects}/{sha256}", file.read())

    def forget(self, id: str) -> None:
        del self.entries[id]
        store("journal.json", self.entries)

    def await_restart(self, unit: str, id: str) -> None:
        if id not in self.pending.setdefault(unit, []):
            self.pending[unit].append(id)
            store("pending.json", self.pending)

    def restarted(self, unit: str) -> None:
        if self.pending.pop(unit, None):
            store("pending.json", self.pending)


def slim(want: Want) -> Want:
    """A resource without its content: what undo needs to know of it."""
    return {key: value for key, value in want.items() if key not in ("text", "base64")}


def holds_data(want: Want) -> bool:
    """True for a file whose content is not ours, such as a log."""
    return bool(want.get("data"))


# --- facts and secrets: what only the target knows --------------------------------------------------------------


def fact_logger() -> str:
    """Who writes the kernel's lines: installing rsyslog would remove an installed syslog-ng, so we look first."""
    return "syslog-ng" if os.path.exists(at("/usr/sbin/syslog-ng")) else "rsyslog"


def fact_log_owner() -> str:
    """Ubuntu's rsyslogd drops to the user syslog and must own what it opens anew."""
    try:
        with open(at("/etc/rsyslog.conf"), encoding="utf-8") as file:
            found = re.search(r"^\$PrivDropToUser\s+(\S+)", file.read(), re.M)
    except FileNotFoundError:
        # Not installed yet: Ubuntu's package brings the user with it.
        found = re.search(r"^ID=(ubuntu)$", read_text("/etc/os-release"), re.M)
        return "syslog" if found else "root"
    return found[1] if found else "root"


def read_text(path: str) -> str:
    try:
        with open(at(path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


FACTS: dict[str, Callable[[], str]] = {"logger": fact_logger, "log_owner": fact_log_owner}
facts: dict[str, str] = {}


def fact(name: str) -> str:
    if name not in facts:
        facts[name] = FACTS[name]()
    return facts[name]


def secret_path(name: str) -> str:
    return f"{STATE}/secrets/{name}"


def substitute(text: str) -> str | None:
    """The text with its `@@fact.X@@` and `@@secret.X@@`; None while a secret is not born yet."""
    missing = False

    def value(match: re.Match[str]) -> str:
        nonlocal missing
        if match[1] == "fact":
            return fact(match[2])
        found = read_text(secret_path(match[2]))
        missing = missing or not found
        return found.strip()

    done = re.sub(r"@@(fact|secret)\.([\w-]+)@@", value, text)
    return None if missing else done


# --- the kinds --------------------------------------------------------------------------------------------------


class Item:
    """One resource: `wanted` and `observe` give dicts; where a key of `wanted` differs, `apply` is called."""

    def __init__(self, want: Want, journal: Journal) -> None:
        self.want, self.journal = want, journal

    def wanted(self) -> Have:
        raise NotImplementedError

    def observe(self) -> Have:
        raise NotImplementedError

    def apply(self, have: Have) -> None:
        raise NotImplementedError

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        """Put back what was there before us. Returns why something was left, or an empty string."""
        raise NotImplementedError

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return now == after

    def diff(self, have: Have) -> str:
        return ""


class File(Item):
    def content(self) -> bytes | None:
        """The bytes that shall be there; None if they are not ours to say, not known yet, or large."""
        if self.want.get("base64") is not None:
            return base64.b64decode(self.want["base64"])
        if self.want.get("text") is not None:
            text = substitute(self.want["text"])
            return None if text is None else text.encode()
        return None

    def wanted(self) -> Have:
        if self.want["absent"]:
            return {"type": "absent"}
        wanted = {"type": "file", **{key: self.want[key] for key in ("mode", "owner", "group")}}
        if "@@" in wanted["owner"]:
            wanted["owner"] = substitute(wanted["owner"])
        if self.want.get("blob"):
            return {**wanted, "sha256": self.want["blob"]["sha256"]}
        if holds_data(self.want):
            return wanted
        content = self.content()
        return {
            **wanted,
            "sha256": hashlib.sha256(content).hexdigest() if content is not None else "secret to come",
        }

    def observe(self) -> Have:
        return look(self.want["path"])

    def apply(self, have: Have) -> None:
        wanted, path = self.wanted(), self.want["path"]
        if have["type"] in ("directory", "special"):
            raise Failure(
                f"{path} shall be a file, but a {have['type']} is there; move it away and run again"
            )
        if wanted["type"] == "absent":
            remove(path)
        elif "sha256" in wanted and have.get("sha256") == wanted["sha256"]:
            own(at(path), wanted["mode"], wanted["owner"], wanted["group"])
        elif self.want.get("blob"):
            self.receive(wanted)
        elif holds_data(self.want) and have["type"] == "file":
            own(at(path), wanted["mode"], wanted["owner"], wanted["group"])
        else:
            self.write(have, wanted)

    def write(self, have: Have, wanted: Have) -> None:
        path, content = self.want["path"], self.content()
        if content is None and not holds_data(self.want):
            raise Failure(f"{path} needs a secret that is not there yet")
        former = None
        if have["type"] == "file" and self.want["verify"]:
            with open(at(path), "rb") as file:
                former = file.read()
        put(path, content or b"", wanted["mode"], wanted["owner"], wanted["group"], self.validate)
        if self.want["verify"]:
            self.verify(have, former)

    def validate(self, temporary: str) -> None:
        if self.want["validate"]:
            argv = [part.replace("{path}", temporary) for part in self.want["validate"]]
            must(f"the new {self.want['path']} was refused and is not in place", *argv)

    def verify(self, have: Have, former: bytes | None) -> None:
        done = run(*self.want["verify"])
        if done.returncode == 0:
            return
        if former is None:
            remove(self.want["path"])
        else:
            put(self.want["path"], former, have["mode"], have["owner"], have["group"])
        raise Failure(
            f"{self.want['path']} was refused by `{' '.join(self.want['verify'])}`; what was there before is back",
            done.stdout + done.stderr,
        )

    def receive(self, wanted: Have) -> None:
        """Get a large file from the operator, on top of what an earlier run already got."""
        sha256, size = self.want["blob"]["sha256"], self.want["blob"]["size"]
        store("digests.json", load("digests.json", {}))  # makes our folders
        os.makedirs(at(f"{STATE}/incoming"), 0o700, exist_ok=True)
        part = at(f"{STATE}/incoming/{sha256}")
        with open(part, "ab") as file:
            emit("need", id=self.want["id"], sha256=sha256, offset=file.tell(), size=size)
            while frame := read_frame(sys.stdin.buffer):
                file.write(zlib.decompress(frame))
            file.flush()
            os.fsync(file.fileno())
        if digest(part[len(ROOT) :], os.stat(part)) != sha256:
            os.unlink(part)
            raise Failure(f"{self.want['path']} arrived damaged and was thrown away; run again")
        own(part, wanted["mode"], wanted["owner"], wanted["group"])
        self.validate(part)
        os.rename(part, at(self.want["path"]))
        sync_folder(self.want["path"])
        info = os.stat(at(self.want["path"]))
        mark = [info.st_ino, info.st_size, info.st_mtime_ns, sha256]
        store("digests.json", {**load("digests.json", {}), self.want["path"]: mark})

    def diff(self, have: Have) -> str:
        new = self.content()
        if new is None and not self.want["absent"]:
            return ""
        if "@@secret." in (self.want.get("text") or ""):
            return "(content differs; not shown, since it holds a secret)\n"
        return text_diff(self.want["path"], content_at(self.want["path"]), new or b"")

    def unchanged_since(self, now: Have, after: Have) -> bool:
        keys = (
            ("type", "mode", "owner", "group")
            if holds_data(self.want)
            else ("type", "mode", "owner", "group", "sha256")
        )
        return all(now.get(key) == after.get(key) for key in keys)

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        path = self.want["path"]
        if before["type"] == "absent" and holds_data(self.want) and not options["data"]:
            if os.path.exists(at(path)) and os.path.getsize(at(path)):
                return "kept, since it holds data (--data removes it)"
        return put_back(path, before)


def put_back(path: str, before: Have) -> str:
    now = look(path)
    if before["type"] in ("absent", "link") and now["type"] != "absent":
        remove(path)
    if before["type"] == "link":
        os.symlink(before["target"], at(path))
    if before["type"] == "file":
        if now.get("sha256") != before["sha256"]:
            with open(at(f"{STATE}/journal/objects/{before['sha256']}"), "rb") as file:
                put(path, file.read(), before["mode"], before["owner"], before["group"])
        own(at(path), before["mode"], before["owner"], before["group"])
        os.utime(at(path), ns=(before["mtime"], before["mtime"]))
    if before["type"] == "directory":
        own(at(path), before["mode"], before["owner"], before["group"])
    return ""


def content_at(path: str) -> bytes:
    """The first MiB of a regular file, else nothing."""
    if look(path)["type"] != "file":
        return b""
    with open(at(path), "rb") as file:
        return file.read(1 << 20)


def text_diff(path: str, old: bytes, new: bytes) -> str:
    import difflib  # only where a diff is shown

    try:
        before, after = old.decode().splitlines(keepends=True), new.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return "(binary content differs)\n"
    names = (path if old else "/dev/null", path if new else "/dev/null")
    lines = list(difflib.unified_diff(before, after, *names))
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines[:400])


class Directory(Item):
    def wanted(self) -> Have:
        return {"type": "directory", **{key: self.want[key] for key in ("mode", "owner", "group")}}

    def observe(self) -> Have:
        return look(self.want["path"])

    def apply(self, have: Have) -> None:
        if have["type"] == "absent":
            os.mkdir(at(self.want["path"]), 0o700)
        elif have["type"] != "directory":
            raise Failure(
                f"{self.want['path']} shall be a directory, but a {have['type']} is there; move it away"
            )
        own(at(self.want["path"]), self.want["mode"], self.want["owner"], self.want["group"])

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        path = self.want["path"]
        if before["type"] == "absent" and os.path.isdir(at(path)) and os.listdir(at(path)):
            if not options["data"]:
                return "kept, since it holds data (--data removes it)"
            import shutil

            shutil.rmtree(at(path))
            return ""
        return put_back(path, before)


class Link(Item):
    def wanted(self) -> Have:
        return {"type": "link", "target": self.want["target"]}

    def observe(self) -> Have:
        return look(self.want["path"])

    def apply(self, have: Have) -> None:
        if have["type"] in ("directory", "special"):
            raise Failure(f"{self.want['path']} shall be a link, but a {have['type']} is there; move it away")
        with beside(self.want["path"]) as temporary:
            os.symlink(self.want["target"], temporary)
            os.rename(temporary, at(self.want["path"]))

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        return put_back(self.want["path"], before)


class Package(Item):
    def wanted(self) -> Have:
        return {"missing": []}

    def observe(self) -> Have:
        return {"missing": [name for name in self.want["names"] if name not in installed()]}

    def apply(self, have: Have) -> None:
        former = installed()
        refuse_removals(self.want["names"])
        apt_get(self.want["id"], "install", *self.want["names"])
        forget_observations()
        added = self.journal.entries[self.want["id"]].get("added", []) + sorted(installed() - former)
        self.journal.entries[self.want["id"]]["added"] = added

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True  # a package that the operator removed himself needs no undoing

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        added = [
            name for name in self.journal.entries[self.want["id"]].get("added", []) if name in installed()
        ]
        if not added:
            return ""
        if not options["packages"]:
            return f"kept: {' '.join(added)} (--packages removes them)"
        removed = re.findall(r"^(?:Remv|Purg) (\S+)", run("apt-get", "-s", "purge", *added).stdout, re.M)
        if others := sorted(set(removed) - set(added)):
            return f"kept: {' '.join(added)}, since {' '.join(others)} needs them by now"
        apt_get(self.want["id"], "purge", *added)
        forget_observations()
        return ""


observed: dict[str, Any] = {}  # what one look at dpkg or systemd said about all packages and units


def forget_observations() -> None:
    observed.clear()


def installed() -> set[str]:
    if "installed" not in observed:
        lines = run("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n").stdout.splitlines()
        observed["installed"] = {line.split()[0] for line in lines if line.split()[1:] == ["ii"]}
    return observed["installed"]  # type: ignore[no-any-return]


def refuse_removals(names: list[str]) -> None:
    plan = run("apt-get", "-s", "install", "--no-install-recommends", *names).stdout
    if removed := re.findall(r"^Remv (\S+)", plan, re.M):
        raise Failure(
            f"installing {' '.join(names)} would remove {' '.join(removed)}, so nothing was installed; "
            "settle that by hand first"
        )


APT_CAUSES = (  # what apt prints -> what it means to the operator
    (
        r"Temporary failure resolving '?([^' \n]*)",
        "the target cannot resolve {0}: check its DNS (/etc/resolv.conf)",
    ),
    (r"Could not resolve '?([^' \n]*)", "the target cannot resolve {0}: check its DNS (/etc/resolv.conf)"),
    (
        r"is not valid yet|not live until|invalid for another",
        "the target's clock is wrong (see `timedatectl`), so apt trusts no archive",
    ),
    (r"No space left on device|enough free space", "the target's disk is full (see `df -h`)"),
    (
        r"Network is unreachable|[Cc]onnection timed out|Unable to connect to (\S+)|Could not connect to (\S+)",
        "the target does not reach its apt archive: check its network, or its sources in /etc/apt",
    ),
    (r"Unable to locate package (\S+)", "its apt sources have no package {0}: check /etc/apt/sources.list.d"),
)


def apt_get(id: str, *argv: str) -> None:
    """Run apt-get with its output as progress; waits for locks, refreshes old package lists, explains failures."""
    wait_for_locks(id)
    if argv[0] == "install" and not lists_are_fresh():
        apt_run(id, "update")
    rc, output = apt_run(id, *argv)
    if rc and argv[0] == "install":  # the lists can be older than the archive: look again, once
        apt_run(id, "update")
        rc, output = apt_run(id, *argv)
    if rc:
        raise Failure(f"apt-get {argv[0]} failed: {apt_cause(output)}", output)


def apt_cause(output: str) -> str:
    for pattern, meaning in APT_CAUSES:
        if found := re.search(pattern, output):
            return meaning.format(*(group or "" for group in found.groups()))
    return "its last lines follow"


def lists_are_fresh() -> bool:
    lists = at("/var/lib/apt/lists")
    names = [name for name in os.listdir(lists) if name.endswith(("_Packages", "_Packages.lz4", "Release"))]
    return any(time.time() - os.path.getmtime(f"{lists}/{name}") < 86400 for name in names)


def apt_run(id: str, *argv: str) -> tuple[int, str]:
    options = (
        "-q",
        "-y",
        "-o",
        f"DPkg::Lock::Timeout={LOCK_SECONDS}",
        "-o",
        "Dpkg::Options::=--force-confold",
    )
    extra = ("--no-install-recommends",) if argv[0] == "install" else ("-o", "Acquire::Retries=1")
    process = subprocess.Popen(  # noqa: S603
        ["apt-get", *options, *extra, *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=ENVIRONMENT,
        start_new_session=True,  # a hang-up of our channel must not reach dpkg in the middle of its work
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        emit("progress", id=id, text=f"apt-get {argv[0]}: {line.strip()[:100]}")
    return process.wait(), "".join(lines)


def wait_for_locks(id: str) -> None:
    """apt-get itself waits for dpkg's lock only, and says nothing meanwhile."""
    deadline = time.monotonic() + LOCK_SECONDS
    for path in ("/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"):
        while (holder := lock_holder(path)) is not None:
            if time.monotonic() > deadline:
                raise Failure(
                    f"{path} is still held by {holder} after {LOCK_SECONDS} s; nothing was installed"
                )
            emit("progress", id=id, text=f"waiting for apt's lock, held by {holder}")
            if gone:
                raise Failure("stopped while waiting for apt's lock")
            time.sleep(1)


def lock_holder(path: str) -> str | None:
    """Who holds the fcntl lock on `path`, such as "process 812 (apt-get)"; None if it is free."""
    try:
        with open(at(path), "rb") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return None
    return (
        None
        if kind == fcntl.F_UNLCK
        else f"process {pid} ({read_text(f'/proc/{pid}/comm').strip() or 'unknown'})"
    )


class User(Item):
    def wanted(self) -> Have:
        return {"home": self.want["home"], "group": self.want["user"]}

    def observe(self) -> Have:
        try:
            entry = pwd.getpwnam(self.want["user"])
        except KeyError:
            return {"home": None, "group": None}
        return {"home": entry.pw_dir, "group": group_name(entry.pw_gid)}

    def apply(self, have: Have) -> None:
        if have["home"] is not None:
            raise Failure(
                f"a user {self.want['user']} exists with home {have['home']}; it is not ours, so it stays as it is"
            )
        argv = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", self.want["home"]]
        must(
            f"user {self.want['user']} was not made", *argv, "--shell", "/usr/sbin/nologin", self.want["user"]
        )

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        mine = [
            entry
            for entry in self.journal.entries.values()
            if self.want["user"] in (entry["after"].get("owner"), entry["after"].get("group"))
        ]
        if any(look(entry["want"]["path"])["type"] != "absent" for entry in mine):
            return "kept, since it owns what was kept"
        if before["home"] is None and self.observe()["home"] is not None:
            must(f"user {self.want['user']} was not removed", "userdel", self.want["user"])
        return ""


class Service(Item):
    def awaited(self, key: str) -> bool:
        """True if something this unit must be restarted (reloaded) for changed, in this run or an interrupted one."""
        since = {*self.journal.pending.get(self.want["unit"], ()), *changed_ids}
        return bool(since & set(self.want[key]))

    def wanted(self) -> Have:
        wanted = {key: self.want[key] for key in ("running", "enabled") if self.want[key] is not None}
        return {**wanted, "current": True}

    def observe(self) -> Have:
        state = units(self.want["unit"], self.journal)
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
        state = units(unit, self.journal)
        if state.get("NeedDaemonReload") == "yes" or state.get("LoadState") == "not-found":
            must("systemd did not reload its units", "systemctl", "daemon-reload")
            forget_observations()
        if units(unit, self.journal).get("LoadState") == "not-found":
            raise Failure(f"the target has no unit {unit}")
        if self.want["enabled"] is not None and have["enabled"] != self.want["enabled"]:
            must(f"{unit}", "systemctl", "enable" if self.want["enabled"] else "disable", unit)
        forget_observations()
        self.drive(unit, self.observe())
        self.journal.restarted(unit)
        changed_ids.difference_update(self.want["restart_on"], self.want["reload_on"])
        forget_observations()
        self.settle()

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
        done = run("systemctl", verb, unit)
        if done.returncode:
            journal = run("journalctl", "-u", unit, "-n", "8", "--no-pager", "-o", "cat").stdout
            raise Failure(f"systemctl {verb} {unit} failed", done.stderr + journal)

    def settle(self) -> None:
        """A unit may take a moment to be active; one that fails in its first second must not count as running."""
        for _ in range(50):
            state = run("systemctl", "is-active", self.want["unit"]).stdout.strip()
            if state not in ("activating", "deactivating"):
                return
            time.sleep(0.1)

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True  # a unit that the operator stopped himself is no edit that could be lost

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        unit = self.want["unit"]
        if units(unit, self.journal).get("LoadState") == "not-found":
            return ""
        if self.want["enabled"] is not None and self.observe()["enabled"] != before["enabled"]:
            run("systemctl", "enable" if before["enabled"] else "disable", unit)
        if self.want["running"] is not None and self.observe()["running"] != before["running"]:
            must(f"{unit}", "systemctl", "start" if before["running"] else "stop", unit)
        forget_observations()
        return ""


def units(unit: str, journal: Journal) -> dict[str, str]:
    """systemd's view of one unit; all units of this job are asked for at once."""
    if "units" not in observed:
        named = [*job_units, *(e["want"]["unit"] for e in journal.entries.values() if e["kind"] == "service")]
        names = list(dict.fromkeys([*named, unit]))
        properties = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload"
        blocks = run("systemctl", "show", "-p", properties, "--", *names).stdout.strip().split("\n\n")
        parsed = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
        observed["units"] = dict(zip(names, parsed, strict=False))
    return observed["units"].get(unit, {})  # type: ignore[no-any-return]


class Rules(Item):
    FAMILIES = (("v4", "iptables"), ("v6", "ip6tables"))

    def observe(self) -> Have:
        return {family: self.lines(program) for family, program in self.FAMILIES}

    def lines(self, program: str) -> list[str]:
        """Our chain's rules and, in front of them, where in the hook it is entered: ["1 -p tcp …", "-A KNOCKMAP …"]."""
        shown = run(program, "-w", "10", "-S").stdout.splitlines()
        hook = [line for line in shown if line.startswith(f"-A {self.want['hook']} ")]
        jumps = [
            f"{i} {line}" for i, line in enumerate(hook, 1) if line.endswith(f" -j {self.want['chain']}")
        ]
        return jumps + [line for line in shown if line.startswith(f"-A {self.want['chain']} ")]

    def sources(self) -> str:
        """Stands for the wanted rules: the content of the files they are loaded from."""
        return "".join(look(id.split(":", 1)[1]).get("sha256", "absent") for id in self.want["files"])

    def wanted(self) -> Have:
        """The kernel prints rules otherwise than they are written, so what it showed after loading is the measure."""
        loaded = load("rules.json", {}).get(self.want["chain"], {})
        if loaded.get("sources") != self.sources() or changed_ids & set(self.want["files"]):
            return {"v4": "to be loaded", "v6": "to be loaded"}
        return loaded["shown"]  # type: ignore[no-any-return]

    def apply(self, have: Have) -> None:
        must(f"the chain {self.want['chain']} was not loaded", *self.want["load"])
        shown = self.observe()
        for family, program in self.FAMILIES:
            if not shown[family] or not shown[family][0].startswith("1 "):
                raise Failure(
                    f"{program} does not enter {self.want['chain']} first in {self.want['hook']} after loading"
                )
        changed_ids.difference_update(self.want["files"])
        loaded = {"sources": self.sources(), "shown": shown}
        store("rules.json", {**load("rules.json", {}), self.want["chain"]: loaded})

    def diff(self, have: Have) -> str:
        return "".join(
            f"{'-' if have[f] else '+'} {f}: {line}\n" for f, _ in self.FAMILIES for line in have[f]
        )

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True  # rules that somebody flushed are back to what was before

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        must(f"the chain {self.want['chain']} was not removed", *self.want["unload"])
        return ""


class Secret(Item):
    def wanted(self) -> Have:
        return {"present": True}

    def observe(self) -> Have:
        return {"present": bool(read_text(secret_path(self.want["secret"])))}

    def apply(self, have: Have) -> None:
        os.makedirs(at(f"{STATE}/secrets"), 0o700, exist_ok=True)
        value = base64.b32encode(os.urandom((self.want["bits"] + 7) // 8)).decode().rstrip("=").lower()
        put(secret_path(self.want["secret"]), value.encode())

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        if not before["present"]:
            os.unlink(at(secret_path(self.want["secret"])))
        return ""


class Command(Item):
    def wanted(self) -> Have:
        return {"done": True}

    def observe(self) -> Have:
        return {"done": run(*self.want["unless"]).returncode == 0}

    def apply(self, have: Have) -> None:
        must(self.want["title"], *self.want["argv"])

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        if self.want["undo"]:
            must(f"undoing {self.want['title']}", *self.want["undo"])
        return ""


KINDS: dict[str, type[Item]] = {
    kind.__name__.lower(): kind
    for kind in (File, Directory, Link, Package, User, Service, Rules, Secret, Command)
}

# --- converge ---------------------------------------------------------------------------------------------------

changed_ids: set[str] = set()  # resources that changed (or would change) in this run
job_units: list[str] = []  # the units of this job
TARGET = {"id": "target", "task": ""}  # stands for the machine itself where no resource is to blame


def converge(job: dict[str, Any]) -> None:
    """Bring every resource to what it shall be, in order. The first failure stops; the rest are skipped."""
    check = job["mode"] == "check"
    journal = Journal()
    wants = [
        want for want in job["resources"] if not want["when"] or fact(want["when"][0]) == want["when"][1]
    ]
    job_units.extend(want["unit"] for want in wants if want["kind"] == "service")
    broken = False
    if not check:
        broken = not attempt(TARGET, partial(preflight, job, wants, journal))
    for want in wants:
        if broken or gone:
            emit("result", id=want["id"], task=want["task"], status="skipped", message="")
            continue
        emit("start", id=want["id"], task=want["task"])
        broken = not attempt(want, partial(settle, want, wants, journal, check, job["diff"]))


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
    item = KINDS[want["kind"]](want, journal)
    have, wanted = item.observe(), item.wanted()
    differing = [key for key in wanted if have.get(key) != wanted[key]]
    if not differing:
        emit("result", id=want["id"], task=want["task"], status="ok", message="")
        return
    shown = {"diff": item.diff(have)} if diff else {}
    if not check:
        journal.before(want, have)
        for service in (w for w in wants if w["kind"] == "service"):
            if want["id"] in service["restart_on"] + service["reload_on"]:
                journal.await_restart(service["unit"], want["id"])
        item.apply(have)
        now, wanted = item.observe(), item.wanted()
        for key in wanted:
            if now.get(key) != wanted[key]:
                raise Failure(
                    f"{key} is still {now.get(key)!r} after it was applied; it shall be {wanted[key]!r}"
                )
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
    """A few words on what differed: `mode 0600 → 0644`, `content`, `missing rsyslog`."""
    if "type" in differing:
        return (
            "removed"
            if wanted["type"] == "absent"
            else "new"
            if have["type"] == "absent"
            else f"was a {have['type']}"
        )
    words = {
        "sha256": "content",
        "v4": "IPv4 rules",
        "v6": "IPv6 rules",
        "current": "restart",
        "done": "",
        "present": "generated",
    }
    words |= {"missing": "install " + " ".join(have.get("missing", []))}
    for key in differing:
        if key == "mode":
            words[key] = f"mode {have[key]:04o} → {wanted[key]:04o}"
        elif key not in words:
            words[key] = f"{key} {have.get(key)} → {wanted[key]}"
    return ", ".join(words[key] for key in differing if words[key])


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
    missing = [n for w in wants if w["kind"] == "package" for n in Package(w, journal).observe()["missing"]]
    if not missing:
        return
    skew = time.time() - job.get("time", time.time())
    if abs(skew) > 86400:
        raise Failure(
            f"the target's clock is {abs(skew) / 3600:.0f} hours {'ahead' if skew > 0 else 'behind'}, so apt would trust no archive; set it (`timedatectl`) and run again; nothing was touched"
        )
    if run("dpkg", "--audit").stdout.strip():
        wait_for_locks("target")
        must("dpkg was interrupted before and could not be repaired", "dpkg", "--configure", "-a")
        emit("notice", text="an interrupted dpkg was repaired first (dpkg --configure -a)")
    apt_get("target", "install", "--download-only", *missing)


# --- undo -------------------------------------------------------------------------------------------------------


def undo(job: dict[str, Any]) -> None:
    """Put back what the journal knows, newest first. Refuses, before anything is touched, where somebody edited since."""
    options, check, journal = job["undo"], job["mode"] == "check" or job.get("check", False), Journal()
    chosen = [
        id
        for id, e in reversed(journal.entries.items())
        if not options["tasks"] or e["task"] in options["tasks"]
    ]
    items = {
        id: KINDS[journal.entries[id]["kind"]](
            {**journal.entries[id]["want"], "task": journal.entries[id]["task"]}, journal
        )
        for id in chosen
    }
    edited = {id for id, item in items.items() if is_edited(item, journal.entries[id])}
    refused = bool(edited) and not options["keep_edited"]
    restart: dict[str, Have] = {}
    for id, item in items.items():
        entry = journal.entries[id]
        emit("start", id=id, task=entry["task"])
        if id in edited:
            tell_edited(item, entry, options["keep_edited"])
        elif refused or gone:
            emit("result", id=id, task=entry["task"], status="skipped", message="")
        elif check:
            emit("result", id=id, task=entry["task"], status="changed", message="back to what it was")
        elif not attempt(
            {"id": id, "task": entry["task"]}, partial(undo_one, item, entry, journal, options, restart)
        ):
            refused = True
    if not check and not refused:
        finish_undo(restart, journal)


def is_edited(item: Item, entry: dict[str, Any]) -> bool:
    now = item.observe()
    back = all(now.get(key) == value for key, value in entry["before"].items() if key != "mtime")
    return not back and not item.unchanged_since(now, entry["after"])


def tell_edited(item: Item, entry: dict[str, Any], keep: bool) -> None:
    now, after = item.observe(), entry["after"]
    words = [f"{key} {after[key]} → {now.get(key)}" for key in after if now.get(key) != after[key]]
    what = ", ".join(
        "content" if word.startswith("sha256") else word for word in words if word[:5] != "mtime"
    )
    if keep:
        emit(
            "result", id=item.want["id"], task=entry["task"], status="ok", message=f"kept as edited ({what})"
        )
        return
    message = f"changed by somebody since ({what}), so nothing was undone; --keep-edited leaves it and undoes the rest"
    emit(
        "result",
        id=item.want["id"],
        task=entry["task"],
        status="failed",
        message=message,
        diff=edit_diff(item, entry),
    )


def edit_diff(item: Item, entry: dict[str, Any]) -> str:
    """What somebody changed in a file since we wrote it."""
    kept = at(f"{STATE}/journal/objects/{entry['after'].get('sha256')}")
    if item.want["kind"] != "file" or not os.path.exists(kept):
        return ""
    with open(kept, "rb") as file:
        return text_diff(item.want["path"], file.read(), content_at(item.want["path"]))


def undo_one(
    item: Item, entry: dict[str, Any], journal: Journal, options: dict[str, Any], restart: dict[str, Have]
) -> None:
    id, former = item.want["id"], item.observe()
    kept = item.restore(entry["before"], options)
    if kept:
        emit("result", id=id, task=entry["task"], status="ok", message=kept)
        return
    if entry["kind"] != "service" and former != item.observe():
        for other in journal.entries.values():
            if other["kind"] == "service" and id in other["want"]["restart_on"] + other["want"]["reload_on"]:
                restart[other["want"]["unit"]] = other["before"]
    journal.forget(id)
    emit(
        "result",
        id=id,
        task=entry["task"],
        status="changed" if former != item.observe() else "ok",
        message="as it was",
    )


def finish_undo(restart: dict[str, Have], journal: Journal) -> None:
    """Units read their old configuration again; an empty journal leaves nothing of ours behind."""
    run("systemctl", "daemon-reload")
    for unit, before in restart.items():
        if before.get("running"):
            must(f"{unit} did not come back", "systemctl", "reload-or-restart", unit)
    if not journal.entries and os.path.isdir(at(STATE)):
        import shutil

        for name in ("journal", "incoming", "secrets"):
            shutil.rmtree(at(f"{STATE}/{name}"), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(at(STATE))


# --- main -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """One run at a time. The lock is on a directory that every system has, so that check mode makes no file."""
    fd = os.open(at("/var/lib"), os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline or gone:
                    raise Failure(
                        "another knockmap run is still at work on this target; nothing was touched"
                    ) from None
                emit("progress", id="target", text="waiting for another knockmap run on this target")
                time.sleep(1)
        yield
    finally:
        os.close(fd)


MODES = {"apply": converge, "check": converge, "undo": undo}


def stop(*_: Any) -> None:
    global gone
    gone = True


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, stop)
    os.umask(0o022)
    job = json.loads(read_frame(sys.stdin.buffer))

    def work() -> None:
        with alone():
            MODES[job["mode"]](job)

    attempt(TARGET, work)
    emit("end")


if __name__ == "__main__":
    main()
