"""The kinds that are paths: File, Directory, Link and Secret."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import sys
import zlib
from collections.abc import Callable
from typing import Any

from . import machine
from .facts import secret_path, substitute
from .item import Item
from .journal import holds_data, holds_secret
from .machine import at, must, read_text, run
from .paths import STATE, beside, digest, load, look, own, put, remove, store, sync_folder
from .wire import Failure, Have, emit, read_frame

HIDDEN = "(content differs; not shown, since it holds a secret)\n"


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
        if have["type"] == "file" and path.startswith("/etc/systemd/system/"):
            # Also those that no Service is about, such as what a timer starts, shall be read anew.
            run("systemctl", "daemon-reload")

    def validate(self, temporary: str) -> None:
        if self.want["validate"]:
            argv = [part.replace("{path}", temporary) for part in self.want["validate"]]
            must(f"the new {self.want['path']} was refused and is not in place", *argv)

    def verify(self, have: Have, former: bytes | None) -> None:
        def as_before() -> None:
            if former is None:
                remove(self.want["path"])
            else:
                put(self.want["path"], former, have["mode"], have["owner"], have["group"])

        self.must_pass(as_before)

    def must_pass(self, as_before: Callable[[], Any]) -> None:
        """What reads the file takes it, or what was there before comes back."""
        done = run(*self.want["verify"])
        if done.returncode == 0:
            return
        as_before()
        raise Failure(
            f"{self.want['path']} was refused by `{' '.join(self.want['verify'])}`; what was there before is back",
            done.stdout + done.stderr,
        )

    def resume(self) -> None:
        """In place, and perhaps never verified."""
        if self.want["verify"]:
            before = self.journal.entries[self.want["id"]]["before"]
            self.must_pass(lambda: self.restore(before, {"data": False}))

    def receive(self, wanted: Have) -> None:
        part = receive(self.want["id"], self.want["blob"])
        own(part, wanted["mode"], wanted["owner"], wanted["group"])
        self.validate(part)
        os.rename(part, at(self.want["path"]))
        sync_folder(self.want["path"])
        info = os.stat(at(self.want["path"]))
        mark = [info.st_ino, info.st_size, info.st_mtime_ns, wanted["sha256"]]
        store("digests.json", {**load("digests.json", {}), self.want["path"]: mark})

    def diff(self, have: Have) -> str:
        new = self.content()
        if new is None and not self.want["absent"]:
            return ""
        if holds_secret(self.want):
            return HIDDEN
        return text_diff(self.want["path"], content_at(self.want["path"]), new or b"")

    def unchanged_since(self, now: Have, after: Have) -> bool:
        keys = (
            ("type", "mode", "owner", "group")
            if holds_data(self.want)
            else ("type", "mode", "owner", "group", "sha256")
        )
        return all(now.get(key) == after.get(key) for key in keys)

    def keeps(self, before: Have, options: dict[str, Any]) -> str:
        path = self.want["path"]
        if not holds_data(self.want) or before["type"] != "absent" or options["data"]:
            return ""
        full = os.path.exists(at(path)) and os.path.getsize(at(path))
        return "kept, since it holds data (--data removes it)" if full or rotations(path) else ""

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        path = self.want["path"]
        if holds_data(self.want) and before["type"] == "absent":
            for copy in rotations(path):
                os.unlink(copy)
        return put_back(path, before)


def receive(id: str, blob: dict[str, Any], suffix: str = "") -> str:
    """Get a large file from the operator, on top of what an earlier run already got; gives its path."""
    sha256, size = blob["sha256"], blob["size"]
    store("digests.json", load("digests.json", {}))  # makes our folders
    os.makedirs(at(f"{STATE}/incoming"), 0o700, exist_ok=True)
    part = at(f"{STATE}/incoming/{sha256}{suffix}")
    with open(part, "ab") as file:
        emit("need", id=id, sha256=sha256, offset=file.tell(), size=size)
        while frame := read_frame(sys.stdin.buffer):
            file.write(zlib.decompress(frame))
        file.flush()
        os.fsync(file.fileno())
    if digest(part[len(machine.ROOT) :], os.stat(part)) != sha256:
        os.unlink(part)
        raise Failure(f"{blob.get('name', id)} arrived damaged and was thrown away; run again")
    return part


def rotations(path: str) -> list[str]:
    """The older parts of a log, such as iptables.log.1 and iptables.log.2.gz, as paths of this system."""
    name = re.compile(re.escape(os.path.basename(path)) + r"\.\d+(\.\w+)?")
    folder = os.path.dirname(at(path))
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [f"{folder}/{found}" for found in names if name.fullmatch(found)]


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
        if any(str(e["want"].get("path", "")).startswith(f"{path}/") for e in self.journal.entries.values()):
            return "kept, since other tasks have files in it"
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


class Secret(Item):
    def wanted(self) -> Have:
        return {"present": True}

    def observe(self) -> Have:
        return {"present": bool(read_text(secret_path(self.want["secret"])))}

    def apply(self, have: Have) -> None:
        os.makedirs(at(f"{STATE}/secrets"), 0o700, exist_ok=True)
        value = base64.b32encode(os.urandom((self.want["bits"] + 7) // 8)).decode().rstrip("=").lower()
        put(secret_path(self.want["secret"]), value.encode())

    def keeps(self, before: Have, options: dict[str, Any]) -> str:
        if not self.want.get("data") or before["present"] or options["data"]:
            return ""
        return "kept, since data are encrypted with it (--data removes it)"

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        if not before["present"]:
            with contextlib.suppress(FileNotFoundError):  # by hand, or an undo that was killed
                os.unlink(at(secret_path(self.want["secret"])))
        return ""
