"""On the target: calls to Kibana over loopback, and the key with which objects are imported, which lives for minutes."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

sys.path.insert(1, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "install_elk"))

import elasticsearch as elasticsearch

HOST, PORT, BASE = "127.0.0.1", 5601, "/kibana"
VIEWER = "knockmap_viewer"
APPLICATION = "kibana-.kibana"


class Refused(Exception):
    """Something was asked of Kibana or Elasticsearch and not done; the message says what and why."""


def viewer() -> str:
    """The Authorization header of the reading user."""
    return elasticsearch.basic(VIEWER, elasticsearch.secret("kibana_viewer_password"))


def call(
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    authorization: str = "",
    kind: str = "application/json",
    timeout: float = 120,
) -> tuple[int, str]:
    """One request: (status, text). Raises Refused if there is no answer."""
    headers = {"kbn-xsrf": "true", **({"Content-Type": kind} if body is not None else {})}
    if authorization:
        headers["Authorization"] = authorization
    connection = http.client.HTTPConnection(HOST, PORT, timeout=timeout)
    try:
        connection.request(method, BASE + path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"Kibana does not answer at http://{HOST}:{PORT}{BASE}: {error}") from None
    finally:
        connection.close()


def asked(status: int, answer: Any, what: str, *fine: int) -> Any:
    """The answer of Elasticsearch, if its status is 200 or one of these. Raises Refused."""
    if status == 200 or status in fine:
        return answer
    raise Refused(f"{what}: Elasticsearch answers {status}, {elasticsearch.reason(answer)}")


@contextmanager
def importer() -> Iterator[str]:
    """The Authorization header of a key that may write in Kibana's default space; it is void afterwards."""
    everything = {"application": APPLICATION, "privileges": ["all"], "resources": ["space:default"]}
    roles = {"knockmap_importer": {"cluster": [], "indices": [], "applications": [everything]}}
    wanted = {"name": "knockmap-importer", "expiration": "10m", "role_descriptors": roles}
    made = asked(*elasticsearch.call("POST", "/_security/api_key", wanted), "making the key for the import")
    try:
        yield elasticsearch.api_key(f"{made['id']}:{made['api_key']}")
    finally:
        elasticsearch.call("DELETE", "/_security/api_key", {"ids": [made["id"]]})


def run(program: str, verbs: dict[str, Any]) -> int:
    """Do what the command line says; what is refused becomes one line on stderr."""
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb not in verbs:
        print(f"usage: {program} {'|'.join(verbs)}", file=sys.stderr)
        return 2
    try:
        return int(verbs[verb]() or 0)
    except (Refused, elasticsearch.Unreachable) as error:
        print(f"{program} {verb}: {error}", file=sys.stderr)
        return 1


def document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}
