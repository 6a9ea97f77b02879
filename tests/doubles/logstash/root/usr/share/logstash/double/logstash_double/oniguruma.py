"""Regular expressions by the library whose language Logstash's engine (Joni) speaks, and Ruby's rules around it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import onigurumacffi  # type: ignore[import-untyped]

from . import ConfigurationError

# A backslash and its sign, the start of a class, of a named group, of any other group with "?", or of a plain group.
PIECE = re.compile(r"\\.|\[|\]|\(\?<(?![=!])(?P<name>[^>]+)>|\(\?|\(|.", re.DOTALL)


class TooLong(Exception):
    """The engine gave up after too many steps; Logstash would after 30 s."""


class Pattern:
    """`names` are those of the groups, in order: a name may come more than once. As in Ruby, once a group has a name
    those without count no more."""

    def __init__(self, text: str, multiline: bool) -> None:
        self.names: list[str] = []
        translated = self.translate(text)
        try:
            self.engine = onigurumacffi.compile(f"(?m:{translated})" if multiline else translated)
        except onigurumacffi.OnigError as error:
            raise ConfigurationError(f"{error}: /{text}/") from error

    def translate(self, text: str) -> str:
        """Names of groups such as `[source][ip]:int` are for us to keep: the library would not take them."""
        inside, pieces = 0, []
        for found in PIECE.finditer(text):
            piece = found[0]
            if piece in ("[", "]"):
                inside = max(0, inside + (1 if piece == "[" else -1))
            elif not inside and found["name"]:
                self.names.append(found["name"])
                piece = "("
            elif not inside and piece == "(":
                piece = "(?:"
            pieces.append(piece)
        return "".join(pieces)

    def search(self, text: str) -> list[str | None] | None:
        """The groups of the first match, in order. Raises TooLong."""
        try:
            found: Any = self.engine.search(text)
        except onigurumacffi.OnigError as error:
            raise TooLong(str(error)) from error
        if found is None:
            return None
        # A group that took no part begins at -1, which its own methods do not look at.
        return [found[n] if found._begs[n] >= 0 else None for n in range(1, len(self.names) + 1)]


@lru_cache(maxsize=500)
def compiled(text: str, multiline: bool) -> Pattern:
    return Pattern(text, multiline)
