"""The nouns a task is made of, and the form in which they travel to the target.

A resource says how one thing on the target shall be; it holds no code that runs there (that is `agent.py`).
Resources are frozen; each has an `id` such as `file:/etc/rsyslog.d/10-knockmap.conf`, unique within one plan.
Restarts and rule files point at resource *objects*, so a typo is a NameError and not a silent no-op.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Above this size a file's bytes do not travel in the manifest: the agent asks for them if its own differ.
INLINE_BYTES = 256 * 1024

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What all resources share.

    `when` limits a resource to targets where a fact has a value, for example `("logger", "rsyslog")`; elsewhere
    it does not exist and is not counted. The facts are those of `agent.FACTS`.
    """

    when: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def id(self) -> str:
        return f"{type(self).__name__.lower()}:{self.name}"

    def wire(self) -> dict[str, Any]:
        """The JSON object for the agent: plain values, other resources as their ids."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"kind": type(self).__name__.lower(), "id": self.id, "name": self.name, **fields}


@dataclass(frozen=True)
class File(Resource):
    """A whole file of ours.

    Exactly one of: `text` (rendered content, may hold `@@fact.X@@` and `@@secret.X@@`, filled in on the target),
    `source` (a local file, sent byte for byte; `sha256` saves reading it where that is known), `absent=True`, or none of them: then the file shall exist with
    these rights and its content is data that we never touch.
    `validate` is an argv that must succeed before the file is renamed into place (`{path}` is the new file);
    `verify` is one that must succeed with the file in place, else the former content comes back.
    No diff shows a `secret` file.
    """

    path: str
    text: str | None = None
    source: Path | None = None
    sha256: str | None = None
    absent: bool = False
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    validate: tuple[str, ...] = ()
    verify: tuple[str, ...] = ()
    secret: bool = False

    def __post_init__(self) -> None:
        if sum((self.text is not None, self.source is not None, self.absent)) > 1:
            raise ValueError(f"{self.path}: give one of text, source and absent")

    @property
    def name(self) -> str:
        return self.path

    @property
    def blob(self) -> tuple[str, Path] | None:
        """(sha256, local path) of content that is too large for the manifest, else None."""
        if self.source is None or self.source.stat().st_size <= INLINE_BYTES:
            return None
        return self.sha256 or hash_of(self.source), self.source

    def wire(self) -> dict[str, Any]:
        wire = super().wire()
        del wire["source"], wire["sha256"]
        wire["data"] = self.text is None and self.source is None and not self.absent
        if blob := self.blob:
            wire["blob"] = {"sha256": blob[0], "size": blob[1].stat().st_size}
        elif self.source is not None:
            wire["base64"] = base64.b64encode(self.source.read_bytes()).decode()
        return wire


@dataclass(frozen=True)
class Directory(Resource):
    """A directory with these rights; what is in it is not ours.

    `tidy` takes back what the task itself has put there, by the target's journal, and plans no more: last of all, so
    that the new is in place before the old goes. Files that others put there stay.
    """

    path: str
    mode: int = 0o755
    owner: str = "root"
    group: str = "root"
    tidy: bool = False

    @property
    def name(self) -> str:
        return self.path


@dataclass(frozen=True)
class Link(Resource):
    """A symbolic link at `path` with the literal text `target`."""

    path: str
    target: str

    @property
    def name(self) -> str:
        return self.path


@dataclass(frozen=True, init=False)
class Package(Resource):
    """Debian packages that shall be installed, by one apt-get run: `Package("rsyslog", "logrotate")`.

    `name=version` asks for exactly that version. `hold` keeps apt from moving them to another one; `stops` are units
    that must not run while an installed one is replaced (in this order; their Service starts them again).
    `debs` are local .deb files to install from in place of an apt source: they are sent only when one is needed.
    `remains` are folders that a purge leaves behind and undo removes with the packages; `stores` only with --data, too.
    """

    names: tuple[str, ...]
    hold: bool = False
    stops: tuple[str, ...] = ()
    debs: tuple[Path, ...] = ()
    remains: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()

    def __init__(
        self,
        *names: str,
        when: tuple[str, str] | None = None,
        hold: bool = False,
        stops: tuple[str, ...] = (),
        debs: tuple[Path, ...] = (),
        remains: tuple[str, ...] = (),
        stores: tuple[str, ...] = (),
    ) -> None:
        given = {"names": names, "when": when, "hold": hold, "stops": stops, "debs": debs}
        for name, value in {**given, "remains": remains, "stores": stores}.items():
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        return ",".join(name.partition("=")[0] for name in self.names)

    @property
    def blobs(self) -> dict[str, Path]:
        return {hash_of(path): path for path in self.debs}

    def wire(self) -> dict[str, Any]:
        parts = [
            {"name": path.name, "sha256": sha256, "size": path.stat().st_size}
            for sha256, path in self.blobs.items()
        ]
        return {**super().wire(), "debs": parts}


@dataclass(frozen=True)
class User(Resource):
    """A system user with a group of the same name, no password and no shell."""

    user: str
    home: str = "/nonexistent"

    @property
    def name(self) -> str:
        return self.user


@dataclass(frozen=True)
class Service(Resource):
    """A systemd unit (with its suffix). `running` and `enabled` None leave that property alone.

    The unit is restarted (or reloaded) when one of these resources changed since it last was, also when the run
    that changed it broke off before it came to the unit.
    `ready` is an argv that succeeds as soon as the started unit does its work (what it prints meanwhile is shown);
    `why` is one that says what may hinder a unit that does not come.
    """

    unit: str
    running: bool | None = True
    enabled: bool | None = True
    restart_on: tuple[Resource, ...] = ()
    reload_on: tuple[Resource, ...] = ()
    ready: tuple[str, ...] = ()
    why: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.unit


@dataclass(frozen=True)
class Rules(Resource):
    """A firewall chain that we own, for IPv4 and IPv6, entered first in its hook.

    `load`, `show` and `unload` are argv lists of a program on the target. `show` with v4 or v6 behind it prints where
    the chain is entered ("1 -A INPUT … -j CHAIN") and its rules. `files` are the resources it loads from: their
    content stands for the wanted rules, what the kernel showed after loading is what later runs compare with.
    """

    chain: str
    load: tuple[str, ...]
    show: tuple[str, ...]
    unload: tuple[str, ...]
    files: tuple[File, ...]

    @property
    def name(self) -> str:
        return self.chain


@dataclass(frozen=True)
class Secret(Resource):
    """A random secret of `bits` bits, born on the target in its root-only folder, if it is not there yet.

    One that `data` are encrypted with is kept by undo as they are.
    """

    secret: str
    bits: int = 128
    data: bool = False

    @property
    def name(self) -> str:
        return self.secret


@dataclass(frozen=True)
class Command(Resource):
    """An argv list that runs as root only while its guard says so: `unless` exits non-zero.

    After it ran, the guard must succeed. `undo` is what `fab undo` runs if we ever ran `argv`.
    """

    title: str
    argv: tuple[str, ...]
    unless: tuple[str, ...]
    undo: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.unless:
            raise ValueError(f"command {self.title!r} needs a guard (unless)")

    @property
    def name(self) -> str:
        return self.title


@dataclass(frozen=True)
class Requirement(Resource):
    """What must hold before anything of the whole run is changed: the fact is empty, or says what is in the way.

    `given` is what the fact is asked with, for those that depend on a setting.
    """

    fact: str
    given: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.fact


@dataclass(frozen=True)
class Rest(Resource):
    """A JSON document at `path` of an HTTPS API on loopback: asked for by GET, compared, set by PUT.

    `answer` leads from the answer to the document, such as ("index_templates", 0, "index_template"). The top-level keys
    that we set are compared as a whole, so write them as the API answers them; others are left alone. `user` logs in
    with the secret named `secret`; `ca` is the file of the authority that is trusted.
    """

    path: str
    document: str  # JSON
    answer: tuple[str | int, ...]
    port: int
    ca: str
    user: str
    secret: str

    @property
    def name(self) -> str:
        return self.path

    def wire(self) -> dict[str, Any]:
        # Not "path": that is a file's.
        wire = super().wire()
        del wire["path"]
        return {**wire, "url": self.path, "document": json.loads(self.document)}


Plan = Mapping[str, Sequence[Resource]]
"""Task name -> its resources, both in order of application."""


def manifest(plan: Plan) -> list[dict[str, Any]]:
    """The wire form of a plan: a flat list in order, each object with its `task`.

    Raises ValueError when two resources of the plan have the same id but differ.
    """
    seen: dict[str, Resource] = {}
    planned: set[str] = set()
    wire = []
    for task, resources in plan.items():
        for resource in resources:
            if seen.setdefault(resource.id, resource) != resource:
                raise ValueError(f"{task}: {resource.id} is already planned with other properties")
            if resource.id not in planned:
                planned.add(resource.id)
                wire.append({"task": task, **resource.wire()})
    return wire


def blobs(plan: Plan) -> dict[str, Path]:
    """sha256 -> local path of every large file of the plan."""
    planned = [r for resources in plan.values() for r in resources]
    packages = [found for r in planned if isinstance(r, Package) for found in r.blobs.items()]
    return dict([*(blob for r in planned if isinstance(r, File) and (blob := r.blob)), *packages])


@lru_cache
def render(template: str, **values: Any) -> str:
    """The text of `files/<template>`, headed by a `#` line that names knockmap and this source.

    A name that ends in `.j2` is a Jinja2 template; raises jinja2.UndefinedError for a value that it lacks.
    """
    path = ROOT / "files" / template
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".j2":
        import jinja2  # costs 40 ms, and a task without a template does not need it

        environment = jinja2.Environment(  # noqa: S701 - no HTML
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        text = environment.from_string(text).render(**values)
    shebang, body = text.split("\n", 1) if text.startswith("#!") else ("", text)
    header = f"# Managed by knockmap (files/{template}): changes made here are lost at the next deploy.\n"
    return f"{shebang}\n{header}{body}" if shebang else header + body


def hash_of(path: Path) -> str:
    """SHA-256 of a large local file."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of a large file; size and mtime are there so that the cache forgets a file that changed."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _slow(file)
        )


def _slow(file: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Resource):
        return value.id
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
