"""Whether a condition holds for an event, as upstream decides it.

Nothing is converted: 22 is not "22". A comparison with a field that is not there fails, and takes the event with it. A
string left of `in` is looked for inside a string; a number left of `in` is never in a scalar.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from . import NotDoubled
from .event import Event, text_of
from .language import Regexp, Selector, Test
from .oniguruma import Pattern, compiled


class Incomparable(Exception):
    """Upstream raises in the middle of the batch then, and loses the event."""


def holds(test: Test, event: Event) -> bool:
    operator, left, right = test.operator, test.left, test.right
    if operator == "and":
        return holds(left, event) and holds(right, event)
    if operator == "or":
        return holds(left, event) or holds(right, event)
    if operator == "not":
        return not holds(left, event)
    if operator == "truthy":
        return truthy(value(left, event))
    if operator in ("in", "not in"):
        return contained(left, right, event) == (operator == "in")
    if operator in ("=~", "!~"):
        return matches(value(left, event), right) == (operator == "=~")
    if operator in ("==", "!="):
        return same(value(left, event), value(right, event)) == (operator == "==")
    return ordered(operator, value(left, event), value(right, event))


def check(test: Test) -> None:
    """Before any event: regular expressions that do not compile, and what is no condition at all."""
    for side in (test.left, test.right):
        if isinstance(side, Test):
            check(side)
        if isinstance(side, Regexp):
            regexp(side)


def value(operand: Any, event: Event) -> Any:
    return event.get(operand.path) if isinstance(operand, Selector) else operand


def truthy(found: Any) -> bool:
    """Neither an empty string nor "false" is; 0 and an empty hash are."""
    return found is not None and found is not False and found not in ("", "false")


def same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return type(left) is type(right) and bool(left == right)


def regexp(pattern: Regexp) -> Pattern:
    return compiled(pattern.text.replace("\\/", "/"), multiline=False)


def matches(found: Any, pattern: Regexp) -> bool:
    """A field that is no string never matches."""
    return isinstance(found, str) and regexp(pattern).search(found) is not None


def contained(left: Any, right: Any, event: Event) -> bool:
    found, holder = value(left, event), value(right, event)
    if found is None or holder is None:
        return False
    if isinstance(right, list) and isinstance(left, Selector):
        return text_of(found) in map(text_of, right)  # here alone 22 is "22"
    if isinstance(holder, list):
        return any(same(found, item) for item in holder)
    if not isinstance(left, Selector) and not isinstance(left, str):
        return False
    if isinstance(holder, str):
        return text_of(found) in holder if isinstance(found, str) else False
    raise NotDoubled(f"`in` with {holder!r} on its right")


def ordered(operator: str, left: Any, right: Any) -> bool:
    numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
    if (
        not numbers
        and not (isinstance(left, str) and isinstance(right, str))
        and not isinstance(left, datetime)
    ):
        raise Incomparable(f"{left!r} {operator} {right!r}")
    less, equal = left < right, left == right
    return bool({"<": less, "<=": less or equal, ">": not less and not equal, ">=": not less}[operator])
