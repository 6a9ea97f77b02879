"""logstash.yml, pipelines.yml and the flags of the command line."""

from __future__ import annotations

import argparse
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ConfigurationError, NotDoubled
from .options import substituted

UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
# Default, and what a value may be: a type, or the words to choose from. `None` as a default: not set.
KNOWN: dict[str, tuple[Any, Any]] = {
    "node.name": (os.uname().nodename, str),
    "path.data": ("/usr/share/logstash/data", str),
    "path.logs": ("/usr/share/logstash/logs", str),
    "path.config": (None, str),
    "path.queue": (None, str),
    "path.dead_letter_queue": (None, str),
    "config.string": (None, str),
    "config.test_and_exit": (False, bool),
    "config.reload.automatic": (False, bool),
    "config.reload.interval": ("3s", str),
    "config.support_escapes": (False, bool),
    "config.debug": (False, bool),
    "allow_superuser": (False, bool),
    "pipeline.id": ("main", str),
    "pipeline.workers": (os.cpu_count() or 1, int),
    "pipeline.batch.size": (125, int),
    "pipeline.batch.delay": (50, int),
    "pipeline.unsafe_shutdown": (False, bool),
    "pipeline.ordered": ("auto", ("auto", "true", "false")),
    "pipeline.recoverable": ("false", ("auto", "true", "false")),
    "pipeline.ecs_compatibility": ("v8", ("disabled", "v1", "v8")),
    "pipeline.separate_logs": (False, bool),
    "pipeline.buffer.type": ("heap", ("heap", "direct")),
    "queue.type": ("memory", ("memory", "persisted")),
    "queue.page_capacity": ("64mb", "bytes"),
    "queue.max_bytes": ("1024mb", "bytes"),
    "queue.max_events": (0, int),
    "queue.checkpoint.acks": (1024, int),
    "queue.checkpoint.writes": (1024, int),
    "queue.checkpoint.retry": (True, bool),
    "queue.compression": ("none", ("none", "speed", "balanced", "size", "disabled")),
    "queue.drain": (False, bool),
    "dead_letter_queue.enable": (False, bool),
    "dead_letter_queue.max_bytes": ("1024mb", "bytes"),
    "dead_letter_queue.flush_interval": (5000, int),
    "dead_letter_queue.storage_policy": ("drop_newer", ("drop_newer", "drop_older")),
    "dead_letter_queue.retain.age": (None, str),
    "api.enabled": (True, bool),
    "api.http.host": ("127.0.0.1", str),
    "api.http.port": ("9600-9700", str),
    "api.environment": ("production", str),
    "log.level": ("info", ("fatal", "error", "warn", "info", "debug", "trace")),
    "log.format": ("plain", ("plain", "json")),
    "xpack.monitoring.enabled": (False, bool),
    "xpack.monitoring.allow_legacy_collection": (False, bool),
    "xpack.management.enabled": (False, bool),
    "xpack.geoip.downloader.enabled": (True, bool),
}
ADVICE = dict.fromkeys(
    ("http.host", "http.port"), "it was removed in 9.0; use api.http.host and api.http.port"
)


# What may stand on the command line; the rest is a matter of the files alone.
VALUES = (
    *("node.name", "pipeline.id", "pipeline.ordered", "pipeline.ecs_compatibility", "path.data", "path.logs"),
    *("config.reload.interval", "api.enabled", "api.http.host", "api.http.port", "log.level", "log.format"),
)
SWITCHES = ("pipeline.unsafe_shutdown", "config.debug")


@dataclass(frozen=True)
class Settings:
    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def folder(self, name: str) -> Path:
        """`path.queue` and `path.dead_letter_queue` stand below `path.data` where they are not set."""
        return Path(self[name] or Path(self["path.data"]) / name.removeprefix("path."))


def read_yaml(text: str) -> dict[str, Any]:
    """The little YAML that these files are: `a.b: value`, and blocks `a:` with `b: value` indented. Raises ConfigurationError."""
    found: dict[str, Any] = {}
    above: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if not bare.strip():
            continue
        entry = re.fullmatch(r"(\s*)([A-Za-z0-9_.]+):(?:\s+(.*))?", bare)
        if not entry or "\t" in (entry[1] or ""):
            raise ConfigurationError(f"line {number} is no `name: value`: {line!r}")
        indent = len(entry[1])
        above = [parent for parent in above if parent[0] < indent]
        name = ".".join([*(parent for _, parent in above), entry[2]])
        if entry[3] is None:
            above.append((indent, entry[2]))
        elif name in found:
            raise ConfigurationError(f"line {number}: duplicate key {name}")
        else:
            found[name] = scalar(entry[3])
    return found


def scalar(text: str) -> Any:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if text[:1] in "[{&*|>!%@`":
        raise NotDoubled(f"the YAML {text!r}")
    return text


def checked(given: dict[str, Any]) -> Settings:
    """With defaults. Raises ConfigurationError for an unknown setting or a wrong value."""
    for name, value in substituted(given).items():
        if name not in KNOWN:
            raise ConfigurationError(
                f"Setting \"{name}\" doesn't exist. Please check if you haven't made a typo.{' (' + ADVICE[name] + ')' if name in ADVICE else ''}"
            )
        given[name] = fitting(name, value, KNOWN[name][1])
    values = {
        name: size(default) if kind == "bytes" else default for name, (default, kind) in KNOWN.items()
    } | given
    if values["queue.page_capacity"] > values["queue.max_bytes"]:
        raise ConfigurationError(
            "Invalid configuration, 'queue.page_capacity' must be less than or equal to 'queue.max_bytes'"
        )
    if values["path.config"] and values["config.string"]:
        raise ConfigurationError(
            "Settings 'path.config' (-f) and 'config.string' (-e) can't be used simultaneously."
        )
    return Settings(values)


def fitting(name: str, value: Any, kind: Any) -> Any:
    if kind == "bytes":
        return size(value)
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if kind is int and isinstance(value, str) and re.fullmatch(r"\d+", value):
        return int(value)
    if kind is str or isinstance(kind, tuple):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    if (isinstance(kind, tuple) and value not in kind) or (
        isinstance(kind, type) and type(value) is not kind
    ):
        raise ConfigurationError(f'Setting "{name}" has the invalid value {value!r}; it must be {kind}')
    return value


def size(value: Any) -> int:
    found = re.fullmatch(r"(\d+)\s*([kmg]?b)?", str(value).lower())
    if not found:
        raise ConfigurationError(
            f"Unparseable filesize: {value}. possible units (KiB, MiB, ...) e.g. '10 KiB'."
        )
    return int(found[1]) * UNITS[found[2] or ""]


def pipelines(file: Path) -> list[dict[str, Any]]:
    """The settings of each pipeline of pipelines.yml. Raises ConfigurationError."""
    if not file.exists():
        raise ConfigurationError(f"Failed to read pipelines yaml file. Location: {file}")
    text = re.sub(r"(?m)^\s*#.*\n?", "", file.read_text())
    if not text.strip():
        raise ConfigurationError(f"Pipelines YAML file is empty. Location: {file}")
    if not text.startswith("- "):
        raise ConfigurationError(
            f'Pipelines YAML file must contain an array of pipeline configs. Found "Hash" in {file}'
        )
    found = [read_yaml("  " + part) for part in re.split(r"(?m)^- ", text)[1:]]
    ids = [pipeline.get("pipeline.id") for pipeline in found]
    if len(set(ids)) < len(ids):
        raise ConfigurationError(
            f"Pipelines YAML file contains duplicate pipeline ids: {ids}. Location: {file}"
        )
    return found


def configuration(pattern: str) -> str:
    """All files of a path, a folder or a glob, in order of their names, as one text. Raises ConfigurationError."""
    paths = sorted(glob.glob(f"{pattern}/*" if Path(pattern).is_dir() else pattern))
    files = [Path(path) for path in paths if Path(path).is_file() and not path.endswith("~")]
    if not files:
        raise ConfigurationError(
            f"No config files found: {pattern}. Can you make sure this path is a logstash config file?"
        )
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def arguments(argv: list[str]) -> argparse.Namespace:
    """Flags as upstream's. Unknown or removed ones end the program with status 1."""
    parser = argparse.ArgumentParser(prog="logstash", allow_abbrev=False, exit_on_error=False)
    parser.add_argument(
        "--path.settings", dest="folder", type=Path, default=Path("/usr/share/logstash/config")
    )
    parser.add_argument("-f", "--path.config", dest="path.config")
    parser.add_argument("-e", "--config.string", dest="config.string")
    parser.add_argument(
        "-t", "--config.test_and_exit", dest="config.test_and_exit", action="store_const", const=True
    )
    parser.add_argument(
        "-r", "--config.reload.automatic", dest="config.reload.automatic", action="store_const", const=True
    )
    parser.add_argument("-w", "--pipeline.workers", dest="pipeline.workers")
    parser.add_argument("-b", "--pipeline.batch.size", dest="pipeline.batch.size")
    parser.add_argument("-u", "--pipeline.batch.delay", dest="pipeline.batch.delay")
    parser.add_argument("-V", "--version", dest="version", action="store_true")
    for name in VALUES:
        parser.add_argument(f"--{name}", dest=name)
    for name in SWITCHES:
        parser.add_argument(f"--{name}", dest=name, action="store_const", const=True)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigurationError(f"Unrecognised option '{unknown[0]}'")
    return given


def load(given: argparse.Namespace) -> Settings:
    """logstash.yml, and over it the flags. Raises ConfigurationError."""
    file = given.folder / "logstash.yml"
    values = read_yaml(file.read_text(encoding="utf-8")) if file.exists() else {}
    flags = {name: value for name, value in vars(given).items() if name in KNOWN and value is not None}
    return checked(values | flags)
