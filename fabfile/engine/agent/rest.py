"""JSON documents behind an HTTPS API on loopback."""

from __future__ import annotations

import json
from typing import Any

from .facts import secret_path
from .item import Item
from .machine import at, read_text
from .wire import Failure, Have


class Rest(Item):
    """`document` holds the top-level keys that we set; None while there is no such document, or no API yet."""

    def wanted(self) -> Have:
        return {"document": self.want["document"]}

    def observe(self) -> Have:
        try:
            status, answer = self.ask("GET")
        except OSError:
            return {"document": None}  # what serves it does not run (yet)
        if status != 200:
            return {"document": None}
        for step in self.want["answer"]:
            answer = answer[step]
        return {"document": {key: answer.get(key) for key in self.want["document"]}}

    def apply(self, have: Have) -> None:
        self.set(self.want["document"])

    def set(self, document: Any) -> None:
        url = self.want["url"]
        try:
            status, answer = self.ask("PUT", document)
        except OSError as error:
            raise Failure(f"{url} was not set, since the API does not answer: {error}") from None
        if status >= 300:
            raise Failure(f"{url} was refused ({status})", json.dumps(answer, indent=1))

    def ask(self, method: str, document: Any = None) -> tuple[int, Any]:
        """(status, answer). Raises OSError where nobody answers."""
        import base64
        import http.client  # only targets with such documents pay for these
        import ssl

        login = f"{self.want['user']}:{read_text(secret_path(self.want['secret'])).strip()}"
        headers = {
            "Authorization": "Basic " + base64.b64encode(login.encode()).decode(),
            "Content-Type": "application/json",
        }
        trust = ssl.create_default_context(cafile=at(self.want["ca"]))
        connection = http.client.HTTPSConnection("127.0.0.1", self.want["port"], timeout=60, context=trust)
        body = None if document is None else json.dumps(document)
        try:
            connection.request(method, self.want["url"], body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"no JSON came back: {error}") from None
        finally:
            connection.close()

    def diff(self, have: Have) -> str:
        import difflib

        old, new = (
            json.dumps(document, indent=1, sort_keys=True).splitlines(keepends=True)
            for document in (have["document"], self.want["document"])
        )
        lines = difflib.unified_diff(old, new, self.want["url"], self.want["url"], n=2)
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines)

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return True if now["document"] is None else now == after

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        if self.observe()["document"] is None:
            return ""  # gone, or what served it is
        if before["document"] is not None:
            self.set(before["document"])
            return ""
        status, answer = self.ask("DELETE")
        # A template stays as long as there are data that follow it, and goes with the server that holds it.
        return "" if status < 300 or options["packages"] else f"kept: {json.dumps(answer)[:200]}"
