"""HTTP as from outside, with the TLS that is there: what a test asks, and what it was answered."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import time
from dataclasses import dataclass, field

from box import Box


@dataclass(frozen=True)
class Answer:
    """`headers` by their names in lower case; a header that came twice is there twice, joined by commas."""

    status: int
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def basic(login: tuple[str, str] | str) -> str:
    text = login if isinstance(login, str) else ":".join(login)
    return "Basic " + base64.b64encode(text.encode()).decode()


class Web:
    """One connection to a box, kept alive; over TLS (with `name` as its SNI) unless it is port 80."""

    def __init__(self, box: Box, port: int = 443, name: str = "") -> None:
        if port == 80:
            self.connection = http.client.HTTPConnection(box.address, timeout=10)
        else:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.connection = http.client.HTTPSConnection(name or box.address, timeout=10, context=context)
            # Whatever the name, the box is meant.
            self.connection._create_connection = lambda to, *rest: socket.create_connection(  # type: ignore[attr-defined]
                (box.address, 443), *rest
            )

    def ask(
        self, path: str, login: tuple[str, str] | str = "", method: str = "GET", **headers: str
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if login:
            sent["Authorization"] = basic(login)
        begun = time.perf_counter()
        self.connection.request(method, path, headers=sent)
        response = self.connection.getresponse()
        body = response.read()
        seconds = time.perf_counter() - begun
        found: dict[str, str] = {}
        for name, value in response.getheaders():
            key = name.lower()
            found[key] = f"{found[key]}, {value}" if key in found else value
        return Answer(response.status, body.decode(errors="replace"), found, seconds)


def ask(
    box: Box,
    path: str,
    login: tuple[str, str] | str = "",
    port: int = 443,
    method: str = "GET",
    name: str = "",
    **headers: str,
) -> Answer:
    """One question over a connection of its own; `name` is what a browser has in its address bar."""
    web = Web(box, port, name)
    try:
        return web.ask(path, login, method, **headers)
    finally:
        web.connection.close()
