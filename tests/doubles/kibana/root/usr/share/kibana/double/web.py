"""The double's HTTP side: base path, logins, the header against forged requests, and the few routes that we use."""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import re
import secrets
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from elastic import Away, basic
from saved_objects import Bad, read_ndjson

if TYPE_CHECKING:
    from main import Kibana

CSP = (
    "script-src 'report-sample' 'self'; worker-src 'report-sample' 'self' blob:; "
    "style-src 'report-sample' 'self' 'unsafe-inline'"
)
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Kibana DOUBLE</title></head>
<body><h1>This is a double of Kibana, for tests</h1>{body}</body></html>"""
SEARCH = re.compile(r"/internal/search/(es|ese)")
UPDATE = re.compile(r"/api/saved_objects/([a-z-]+)/([\w-]+)")


class Handler(BaseHTTPRequestHandler):
    kibana: ClassVar[Kibana]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names that the library calls

    def log_message(self, format: str, *arguments: Any) -> None:
        pass  # Kibana logs no requests

    def send(
        self, status: int, body: Any, kind: str = "application/json; charset=utf-8", **headers: str
    ) -> None:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("kbn-name", "double")
        self.send_header("Content-Security-Policy", CSP)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def refuse(self, status: int, message: str, **more: Any) -> None:
        words = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
        self.send(
            status, {"statusCode": status, "error": words.get(status, "Error"), "message": message, **more}
        )

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.kibana.preboot():
            self.send(503, "Kibana server is not ready yet", "text/plain", Retry_After="30")
            return
        url = urlsplit(self.path)
        if not (url.path == self.kibana.base or url.path.startswith(f"{self.kibana.base}/")):
            self.refuse(404, "Not Found")
            return
        self.where, self.query = url.path[len(self.kibana.base) :] or "/", parse_qs(url.query)
        try:
            self.route()
        except Bad as bad:
            self.refuse(bad.status, bad.message, **bad.more)
        except Away as error:
            self.refuse(503, f"Elasticsearch is not there: {error}")

    def route(self) -> None:
        if self.where == "/api/status":
            level = self.kibana.state
            self.send(200 if level == "available" else 503, {"status": {"overall": {"level": level}}})
        elif self.where == "/login":
            self.send(200, PAGE.format(body="<p>The form for those who log in themselves</p>"), "text/html")
        elif self.where == "/internal/security/login":
            self.log_in()
        elif self.is_page():
            self.page()
        else:
            self.api()

    # --- who somebody is ---

    def is_page(self) -> bool:
        called = "kbn-xsrf" in self.headers or "kbn-version" in self.headers
        api = self.where.startswith(("/api/", "/internal/"))
        return self.command in ("GET", "HEAD") and not called and not api

    def anonymous(self) -> str:
        """The Authorization of the user that visitors are; empty without such a provider."""
        for (kind, _), settings in self.kibana.providers.items():
            if kind == "anonymous" and "credentials.username" in settings:
                return basic(settings["credentials.username"], settings["credentials.password"])
        return ""

    def form(self) -> str:
        """The name of the provider whose users log in themselves."""
        return next((name for kind, name in self.kibana.providers if kind == "basic"), "")

    def visitors_cookie(self) -> str:
        """It is good after a restart, too, as Kibana's is."""
        key = str(self.kibana.settings.get("xpack.security.encryptionKey", secrets.token_hex()))
        return hmac.new(key.encode(), self.anonymous().encode(), hashlib.sha256).hexdigest()

    def cookie(self) -> str:
        found = re.search(r"(?:^|;\s*)sid=([0-9a-f]+)", self.headers.get("Cookie") or "")
        return found[1] if found else ""

    def set_cookie(self, value: str) -> str:
        secure = "; Secure" if self.kibana.settings.get("xpack.security.secureCookies") else ""
        return f"sid={value}; Path={self.kibana.base or '/'}{secure}; HttpOnly"

    def authorization(self, starts_session: bool) -> str:
        """What goes along to Elasticsearch; empty for somebody unknown. Who brings a header is that user or nobody."""
        header = self.headers.get("Authorization")
        if header is not None:
            schemes = {"apikey", "bearer", *(("basic",) if self.form() or self.anonymous() else ())}
            fits = header.split(" ")[0].lower() in schemes
            return header if fits and self.kibana.elastic.known(header) else ""
        session = self.cookie()
        if session in self.kibana.sessions:
            return self.kibana.sessions[session]
        visitor = self.anonymous()
        if visitor and (starts_session or hmac.compare_digest(session, self.visitors_cookie())):
            return visitor if self.kibana.elastic.known(visitor) else ""
        return ""

    def log_in(self) -> None:
        """By the form."""
        asked = json.loads(self.body or b"{}")
        if "kbn-xsrf" not in self.headers and "kbn-version" not in self.headers:
            self.refuse(400, "Request must contain a kbn-xsrf header.")
            return
        given = basic(asked["params"]["username"], asked["params"]["password"])
        if asked.get("providerName") != self.form() or not self.kibana.elastic.known(given):
            self.refuse(401, "Unauthorized")
            return
        session = secrets.token_hex(32)
        self.kibana.sessions[session] = given
        self.send(200, {"location": f"{self.kibana.base}/"}, Set_Cookie=self.set_cookie(session))

    # --- pages ---

    def page(self) -> None:
        hint = self.query.get("auth_provider_hint", [""])[0]
        if hint and hint == self.form() and not self.cookie() and "Authorization" not in self.headers:
            self.send(302, "", "text/html", Location=f"{self.kibana.base}/login?next=%2F")
            return
        who = self.authorization(starts_session=True)
        if not who:
            known = "Authorization" in self.headers or self.anonymous()
            where = f"{self.kibana.base}/login?next=%2F"
            self.send(401, "Unauthorized", "text/plain") if known else self.send(302, "", Location=where)
        elif not self.kibana.elastic.may(who, "login:"):
            self.refuse(403, "Forbidden")
        elif self.where == "/":
            self.send(
                302, "", "text/html", Location=f"{self.kibana.base}/app/home", Set_Cookie=self.set_session()
            )
        elif self.where.startswith("/app/"):
            self.send(200, PAGE.format(body=self.dashboards()), "text/html", Set_Cookie=self.set_session())
        else:
            self.refuse(404, "Not Found")

    def set_session(self) -> str:
        return self.set_cookie(
            self.cookie() if self.cookie() in self.kibana.sessions else self.visitors_cookie()
        )

    def dashboards(self) -> str:
        """Their titles, and those of what is on them."""
        items, out = self.kibana.store.items, []
        for (kind, id), item in sorted(items.items()):
            if kind != "dashboard":
                continue
            shown = [items.get((ref["type"], ref["id"])) for ref in item["references"]]
            rows = "".join(
                f"<li>{html.escape(found['type'])}: {html.escape(found['attributes']['title'])}</li>"
                for found in shown
                if found
            )
            out.append(f'<h2 id="{id}">{html.escape(item["attributes"]["title"])}</h2><ul>{rows}</ul>')
        return "".join(out)

    # --- interfaces ---

    def api(self) -> None:
        who = self.authorization(starts_session=False)
        if not who:
            self.refuse(401, "Unauthorized")
            return
        if self.command not in ("GET", "HEAD") and not {"kbn-xsrf", "kbn-version"} & {
            k.lower() for k in self.headers
        }:
            self.refuse(400, "Request must contain a kbn-xsrf header.")
            return
        if self.where.startswith("/internal/") and "x-elastic-internal-origin" not in self.headers:
            exists = f"uri [{self.where}] with method [{self.command.lower()}] exists but is not available with the current configuration"
            self.refuse(400, exists)
            return
        if self.command == "POST" and self.where == "/api/saved_objects/_import":
            self.bring_in(who)
        elif self.command == "POST" and self.where == "/api/saved_objects/_export":
            self.export(who)
        elif self.command == "POST" and SEARCH.fullmatch(self.where):
            self.search(who)
        elif self.command == "PUT" and (found := UPDATE.fullmatch(self.where)):
            self.update(who, *found.groups())
        elif self.command == "DELETE" and (found := UPDATE.fullmatch(self.where)):
            self.allowed(who, "delete", {found[1]})
            self.kibana.store.delete(*found.groups())
            self.send(200, {})
        else:
            self.refuse(404, "Not Found")

    def allowed(self, who: str, verb: str, kinds: set[str]) -> None:
        if not self.kibana.elastic.may(who, *(f"saved_object:{kind}/{verb}" for kind in sorted(kinds))):
            raise Bad(403, f"Unable to {verb} {','.join(sorted(kinds))}")

    def bring_in(self, who: str) -> None:
        overwrite = self.query.get("overwrite", ["false"])[0] == "true"
        if overwrite and self.query.get("createNewCopies", ["false"])[0] == "true":
            raise Bad(400, "[request query]: cannot use [overwrite] with [createNewCopies]")
        items = read_ndjson(uploaded(self.headers.get("Content-Type") or "", self.body))
        self.allowed(who, "bulk_create", {str(item.get("type")) for item in items} or {"dashboard"})
        self.send(200, self.kibana.store.bring_in(items, overwrite))

    def export(self, who: str) -> None:
        asked = json.loads(self.body or b"{}")
        if extra := asked.keys() - {
            "objects",
            "type",
            "includeReferencesDeep",
            "excludeExportDetails",
            "search",
        }:
            raise Bad(400, f"[request body.{sorted(extra)[0]}]: definition for this key is missing")
        wanted = asked.get("objects") or [
            {"type": kind, "id": id} for kind, id in self.kibana.store.items if kind == asked.get("type")
        ]
        if not wanted:
            raise Bad(400, "[request body]: either `type` or `objects` are required.")
        self.allowed(who, "bulk_get", {item["type"] for item in wanted})
        found, missing = self.kibana.store.export(wanted, bool(asked.get("includeReferencesDeep")))
        details = {"exportedCount": len(found), "missingRefCount": len(missing), "missingReferences": missing}
        more = {"excludedObjects": [], "excludedObjectsCount": 0}
        lines = [*found, *([] if asked.get("excludeExportDetails") else [{**details, **more}])]
        self.send(200, "\n".join(map(json.dumps, lines)), "application/ndjson")

    def update(self, who: str, kind: str, id: str) -> None:
        self.allowed(who, "update", {kind})
        self.send(200, self.kibana.store.update(kind, id, json.loads(self.body)["attributes"]))

    def search(self, who: str) -> None:
        """What the page does for each panel: as the visitor's own user."""
        if self.headers.get("elastic-api-version") != "1":
            raise Bad(400, "Please specify a version via elastic-api-version header. Available versions: [1]")
        params = json.loads(self.body)["params"]
        path = f"/{params['index']}/_search?ignore_unavailable=true"
        status, found = self.kibana.elastic.call("POST", path, params.get("body", {}), who)
        if status != 200:
            self.refuse(status, found["error"]["type"], attributes={"error": found["error"]})
            return
        shards = found["_shards"]
        head = {"isPartial": False, "isRunning": False, "isRestored": False, "rawResponse": found}
        self.send(200, {**head, "total": shards["total"], "loaded": shards["successful"]})


def uploaded(kind: str, body: bytes) -> bytes:
    """The one file of a form. Raises Bad."""
    if not kind.startswith("multipart/form-data"):
        raise Bad(415, "Unsupported Media Type")
    message = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    for part in message.get_payload() if message.is_multipart() else []:
        if part.get_param("name", header="content-disposition") == "file":  # type: ignore[union-attr]
            file = part.get_filename() or ""  # type: ignore[union-attr]
            if not file.endswith(".ndjson"):
                raise Bad(400, f"Invalid file extension .{file.rpartition('.')[2]}")
            return bytes(part.get_payload(decode=True) or b"")  # type: ignore[union-attr]
    raise Bad(400, "[request body.file]: expected value of type [Stream] but got [undefined]")
