"""HTTP as from outside, with the TLS that is there: what a test asks, and what it was answered."""

from __future__ import annotations

import base64
import http.client
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
    """One connection to a box, kept alive; over TLS unless it is port 80."""

    def __init__(self, box: Box, port: int = 443) -> None:
        if port == 80:
            self.connection = http.client.HTTPConnection(box.address, timeout=10)
        else:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.connection = http.client.HTTPSConnection(box.address, timeout=10, context=context)

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
    **headers: str,
) -> Answer:
    """One question over a connection of its own."""
    web = Web(box, port)
    try:
        return web.ask(path, login, method, **headers)
    finally:
        web.connection.close()
