"""The output elasticsearch: to a data stream, over TLS, with an API key.

The sequence of requests is upstream's: HEAD /, GET / (is it Elasticsearch?), GET /_license, then bulk requests. A bulk
that the server is too busy for (429, 5xx, 413) or that does not get through is tried again until it is done or we are to stop.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import logging
import re
import ssl
import threading
from typing import Any, ClassVar
from urllib.parse import urlsplit

from . import ConfigurationError, NotDoubled
from .event import Event
from .options import Option, Options
from .plugins import Output
from .queues import DeadLetters

LOG = logging.getLogger("logstash.outputs.elasticsearch")
SHARED = {
    "user",
    "password",
    "api_key",
    "cloud_auth",
    "document_id",
    "path",
    "bulk_path",
    "parameters",
    "hosts",
    "cloud_id",
}
ALLOWED = re.compile(
    r"ssl_.*|ca_trusted_fingerprint|sniffing.*|proxy|timeout|failure_type.*|silence_.*|pool_.*|healthcheck_path"
)
LATER = re.compile(
    r"resurrect_delay|validate_.*|http_compression|compression_level|custom_headers|retry_.*|dlq_.*|drop_.*|id|codec"
)
DATASET = re.compile(r"[^\\/*?\"<>| ,#:A-Z-]{1,100}")
AGAIN = (429, 502, 503, 504, 500, 413)


class Stopped(Exception):
    """We were told to stop in the middle of trying; what was not acknowledged stays in the queue."""


class Elasticsearch(Output):
    name = "elasticsearch"
    options: ClassVar[Options] = {
        "hosts": Option("uri", ["//127.0.0.1"], listed=True),
        "cloud_id": Option(doubled=False),
        "api_key": Option("password"),
        "user": Option(),
        "password": Option("password"),
        "cloud_auth": Option("password"),
        "ssl_enabled": Option("boolean"),
        "ssl_certificate_authorities": Option("path", [], listed=True),
        "ssl_verification_mode": Option(default="full", choices=("full", "none")),
        "ssl_supported_protocols": Option(
            default=[], choices=("TLSv1.1", "TLSv1.2", "TLSv1.3"), listed=True, doubled=False
        ),
        "ca_trusted_fingerprint": Option(doubled=False),
        "data_stream": Option(choices=("true", "false", "auto")),
        "data_stream_type": Option(default="logs", choices=("logs", "metrics", "synthetics", "traces")),
        "data_stream_dataset": Option(default="generic"),
        "data_stream_namespace": Option(default="default"),
        "data_stream_sync_fields": Option("boolean", True),
        "data_stream_auto_routing": Option("boolean", True),
        "document_id": Option(),
        "silence_errors_in_log": Option("array", []),
        "compression_level": Option("number", 1, choices=tuple(range(10))),
        "timeout": Option("number", 60),
        "retry_initial_interval": Option("number", 2),
        "retry_max_interval": Option("number", 64),
        "action": Option(),
        "index": Option(),
        "routing": Option(doubled=False),
        "pipeline": Option(doubled=False),
        "manage_template": Option("boolean", True),
        "template": Option("path"),
        "template_name": Option(),
        "template_overwrite": Option("boolean", False),
        "template_api": Option(default="auto", choices=("auto", "legacy", "composable")),
        "ilm_enabled": Option(default="auto", choices=("true", "false", "auto")),
        "ilm_rollover_alias": Option(),
        "ilm_pattern": Option(default="{now/d}-000001"),
        "ilm_policy": Option(default="logstash-policy"),
        "document_type": Option(),
        "ecs_compatibility": Option(choices=("disabled", "v1", "v8"), doubled=False),
        "ssl": Option(obsolete="Set 'ssl_enabled' instead."),
        "ssl_certificate_verification": Option(obsolete="Set 'ssl_verification_mode' instead."),
        "cacert": Option(obsolete="Set 'ssl_certificate_authorities' instead."),
        "truststore": Option(obsolete="Set 'ssl_truststore_path' instead."),
        "keystore": Option(obsolete="Set 'ssl_keystore_path' instead."),
        "truststore_password": Option(obsolete="Use 'ssl_truststore_password' instead."),
        "keystore_password": Option(obsolete="Set 'ssl_keystore_password' instead."),
    }
    dead_letters: DeadLetters | None = None
    connection: http.client.HTTPConnection | None = None

    def register(self) -> None:
        self.stopping = threading.Event()
        self.alive, self.at = False, 0
        self.refuse_stream()
        self.addresses = [urlsplit(uri) for uri in self.settings["hosts"]]
        self.tls = self.settings["ssl_enabled"] or any(uri.scheme == "https" for uri in self.addresses)
        self.refuse_authentication()
        self.stream = "-".join(
            self.settings[f"data_stream_{part}"] for part in ("type", "dataset", "namespace")
        )
        self.context = self.tls_context() if self.tls else None

    def refuse_stream(self) -> None:
        """Raises ConfigurationError for settings that contradict `data_stream`."""
        given = self.node.settings
        if given.get("data_stream") not in ("true", True):
            if streams := [name for name in given if name.startswith("data_stream_")]:
                raise ConfigurationError(
                    "Ambiguous configuration; data stream settings must not be present when data streams are disabled: "
                    f"{streams}"
                )
            raise NotDoubled("an output elasticsearch without data_stream => true")
        fitting = {"action": "create", "manage_template": "false", "data_stream": "true"}
        bad = [
            name
            for name, value in given.items()
            if not (
                name in SHARED
                or ALLOWED.fullmatch(name)
                or LATER.fullmatch(name)
                or name.startswith("data_stream_")
            )
            and str(value).lower() != fitting.get(name)
        ]
        if bad:
            raise ConfigurationError(f"Invalid data stream configuration: {bad}")
        if not DATASET.fullmatch(self.settings["data_stream_dataset"]):
            raise self.refuse(f"Invalid data_stream_dataset: {self.settings['data_stream_dataset']!r}")

    def refuse_authentication(self) -> None:
        ways = [name for name in ("user", "api_key", "cloud_auth") if self.settings[name]]
        if len(ways) > 1:
            raise ConfigurationError(
                "Multiple authentication options are specified, please only use one of user/password, cloud_auth or api_key"
            )
        if ways == ["api_key"] and not self.tls:
            raise ConfigurationError(
                "Using api_key authentication requires SSL/TLS secured communication using the `ssl_enabled => true` option"
            )
        if ways in (["user"], ["cloud_auth"]):
            raise NotDoubled(f"authentication by {ways[0]}")
        self.headers: dict[str, str] = {}
        if key := self.settings["api_key"]:
            if not re.fullmatch(r"[^:]+:[^:]+", key):
                raise ConfigurationError(
                    "Invalid api_key format. Expected a base64-encoded key, an 'id:api_key' pair, or a Cloud API key (essu_ prefix)."
                )
            self.headers["Authorization"] = f"ApiKey {base64.b64encode(key.encode()).decode()}"

    def tls_context(self) -> ssl.SSLContext:
        authorities = self.settings["ssl_certificate_authorities"]
        if len(authorities) > 1:
            raise ConfigurationError(
                'Multiple values on "ssl_certificate_authorities" are not supported by this plugin'
            )
        try:
            context = ssl.create_default_context(cafile=authorities[0] if authorities else None)
        except (ssl.SSLError, OSError) as error:
            raise self.refuse(
                f"the certificate authority {authorities} could not be read: {error}"
            ) from error
        if self.settings["ssl_verification_mode"] == "none":
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def stop(self) -> None:
        self.stopping.set()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        """Status, headers, body. Raises OSError or HTTPException where nothing answers."""
        self.connection = self.connection or self.opened()
        try:
            self.connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = self.connection.getresponse()
            return answer.status, answer.headers, answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise

    def opened(self) -> http.client.HTTPConnection:
        address = self.addresses[self.at % len(self.addresses)]
        host, port = address.hostname or "127.0.0.1", address.port or 9200
        seconds = self.settings["timeout"]
        if self.context:
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=self.context)
        return http.client.HTTPConnection(host, port, timeout=seconds)

    def connect(self) -> None:
        """Raises OSError while it is not there, ConfigurationError where the credentials are wrong or it is another product."""
        status, _, _ = self.request("HEAD", "/")
        if status not in (200, 401, 403):
            raise OSError(f"HEAD / answered {status}")
        status, headers, body = self.request("GET", "/")
        if status in (401, 403):
            raise ConfigurationError(
                f"Could not read Elasticsearch. Please check the credentials ({status} on GET /)"
            )
        if status != 200:
            raise OSError(f"GET / answered {status}")
        if headers.get("X-elastic-product") != "Elasticsearch" or "number" not in json.loads(body).get(
            "version", {}
        ):
            raise ConfigurationError("Could not connect to a compatible version of Elasticsearch")
        status, _, body = self.request("GET", "/_license")
        if status != 200 or json.loads(body).get("license", {}).get("status") != "active":
            raise OSError(f"GET /_license answered {status}: no valid license")
        self.alive = True

    def receive(self, events: list[Event]) -> None:
        """Back when each event is stored, was there, or is refused for good. Raises Stopped."""
        interval = float(self.settings["retry_initial_interval"])
        while events:
            try:
                if not self.alive:
                    self.connect()
                events = self.bulk(events)
                if not events:
                    return
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                self.alive, self.at = False, self.at + 1
                LOG.error(
                    "Attempted to send a bulk request but Elasticsearch appears to be unreachable or down: %s",
                    error,
                )
            if self.stopping.wait(interval):
                raise Stopped
            interval = min(interval * 2, float(self.settings["retry_max_interval"]))

    def bulk(self, events: list[Event]) -> list[Event]:
        """Those to be tried again."""
        lines = b"".join(self.lines(event) for event in events)
        headers = {"Content-Type": "application/json"}
        if level := self.settings["compression_level"]:
            lines, headers = gzip.compress(lines, level), headers | {"Content-Encoding": "gzip"}
        status, _, body = self.request(
            "POST", "/_bulk?filter_path=errors,items.*.error,items.*.status", lines, headers
        )
        if status in AGAIN:
            LOG.error("Encountered a retryable error (will retry with exponential backoff) code=%s", status)
            return events
        if status != 200:
            LOG.error(
                "Encountered a retryable error (will retry with exponential backoff) code=%s %s",
                status,
                body[:300],
            )
            return events
        answer = json.loads(body)
        if not answer.get("errors"):
            return []
        outcomes = [item["create"] for item in answer["items"]]
        return [event for event, outcome in zip(events, outcomes, strict=True) if self.again(event, outcome)]

    def lines(self, event: Event) -> bytes:
        document = event.document()
        if self.settings["data_stream_sync_fields"]:
            parts = {part: self.settings[f"data_stream_{part}"] for part in ("type", "dataset", "namespace")}
            document["data_stream"] = parts | document.get("data_stream", {})
        identity = event.fill(self.settings["document_id"]) if self.settings["document_id"] else None
        action = {"create": {"_id": identity, "_index": self.stream}}
        return json.dumps(action).encode() + b"\n" + json.dumps(document).encode() + b"\n"

    def again(self, event: Event, outcome: dict[str, Any]) -> bool:
        """What became of one event: done, there already (409), refused for good (400, 404), or to be tried again."""
        status, error = outcome["status"], outcome.get("error", {})
        if status in (200, 201):
            return False
        if status == 409:
            if error.get("type") not in self.settings["silence_errors_in_log"]:
                LOG.warning("Failed action status=409 %s", error)
            return False
        if status not in (400, 404):
            LOG.error("retrying failed action status=%s %s", status, error)
            return True
        LOG.warning("Could not index event to Elasticsearch. status=%s %s", status, error)
        if self.dead_letters:
            self.dead_letters.write(event, self.name, json.dumps(outcome))
        return False
