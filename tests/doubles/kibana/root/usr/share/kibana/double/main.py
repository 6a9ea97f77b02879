"""A DOUBLE of Kibana for knockmap's tests: its configuration, its logins and its saved objects, as strict as the real one.

It has no charts. Users, privileges and searches are those of the real Elasticsearch behind it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from typing import Any

import config
from elastic import Away, Elastic
from saved_objects import Store
from web import Handler

EXIT_CONFIG = 64
POLLS_BEFORE_READY = 3


class Kibana:
    """What all requests share."""

    def __init__(self, settings: dict[str, Any], version: str) -> None:
        self.settings, self.version = settings, version
        self.base = settings.get("server.basePath", "") if settings.get("server.rewriteBasePath") else ""
        self.elastic = Elastic(settings)
        self.store = Store(os.path.join(settings.get("path.data", "/var/lib/kibana"), "double-objects.json"))
        self.providers = config.providers(settings)
        self.sessions: dict[str, str] = {}  # of those who logged in by the form: cookie -> Authorization
        self.state, self.polls = "preboot", 0
        self.said = ""

    def log(self, text: str, level: str = "INFO") -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S")
        print(f"[{at}][{level:<5}][double] {text}", flush=True)
        files = [v for k, v in self.settings.items() if k.startswith("logging.") and k.endswith(".fileName")]
        for path in files:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"@timestamp": at, "log": {"level": level}, "message": text}) + "\n")

    def watch(self) -> None:
        """Elasticsearch comes and goes; Kibana is there only with it."""
        while True:
            problem = self.look()
            if problem and problem != self.said:
                self.log(problem, "ERROR")
            self.said = problem
            time.sleep(1)

    def look(self) -> str:
        """Empty if all is well; sets the state."""
        try:
            status, answer = self.elastic.call("GET", "/")
            if status != 200:
                words = f"security_exception: unable to authenticate ({status})"
                return self.lost(f"Unable to retrieve version information from Elasticsearch nodes. {words}")
            theirs, mine = (
                tuple(map(int, v.split(".")[:2])) for v in (answer["version"]["number"], self.version)
            )
            if theirs[0] != mine[0] or theirs < mine:
                nodes = f"v{answer['version']['number']} @ {self.elastic.host.netloc}"
                return self.lost(
                    f"This version of Kibana (v{self.version}) is incompatible with the following Elasticsearch nodes in your cluster: {nodes}"
                )
            if self.state == "preboot":
                self.elastic.register_privileges()
                self.log("http server running; Kibana is now available (this is a DOUBLE)")
            self.state = "available"
            return ""
        except Away as error:
            return self.lost(f"Unable to retrieve version information from Elasticsearch nodes. {error}")

    def lost(self, words: str) -> str:
        if self.state == "available":
            self.state = "unavailable"
        return words

    def preboot(self) -> bool:
        """Also where Elasticsearch is there at once, the first ones who ask are told to wait."""
        self.polls += 1
        return self.state == "preboot" or self.polls <= POLLS_BEFORE_READY


def installed_version() -> str:
    """The package's; the file is written when that is made."""
    with open(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "VERSION")) as file:
        return file.read().strip()


def main() -> int:
    if os.geteuid() == 0:
        print("Kibana should not be run as root.  Use --allow-root to continue.", file=sys.stderr)
        return 1
    try:
        settings = config.load(os.environ.get("KBN_PATH_CONF", "/etc/kibana"))
        kibana = Kibana(settings, installed_version())
    except (config.Invalid, OSError) as error:
        print(f"[FATAL][root] Reason: {error}", file=sys.stderr)
        print(f" FATAL  Error: {error}", file=sys.stderr)
        return EXIT_CONFIG
    kibana.log("This is a DOUBLE of Kibana, made for knockmap's tests. Kibana is starting")
    if path := settings.get("pid.file"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))
    address = settings.get("server.host", "localhost"), settings.get("server.port", 5601)
    try:
        server = ThreadingHTTPServer(address, type("Bound", (Handler,), {"kibana": kibana}))
    except OSError as error:
        print(f" FATAL  Error: listen EADDRINUSE: {address[0]}:{address[1]} {error}", file=sys.stderr)
        return 1
    threading.Thread(target=kibana.watch, daemon=True).start()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
