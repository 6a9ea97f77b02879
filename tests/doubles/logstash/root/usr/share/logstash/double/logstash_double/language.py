"""Logstash's configuration language: text → sections of plugins and branches.

As upstream's grammar has it: no comma between the entries of a hash, a comma between those of a list, `else if` and not
`elsif`, no escapes in strings, a bare word has two letters at least. The same key twice in one hash is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from . import ConfigurationError, NotDoubled


@dataclass(frozen=True)
class Plugin:
    """A plugin and its settings as they stand there. The same setting twice: lists and hashes are put together."""

    kind: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selector:
    """A field, such as `[source][ip]`."""

    path: str


@dataclass(frozen=True)
class Regexp:
    text: str


@dataclass(frozen=True)
class Test:
    """`operator` is one of == != < <= > >= =~ !~ in, not in, and, or, not, truthy; `not` and `truthy` have no right side."""

    operator: str
    left: Any
    right: Any = None


@dataclass(frozen=True)
class Branch:
    """(condition, body) of `if` and each `else if`; the condition of `else` is None."""

    cases: tuple[tuple[Test | None, tuple[Statement, ...]], ...]


Statement = Plugin | Branch
Sections = dict[str, list[Statement]]

BLANK = re.compile(r"(?:\s|#[^\r\n]*)*")
NAME = re.compile(r"[A-Za-z0-9_-]+")
BAREWORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]+")
NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]*)?")
STRING = re.compile(r'"(?:\\"|[^"])*"|' + r"'(?:\\'|[^'])*'")
REGEXP = re.compile(r"/(?:\\/|[^/])*/")
SELECTOR = re.compile(r"(?:\[[^\]\[,]+\])+")
COMPARISON = re.compile(r"==|!=|<=|>=|<|>|=~|!~|in|not +in")
OPERATOR = re.compile(r"and|or|xor|nand")


def parse(text: str) -> Sections:
    """Raises ConfigurationError, with the place, for what the grammar does not have."""
    return Parser(text).sections()


class Parser:
    """Recursive descent. `at` is where the text is read; what a method does not find there is an error."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def skip(self) -> None:
        found = BLANK.match(self.text, self.at)
        assert found
        self.at = found.end()

    def see(self, word: str) -> bool:
        """Past `word` if it comes next."""
        self.skip()
        found = self.text.startswith(word, self.at)
        self.at += len(word) if found else 0
        return found

    def take(self, pattern: re.Pattern[str]) -> str | None:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found[0] if found else None

    def need(self, word: str) -> None:
        if not self.see(word):
            raise self.refused(f'"{word}"')

    def refused(self, expected: str) -> ConfigurationError:
        before = self.text[: self.at]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise ConfigurationError(
            f'Expected one of [ \\t\\r\\n], "#", {expected} at line {line}, column {column} (byte {len(before.encode()) + 1}) '
            f"after {before[-80:]}"
        )

    def sections(self) -> Sections:
        found: Sections = {"input": [], "filter": [], "output": []}
        while True:
            self.skip()
            if self.at == len(self.text):
                return found
            kind = self.take(re.compile("input|filter|output"))
            if kind is None:
                raise self.refused('"input", "filter", "output"')
            self.need("{")
            found[kind] += self.body(kind)

    def body(self, kind: str) -> tuple[Statement, ...]:
        statements: list[Statement] = []
        while not self.see("}"):
            statements.append(self.statement(kind))
        return tuple(statements)

    def statement(self, kind: str) -> Statement:
        start = self.at
        if self.take(re.compile(r"if\b")) and not self.see("{"):
            return self.branch(kind)
        self.at = start
        return self.plugin(kind)

    def branch(self, kind: str) -> Branch:
        cases: list[tuple[Test | None, tuple[Statement, ...]]] = [(self.condition(), self.block(kind))]
        while self.take(re.compile(r"else\b")):
            if self.take(re.compile(r"if\b")):
                cases.append((self.condition(), self.block(kind)))
            else:
                cases.append((None, self.block(kind)))
                break
        return Branch(tuple(cases))

    def block(self, kind: str) -> tuple[Statement, ...]:
        self.need("{")
        return self.body(kind)

    def plugin(self, kind: str) -> Plugin:
        name = self.name()
        self.need("{")
        settings: dict[str, Any] = {}
        while not self.see("}"):
            key = self.name()
            self.need("=>")
            add_setting(settings, key, self.value())
        return Plugin(kind, name, settings)

    def name(self) -> str:
        if (word := self.take(NAME)) is not None:
            return word
        if (text := self.take(STRING)) is not None:
            return text[1:-1]
        raise self.refused('[A-Za-z0-9_-], \'"\', "\'", "}"')

    def value(self) -> Any:
        """A codec, a bare word, a string, a number, a list or a hash."""
        start = self.at
        if (word := self.take(NAME)) is not None:
            if self.see("{"):
                self.at = start
                return self.plugin("codec")
            self.at = start
        if (word := self.take(BAREWORD)) is not None:
            return word
        for read in (self.string, self.number):
            if (scalar := read()) is not None:
                return scalar
        if self.see("["):
            return self.elements(self.value, "]")
        if self.see("{"):
            return self.entries()
        raise self.refused('[A-Za-z0-9_-], \'"\', "\'", "[", "{"')

    def string(self) -> str | None:
        text = self.take(STRING)
        return None if text is None else text[1:-1]

    def number(self) -> int | float | None:
        digits = self.take(NUMBER)
        return None if digits is None else float(digits) if "." in digits else int(digits)

    def elements(self, read: Any, end: str) -> list[Any]:
        if self.see(end):
            return []
        found = [read()]
        while self.see(","):
            found.append(read())
        self.need(end)
        return found

    def entries(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self.see("}"):
            number, word = self.number(), None
            key = str(number) if number is not None else (word := self.take(BAREWORD)) or self.string()
            if key is None:
                raise self.refused('[0-9], [A-Za-z_], \'"\', "\'", "}"')
            self.need("=>")
            if key in found:
                raise ConfigurationError(
                    f"Duplicate keys found in your configuration: [{word or f'{chr(34)}{key}{chr(34)}'}]"
                )
            found[key] = self.value()
        return found

    def condition(self) -> Test:
        """`and` binds closer than `or`."""
        terms = [self.conjunction()]
        while self.operator("or"):
            terms.append(self.conjunction())
        test = terms[0]
        for term in terms[1:]:
            test = Test("or", test, term)
        return test

    def conjunction(self) -> Test:
        test = self.expression()
        while self.operator("and"):
            test = Test("and", test, self.expression())
        return test

    def operator(self, wanted: str) -> str | None:
        start = self.at
        found = self.take(OPERATOR)
        if found in ("xor", "nand"):
            raise NotDoubled(f"the operator {found}")
        if found != wanted:
            self.at = start
            return None
        return found

    def expression(self) -> Test:
        if self.see("("):
            return self.closed()
        start = self.at
        if self.see("!"):
            if self.see("("):
                return Test("not", self.closed())
            if (path := self.take(SELECTOR)) is not None:
                return Test("not", Test("truthy", Selector(path)))
            self.at = start
            raise self.refused('"(", "["')
        left = self.operand()
        comparison = self.take(COMPARISON)
        if comparison is None:
            return Test("truthy", left)
        right = self.pattern() if comparison.endswith("~") else self.operand()
        return Test(re.sub(" +", " ", comparison), left, right)

    def closed(self) -> Test:
        test = self.condition()
        self.need(")")
        return test

    def operand(self) -> Any:
        for read in (self.string, self.number):
            if (scalar := read()) is not None:
                return scalar
        if (path := self.take(SELECTOR)) is not None:
            return Selector(path)
        if self.see("["):
            return self.elements(self.operand, "]")
        if self.take(BAREWORD) and self.see("("):
            raise NotDoubled("calls of methods in conditions")
        raise self.refused('"(", "!", \'"\', "\'", [0-9], "[", "/"')

    def pattern(self) -> Regexp:
        if (text := self.take(REGEXP)) is not None:
            return Regexp(text[1:-1])
        if (string := self.string()) is not None:
            return Regexp(string)
        raise self.refused('\'"\', "\'", "/"')


def add_setting(settings: dict[str, Any], key: str, value: Any) -> None:
    """As upstream: a second hash is merged, a second list appended, a second scalar makes a list (and is refused later)."""
    there = settings.get(key)
    if there is None:
        settings[key] = value
    elif isinstance(there, dict) and isinstance(value, dict):
        settings[key] = {**there, **value}
    elif isinstance(there, list):
        settings[key] = there + (value if isinstance(value, list) else [value])
    elif there != value:
        settings[key] = [there, value]
