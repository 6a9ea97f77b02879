"""On the target: calls to Elasticsearch over loopback, by its own certificate authority, with the secrets kept here.

    status, answer = call("GET", "/_cluster/health")
    status, answer = call("GET", "/logs-iptables.ssh-*/_count", auth="reader")

Anything that has an answer is returned, whatever its status; what has none raises Unreachable.
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
import os
import ssl
from collections.abc import Mapping
from typing import Any

HOST, PORT = "127.0.0.1", 9200
CA = "/etc/elasticsearch/certs/http_ca.crt"
SECRETS = "/var/lib/knockmap/secrets"
DATA_STREAM, DATA_STREAMS = "logs-iptables.ssh-default", "logs-iptables.ssh-*"


class Unreachable(Exception):
    """Elasticsearch did not answer; the message says why in a few words."""


def secret_path(name: str) -> str:
    return f"{SECRETS}/{name}"


def secret(name: str) -> str:
    """A secret of the root-only folder; empty where it is not born yet."""
    try:
        with open(secret_path(name), encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def keep_secret(name: str, value: str) -> None:
    """Whole or not at all, for root alone."""
    os.makedirs(SECRETS, 0o700, exist_ok=True)
    path = secret_path(name)
    with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def basic(user: str, password: str) -> str:
    """The Authorization header of a user."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def api_key(id_and_key: str) -> str:
    """The Authorization header of an API key, given as `id:key`."""
    return "ApiKey " + base64.b64encode(id_and_key.encode()).decode()


def bearer(token: str) -> str:
    """The Authorization header of a service token."""
    return f"Bearer {token}"


def authorization(auth: str) -> str:
    """`elastic`, `reader`, `writer` and `keeper` stand for what the secrets hold; anything else is the header itself."""
    if auth == "elastic":
        return basic("elastic", secret("elastic_password"))
    if auth in ("reader", "writer", "keeper"):
        return api_key(secret(f"{auth}_key"))
    return auth


@functools.lru_cache
def context() -> ssl.SSLContext:
    """Trusts Elasticsearch's own authority and no other."""
    try:
        return ssl.create_default_context(cafile=CA)
    except FileNotFoundError:
        raise Unreachable(f"there is no {CA}: did Elasticsearch's auto-configuration run?") from None


def call(
    method: str,
    path: str,
    body: Any = None,
    *,
    auth: str = "elastic",
    headers: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> tuple[int, Any]:
    """One request: (status, the JSON document, or the text where it is none).

    `body` is sent as JSON; text and bytes go as they are, as the lines of a `_bulk`. Raises Unreachable.
    """
    raw = body.encode() if isinstance(body, str) else body
    lines = isinstance(raw, bytes)
    data = raw if lines or raw is None else json.dumps(raw).encode()
    kind = {"Content-Type": "application/x-ndjson" if lines else "application/json"} if data else {}
    sent = {"Authorization": authorization(auth), **kind, **(headers or {})}
    connection = http.client.HTTPSConnection(HOST, PORT, timeout=timeout, context=context())
    try:
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"https://{HOST}:{PORT} does not answer: {error}") from None
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


def reason(answer: Any) -> str:
    """Why a request was refused, in Elasticsearch's own words."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("reason", error) if isinstance(error, dict) else error)[:300]
