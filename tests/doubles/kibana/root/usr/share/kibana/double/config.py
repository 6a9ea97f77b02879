"""kibana.yml as Kibana takes it: what it does not know, or what cannot be, ends the start."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit


class Invalid(Exception):
    """The start ends with these words."""


def parse(text: str) -> dict[str, Any]:
    """The flat form of that part of YAML which such files are made of. What is beyond it is refused."""
    flat: dict[str, Any] = {}
    open_keys: list[tuple[int, str]] = []  # (indentation, dotted name) of the mappings that we are in
    for number, line in enumerate(text.splitlines(), 1):
        if "\t" in line:
            raise Invalid(f"YAMLException: tab characters must not be used in indentation ({number})")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent, rest = len(line) - len(line.lstrip()), line.strip()
        if item := re.fullmatch(r"- (.+)", rest):
            flat.setdefault(open_keys[-1][1], []).append(scalar(item[1], number))
            continue
        found = re.fullmatch(r"([\w.-]+):(?: (.*))?", rest)
        if not found:
            raise Invalid(f"YAMLException: can not read line {number}: {rest}")
        while open_keys and open_keys[-1][0] >= indent:
            open_keys.pop()
        name = ".".join([*(key for _, key in open_keys[-1:]), found[1]])
        if name in flat:
            raise Invalid(f"YAMLException: duplicated mapping key ({number}:1) {name}")
        if found[2]:
            flat[name] = scalar(found[2], number)
        else:
            open_keys.append((indent, name))
    return flat


def scalar(text: str, number: int) -> Any:
    if text.startswith("["):
        inner = text[1:].partition("]")[0]
        return [scalar(part.strip(), number) for part in inner.split(",") if part.strip()]
    if text.startswith('"'):
        try:
            return json.loads(text.split(" #")[0])
        except ValueError:
            raise Invalid(f"YAMLException: bad quoted text in line {number}") from None
    text = text.split(" #")[0].strip()
    if text in ("true", "false"):
        return text == "true"
    if re.search(r": |^[{&*!|>%@`'\"]", text):
        raise Invalid(f"YAMLException: bad value in line {number}: {text}")
    return int(text) if re.fullmatch(r"\d+", text) else text


def wants(kind: type, word: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return "" if fits else f"expected value of type [{word}] but got [{type(value).__name__}]"

    return check


text, number, boolean, array = (
    wants(str, "string"),
    wants(int, "number"),
    wants(bool, "boolean"),
    wants(list, "array"),
)


def base_path(value: Any) -> str:
    fits = isinstance(value, str) and re.fullmatch(r"/.*[^/]", value)
    return "" if fits else "must start with a slash, don't end with one"


def long_key(value: Any) -> str:
    if not isinstance(value, str):
        return text(value)
    few = len(value) < 32
    return f"value has length [{len(value)}] but it must have a minimum length of [32]." if few else ""


def user(value: Any) -> str:
    if value in ("elastic", "kibana"):
        return f'value of "{value}" is forbidden. Use a service account token instead.'
    return text(value)


# What is asked of each key. One that is not here is not known, as those that went with 8.0 and 9.0.
SCHEMA: dict[str, Callable[[Any], str]] = {
    "server.host": text,
    "server.port": number,
    "server.name": text,
    "server.basePath": base_path,
    "server.rewriteBasePath": boolean,
    "server.publicBaseUrl": text,
    "server.maxPayload": number,
    "server.restrictInternalApis": boolean,
    "server.shutdownTimeout": text,
    "server.securityResponseHeaders.disableEmbedding": boolean,
    "elasticsearch.hosts": array,
    "elasticsearch.serviceAccountToken": text,
    "elasticsearch.username": user,
    "elasticsearch.password": text,
    "elasticsearch.ssl.certificateAuthorities": array,
    "elasticsearch.ssl.verificationMode": text,
    "elasticsearch.requestTimeout": number,
    "elasticsearch.requestHeadersWhitelist": array,
    "xpack.encryptedSavedObjects.encryptionKey": long_key,
    "xpack.security.encryptionKey": long_key,
    "xpack.reporting.encryptionKey": long_key,
    "xpack.security.secureCookies": boolean,
    "xpack.security.sameSiteCookies": text,
    "xpack.security.session.idleTimeout": text,
    "xpack.security.session.lifespan": text,
    "xpack.security.authc.selector.enabled": boolean,
    "xpack.fleet.isAirGapped": boolean,
    "telemetry.optIn": boolean,
    "telemetry.allowChangingOptInStatus": boolean,
    "newsfeed.enabled": boolean,
    "map.includeElasticMapsService": boolean,
    "map.tilemap.url": text,
    "map.tilemap.options.attribution": text,
    "pid.file": text,
    "path.data": text,
    "i18n.locale": text,
    "logging.root.appenders": array,
    "logging.root.level": text,
}
FAMILIES = (
    re.compile(r"logging\.appenders\.[\w-]+\.(type|fileName|layout\.type|layout\.pattern)"),
    re.compile(
        r"xpack\.security\.authc\.providers\.(basic|anonymous)\.[\w-]+\.(order|description|hint|icon)"
    ),
    re.compile(
        r"xpack\.security\.authc\.providers\.anonymous\.[\w-]+\.credentials\.(username|password|apiKey)"
    ),
)


def refuse(key: str, why: str) -> Invalid:
    plugin, _, rest = key.rpartition(".")
    return Invalid(f"[config validation of [{plugin}].{rest}]: {why}")


def validate(flat: dict[str, Any]) -> None:
    """Raises Invalid for the first thing that Kibana would not take."""
    for key, value in flat.items():
        known = SCHEMA.get(key)
        if known is None and not any(family.fullmatch(key) for family in FAMILIES):
            raise refuse(key, "definition for this key is missing")
        if known and (why := known(value)):
            raise refuse(key, why)
    validate_server(flat)
    validate_elasticsearch(flat)
    validate_providers(flat)


def validate_server(flat: dict[str, Any]) -> None:
    base = flat.get("server.basePath", "")
    if flat.get("server.rewriteBasePath") and not base:
        raise refuse(
            "server.rewriteBasePath", "cannot use [rewriteBasePath] when [basePath] is not specified"
        )
    public = flat.get("server.publicBaseUrl")
    if public is not None:
        parts = urlsplit(public)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise refuse("server.publicBaseUrl", "expected URI with scheme [http|https].")
        if parts.path != base:
            raise refuse("server.publicBaseUrl", f"must contain the [basePath]: {parts.path} !== {base}")


def validate_elasticsearch(flat: dict[str, Any]) -> None:
    token, name = flat.get("elasticsearch.serviceAccountToken"), flat.get("elasticsearch.username")
    if token and name:
        raise refuse("elasticsearch.serviceAccountToken", 'cannot be specified when "username" is also set.')
    if name and "elasticsearch.password" not in flat:
        raise refuse("elasticsearch.password", 'must be specified when using "username".')
    for path in flat.get("elasticsearch.ssl.certificateAuthorities", []):
        if not os.access(path, os.R_OK):
            raise Invalid(f"EACCES or ENOENT: cannot open the certificate authority '{path}'")
    mode = flat.get("elasticsearch.ssl.verificationMode", "full")
    if mode not in ("none", "certificate", "full"):
        raise refuse("elasticsearch.ssl.verificationMode", "types that failed validation")


def providers(flat: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(type, name) -> its settings."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    prefix = "xpack.security.authc.providers."
    for key, value in flat.items():
        if key.startswith(prefix):
            kind, name, rest = key[len(prefix) :].split(".", 2)
            found.setdefault((kind, name), {})[rest] = value
    return found or {("basic", "basic"): {"order": 0}}


def validate_providers(flat: dict[str, Any]) -> None:
    found = providers(flat)
    orders = [settings.get("order") for settings in found.values()]
    if any(not isinstance(order, int) for order in orders):
        raise refuse("xpack.security.authc.providers", "[order]: expected value of type [number]")
    if len(set(orders)) < len(orders):
        raise refuse(
            "xpack.security.authc.providers", "Found multiple providers configured with the same order"
        )
    anonymous = [settings for (kind, _), settings in found.items() if kind == "anonymous"]
    if len(anonymous) > 1:
        raise refuse("xpack.security.authc.providers", 'Only one "anonymous" provider can be configured.')
    wanted = {"credentials.username", "credentials.password"}
    if anonymous and not wanted <= anonymous[0].keys() and "credentials.apiKey" not in anonymous[0]:
        raise refuse(
            "xpack.security.authc.providers.anonymous", "[credentials]: expected at least one defined value"
        )


def load(folder: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, "kibana.yml"), encoding="utf-8") as file:
            flat = parse(file.read())
    except OSError as error:
        raise Invalid(f"EACCES: {error}") from None
    validate(flat)
    return flat
