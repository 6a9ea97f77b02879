"""Grok: pattern files, `%{NAME:field:type}` → a regular expression → fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import ConfigurationError, NotDoubled
from .oniguruma import Pattern, compiled

Patterns = dict[str, str]

REFERENCE = re.compile(
    r"%\{(?P<whole>(?P<name>[A-z0-9]+)(?::(?P<field>[@\[\]A-z0-9_:.-]+))?)(?P<definition>=)?[^}]*\}"
)
BASE = Path(__file__).with_name("patterns")
MOST_STEPS = 10_000


def read(file: Path) -> Patterns:
    """A line is a name, blanks, a pattern; blanks before both are lost, so no pattern begins with one."""
    found: Patterns = {}
    for line in file.read_text(encoding="utf-8").split("\n"):
        if not re.match(r"\s*#", line) and len(words := line.lstrip().split(None, 1)) == 2:
            found[words[0]] = words[1]
    return found


def folder(paths: list[str], glob: str) -> Patterns:
    """All files of these folders, the base patterns first. A folder that is not there is passed over in silence."""
    found = dict(read(BASE))
    for path in map(Path, paths):
        for file in sorted(path.glob(glob)) if path.is_dir() else [path] if path.is_file() else []:
            if file.is_file():
                found |= read(file)
    return found


class Grok:
    def __init__(self, text: str, patterns: Patterns) -> None:
        self.pattern: Pattern = compiled(expand(text, patterns), multiline=True)
        # By name, in order of first appearance, as Ruby lists them.
        self.order: dict[str, list[int]] = {}
        for number, name in enumerate(self.pattern.names):
            self.order.setdefault(name, []).append(number)

    def match(self, text: str) -> list[tuple[str, Any]] | None:
        """(field, value) in the order in which Logstash sets them; None if the text does not match."""
        groups = self.pattern.search(text)
        return None if groups is None else list(self.captures(groups))

    def captures(self, groups: list[str | None]) -> Iterator[tuple[str, Any]]:
        for name, numbers in self.order.items():
            _, _, rest = name.partition(":")
            field, _, kind = (rest or name).partition(":")
            for nth, number in enumerate(numbers):
                # Upstream forgets the type after the first of several groups of one name.
                yield field, converted(groups[number], kind if nth == 0 else "")


def expand(text: str, patterns: Patterns) -> str:
    """Raises ConfigurationError for a name that no file has."""
    for _ in range(MOST_STEPS):
        found = REFERENCE.search(text)
        if not found:
            return text
        if found["definition"]:
            raise NotDoubled(f"definitions in {found[0]}")
        if found["name"] not in patterns:
            raise ConfigurationError(f"pattern {found[0]} not defined")
        opening = f"(?<{found['whole']}>" if found["field"] else "(?:"
        text = f"{text[: found.start()]}{opening}{patterns[found['name']]}){text[found.end() :]}"
    raise ConfigurationError(f"Deep recursion pattern compilation of {text[:80]!r}")


def converted(text: str | None, kind: str) -> Any:
    """`int` and `float` as Ruby's to_i and to_f; any other type is passed over in silence."""
    if text is None or kind not in ("int", "float"):
        return text
    found = re.match(r"\s*[+-]?\d+" + (r"(?:\.\d+)?" if kind == "float" else ""), text)
    return (int if kind == "int" else float)(found[0] if found else 0)
