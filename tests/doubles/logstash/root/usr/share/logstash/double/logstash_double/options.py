"""What a plugin's settings may be: upstream's declarations of options, with its words for what they refuse."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import ConfigurationError, NotDoubled
from .event import path
from .language import Plugin

VARIABLE = re.compile(r"\$\{(?P<name>[a-zA-Z_.][a-zA-Z0-9_.]*)(?::(?P<default>[^}]*))?\}")


@dataclass(frozen=True)
class Option:
    """`kind` is string, number, boolean, array, hash, path, password, uri, field or codec. `choices` are all that is allowed.

    `obsolete` is the advice that comes with the refusal; `doubled` is false for what only Logstash itself can do.
    """

    kind: str = "string"
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] = ()
    listed: bool = False
    obsolete: str = ""
    doubled: bool = True


Options = dict[str, Option]


def substituted(value: Any) -> Any:
    """`${NAME}` and `${NAME:default}` by the environment, in keys of hashes never. Raises ConfigurationError."""
    if isinstance(value, dict):
        return {key: substituted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [substituted(item) for item in value]
    return VARIABLE.sub(variable, value) if isinstance(value, str) else value


def variable(found: re.Match[str]) -> str:
    value = os.environ.get(found["name"], found["default"])
    if value is None:
        raise ConfigurationError(
            f"Cannot evaluate `{found[0]}`. Replacement variable `{found['name']}` is not defined in a Logstash secret store or "
            "as an Environment entry and there is no default value given."
        )
    return value


def validated(plugin: Plugin, options: Options) -> dict[str, Any]:
    """Every option with its value or default. Raises ConfigurationError, and NotDoubled for what exists upstream only."""
    settings = substituted(plugin.settings)
    for name in settings:
        refuse_name(plugin, name, options)
    values = {name: option.default for name, option in options.items()}
    for name, given in settings.items():
        values[name] = checked(plugin, name, given, options[name])
    for name, option in options.items():
        if option.required and values[name] is None:
            raise ConfigurationError(
                f"Missing a required setting for the {plugin.name} {plugin.kind} plugin:\n\n  {plugin.kind} {{\n"
                f"    {plugin.name} {{\n      {name} => # SETTING MISSING\n      ...\n    }}\n  }}"
            )
    return values


def refuse_name(plugin: Plugin, name: str, options: Options) -> None:
    if name not in options:
        raise ConfigurationError(
            f"Unknown setting '{name}' for {plugin.name}. Something is wrong with your configuration."
        )
    if advice := options[name].obsolete:
        raise ConfigurationError(
            f"The setting `{name}` in plugin `{plugin.name}` is obsolete and is no longer available. {advice}"
        )
    if not options[name].doubled:
        raise NotDoubled(f"the setting `{name}` of {plugin.name}")


def checked(plugin: Plugin, name: str, given: Any, option: Option) -> Any:
    try:
        if option.listed:
            return [convert(item, option) for item in (given if isinstance(given, list) else [given])]
        return convert(given, option)
    except ValueError as error:
        raise ConfigurationError(
            f"Invalid setting for {plugin.name} {plugin.kind} plugin:\n\n  {plugin.kind} {{\n    {plugin.name} {{\n"
            f"      # This setting must be a {option.choices or option.kind}\n      # {error}\n"
            f"      {name} => {given!r}\n      ...\n    }}\n  }}"
        ) from error


def convert(given: Any, option: Option) -> Any:
    """Raises ValueError."""
    if option.kind in ("array", "hash", "codec"):
        return COLLECTIONS[option.kind](given)
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, (list, dict)):
        raise ValueError(f"Expected {option.kind}, got {given!r}")
    if option.choices and given not in option.choices:
        raise ValueError(f"Expected one of {list(option.choices)}, got {given!r}")
    return SCALARS[option.kind](given)


def to_array(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def to_hash(given: Any) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    items = to_array(given)
    if len(items) % 2:
        raise ValueError(f"This field must contain an even number of items, got {len(items)}")
    return dict(zip(items[::2], items[1::2], strict=True))


def to_codec(given: Any) -> Plugin:
    return given if isinstance(given, Plugin) else Plugin("codec", str(given))


def to_number(given: Any) -> int | float:
    if isinstance(given, (int, float)):
        return given
    try:
        return float(given) if "." in given else int(given)
    except ValueError:
        raise ValueError(f"Expected number, got {given!r} (type {given})") from None


def to_boolean(given: Any) -> bool:
    if given not in ("true", "false"):
        raise ValueError(f"Expected boolean 'true' or 'false', got {given!r}")
    return bool(given == "true")


def to_path(given: Any) -> str:
    """Upstream looks, at `-t` too, whether the file is there."""
    if not Path(str(given)).exists():
        raise ValueError(f"File does not exist or cannot be opened {given}")
    return str(given)


def to_field(given: Any) -> str:
    try:
        path(str(given))
    except ConfigurationError:
        raise ValueError(f"Expected a valid field reference, got `{given!r}`") from None
    return str(given)


def to_uri(given: Any) -> str:
    text = str(given)
    urlsplit(text)
    return text if "//" in text else f"//{text}"


COLLECTIONS = {"array": to_array, "hash": to_hash, "codec": to_codec}
SCALARS: dict[str, Any] = {
    "string": str,
    "password": str,
    "number": to_number,
    "boolean": to_boolean,
    "path": to_path,
    "field": to_field,
    "uri": to_uri,
}
