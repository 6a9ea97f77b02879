"""Makes a .deb: the format is an ar archive of a version, a tar of scripts and a tar of files."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TIME = 1767225600  # one for all: the same input makes the same package


@dataclass(frozen=True)
class Entry:
    """A path of the target: a file with this content, a link, or (neither) a folder."""

    path: str
    content: bytes | Path | None = None
    link: str = ""
    mode: int = 0o755
    owner: str = "root"
    group: str = "root"

    @property
    def size(self) -> int:
        if isinstance(self.content, Path):
            return self.content.stat().st_size
        return len(self.content or b"")

    def info(self) -> tarfile.TarInfo:
        info = tarfile.TarInfo(f"./{self.path}")
        info.mode, info.mtime, info.uname, info.gname = self.mode, TIME, self.owner, self.group
        info.size = self.size
        if self.link:
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, self.link, 0o777
        elif self.content is None:
            info.type = tarfile.DIRTYPE
        return info


def folder(root: Path) -> list[Entry]:
    """What stands in a folder, as entries owned by root; of modes only "executable" is taken."""
    return [tree_entry(path, root) for path in sorted(root.rglob("*")) if "__pycache__" not in path.parts]


def tree_entry(path: Path, root: Path) -> Entry:
    name = path.relative_to(root).as_posix()
    # The doubles stand on merged systems only, where dpkg refuses a folder /lib.
    name = f"usr/{name}" if name == "lib" or name.startswith("lib/") else name
    if path.is_symlink():
        return Entry(name, link=os.readlink(path))
    if path.is_dir():
        return Entry(name)
    return Entry(name, path, mode=0o755 if os.access(path, os.X_OK) else 0o644)


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """Sorted, each path once (the last one counts), with all folders above: dpkg makes none by itself."""
    found = {entry.path: entry for entry in entries}
    for path in list(found):
        for above in Path(path).parents:
            if str(above) != ".":
                found.setdefault(above.as_posix(), Entry(above.as_posix()))
    return [found[path] for path in sorted(found)]


def tar(entries: Iterable[Entry]) -> bytes:
    """A compressed tar; hardly compressed, since most of it are archives already."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=TIME) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for entry in entries:
            if isinstance(entry.content, Path):
                with entry.content.open("rb") as file:
                    archive.addfile(entry.info(), file)
            else:
                archive.addfile(entry.info(), io.BytesIO(entry.content or b""))
    return packed.getvalue()


def member(name: str, content: bytes) -> bytes:
    """One file of an ar archive."""
    head = f"{name:<16}{TIME:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
    return head.encode() + content + b"\n" * (len(content) % 2)


def build(control: str, scripts: dict[str, bytes], entries: Iterable[Entry]) -> bytes:
    """The .deb. `scripts` are preinst, postinst, …; conffiles among them."""
    files = with_parents(entries)
    size = sum(entry.size for entry in files) // 1024 + len(files)
    texts = {**scripts, "control": f"{control.strip()}\nInstalled-Size: {size}\n".encode()}
    modes = {name: 0o644 if name in ("control", "conffiles") else 0o755 for name in texts}
    meta = [Entry(name, text, mode=modes[name]) for name, text in sorted(texts.items())]
    parts = {"debian-binary": b"2.0\n", "control.tar.gz": tar(meta), "data.tar.gz": tar(files)}
    return b"!<arch>\n" + b"".join(member(name, content) for name, content in parts.items())


def control_of(path: Path) -> str:
    """The control file in a .deb of ours: its second member."""
    with path.open("rb") as file:
        file.seek(len(b"!<arch>\n") + 60 + 4)
        size = int(file.read(60)[48:58])
        with tarfile.open(fileobj=io.BytesIO(file.read(size))) as archive:
            found = archive.extractfile("./control")
            assert found is not None
            return found.read().decode()
