"""The real Elasticsearch behind this double: who somebody is, what he may do, and his searches."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

APPLICATION = "kibana-.kibana"
READS = ("get", "bulk_get", "find")
TYPES = ("index-pattern", "lens", "map", "search", "dashboard", "visualization")


class Away(Exception):
    """Elasticsearch gives no answer."""


class Elastic:
    def __init__(self, config: dict[str, Any]) -> None:
        self.host = urlsplit((config.get("elasticsearch.hosts") or ["http://localhost:9200"])[0])
        token, user = config.get("elasticsearch.serviceAccountToken"), config.get("elasticsearch.username")
        self.own = (
            f"Bearer {token}" if token else basic(user, config["elasticsearch.password"]) if user else ""
        )
        self.tls: ssl.SSLContext | None = None
        if self.host.scheme == "https":
            self.tls = ssl.create_default_context()
            for path in config.get("elasticsearch.ssl.certificateAuthorities", []):
                self.tls.load_verify_locations(path)
            mode = config.get("elasticsearch.ssl.verificationMode", "full")
            self.tls.check_hostname = mode == "full"
            self.tls.verify_mode = ssl.CERT_NONE if mode == "none" else ssl.CERT_REQUIRED

    def call(self, method: str, path: str, body: Any = None, authorization: str = "") -> tuple[int, Any]:
        """(status, document) as Elasticsearch answers. Raises Away."""
        connection = self.connection()
        headers = {"Authorization": authorization or self.own, "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            raw = response.read()
            if path == "/" and response.getheader("X-elastic-product") != "Elasticsearch":
                raise Away("the client noticed that the server is not Elasticsearch")
            return response.status, json.loads(raw)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Away(str(error)) from None
        finally:
            connection.close()

    def connection(self) -> http.client.HTTPConnection:
        host, port = self.host.hostname or "", self.host.port or 9200
        if self.tls:
            return http.client.HTTPSConnection(host, port, timeout=60, context=self.tls)
        return http.client.HTTPConnection(host, port, timeout=60)

    def known(self, authorization: str) -> dict[str, Any] | None:
        """Who that is, if Elasticsearch says so."""
        status, who = self.call("GET", "/_security/_authenticate", authorization=authorization)
        return who if status == 200 else None

    def may(self, authorization: str, *actions: str) -> bool:
        """True if that user has all these actions of Kibana in the default space."""
        asked = {"application": APPLICATION, "resources": ["space:default"], "privileges": list(actions)}
        body = {"application": [asked]}
        status, found = self.call("POST", "/_security/user/_has_privileges", body, authorization)
        return status == 200 and bool(found["has_all_requested"])

    def register_privileges(self) -> None:
        """What `all` and `read` mean is told to Elasticsearch by Kibana, with its own account."""
        read = ["login:", *(f"saved_object:{kind}/{verb}" for kind in TYPES for verb in READS)]
        meanings = {"all": ["login:", "saved_object:*", "ui:*"], "read": read}
        wanted = {
            name: {"application": APPLICATION, "name": name, "actions": actions, "metadata": {}}
            for name, actions in meanings.items()
        }
        status, answer = self.call("PUT", "/_security/privilege", {APPLICATION: wanted})
        if status != 200:
            raise Away(f"privileges were not registered: {status} {answer}")


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
