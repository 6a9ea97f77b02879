"""What is at a path, putting something there whole, and our own state, which is made of such files."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import pwd
import stat
from collections.abc import Iterator
from typing import Any

from .machine import at
from .wire import Failure, Have

STATE = "/var/lib/knockmap"


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
    # Where others may write to the folder, a link could have come to its place since it was looked at.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if os.geteuid() == 0:
            os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


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
