"""The API on loopback: what runs, and how much went through."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from . import VERSION, ConfigurationError
from .settings import Settings

Answers = dict[str, Callable[[], Any]]  # by path; what is said for "/" is in every answer


def serve(settings: Settings, answers: Answers) -> None:
    """In a thread, on the first free port of the range. Raises ConfigurationError if none is."""
    first, _, last = settings["api.http.port"].partition("-")
    host = settings["api.http.host"]
    for port in range(int(first), int(last or first) + 1):
        try:
            server = ThreadingHTTPServer((host, port), handler(settings, f"{host}:{port}", answers))
        except OSError:
            continue
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return
    raise ConfigurationError(
        f"Logstash tried to bind to port range {settings['api.http.port']}, but all the ports are already in use."
    )


def handler(settings: Settings, address: str, answers: Answers) -> type[BaseHTTPRequestHandler]:
    about = {
        "host": os.uname().nodename,
        "version": VERSION,
        "http_address": address,
        "id": settings["node.name"],
        "name": settings["node.name"],
        "ephemeral_id": str(os.getpid()),
        "snapshot": False,
        "build_flavor": "double",
        "pipeline": {
            "workers": settings["pipeline.workers"],
            "batch_size": settings["pipeline.batch.size"],
            "batch_delay": settings["pipeline.batch.delay"],
        },
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0].rstrip("/") or "/"
            found = answers.get(path)
            if found:
                self.answer(200, about | answers["/"]() | found())
            else:
                self.answer(404, {"path": path, "status": 404, "error": {"message": "Not Found"}})

        def answer(self, status: int, body: Any) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
