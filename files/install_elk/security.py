#!/usr/bin/python3 -Bs
"""On the target: who may do what in Elasticsearch. All secrets are born here and kept for root alone.

check     succeed if every account of ours is valid, and may do what it shall and no more
ensure    make it so; what is valid stays as it is
rotate    a new password and new keys; the former keys are good until `retire`
retire    make all of our keys invalid but those that are kept
remove    take our accounts away, and their secrets

The password that Elasticsearch's package prints while it is installed is never used: it stands in apt's terminal log.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from typing import Any

from elasticsearch import (
    DATA_STREAM,
    DATA_STREAMS,
    Unreachable,
    basic,
    call,
    keep_secret,
    reason,
    secret,
    secret_path,
)

RESET = "/usr/share/elasticsearch/bin/elasticsearch-reset-password"
PASSWORD = "elastic_password"  # noqa: S105 - a name
# What Logstash asks before its first bulk: which server this is, and for its licence.
WRITER = {
    "cluster": ["cluster:monitor/main", "cluster:monitor/xpack/license/get"],
    "indices": [{"names": [DATA_STREAM], "privileges": ["auto_configure", "create_doc"]}],
}
READER = {
    "cluster": ["monitor"],
    "indices": [{"names": [DATA_STREAMS], "privileges": ["read", "view_index_metadata"]}],
}
# The watch on the size: it looks, deletes indices and begins new ones, and sees no event.
KEEPER = {"cluster": [], "indices": [{"names": [DATA_STREAM], "privileges": ["manage"]}]}
KEYS: dict[str, dict[str, Any]] = {"writer_key": WRITER, "reader_key": READER, "keeper_key": KEEPER}


def key_name(name: str) -> str:
    return f"knockmap-{name.removesuffix('_key')}"


def ask(method: str, path: str, body: Any = None, auth: str = "elastic") -> Any:
    """An answer that must be a good one. A node that has just started may need a moment for its accounts."""
    for _ in range(30):
        status, answer = call(method, path, body, auth=auth)
        if status != 503:
            break
        time.sleep(2)
    if status >= 300:
        raise SystemExit(f"{method} {path} was refused ({status}): {reason(answer)}")
    return answer


def authenticates(auth: str) -> bool:
    return call("GET", "/_security/_authenticate", auth=auth)[0] == 200


def holds(wanted: Any, have: Any) -> bool:
    """True if `have` is `wanted`, with nothing more than what Elasticsearch adds empty."""
    if isinstance(wanted, dict):
        return (
            isinstance(have, dict)
            and all(holds(value, have.get(key)) for key, value in wanted.items())
            and not any(have[key] for key in have.keys() - wanted.keys() if key != "transient_metadata")
        )
    if isinstance(wanted, list) and isinstance(have, list):
        if all(isinstance(item, str) for item in wanted):
            return sorted(wanted) == sorted(have)
        return len(wanted) == len(have) and all(map(holds, wanted, have))
    return bool(wanted == have)


def valid(name: str) -> bool:
    """True if the key is there, lets in, and grants exactly what it shall."""
    id = secret(name).partition(":")[0]
    if not id or not authenticates(name.removesuffix("_key")):
        return False
    known = ask("GET", f"/_security/api_key?id={id}").get("api_keys", [])
    if not known or not holds({"knockmap": KEYS[name]}, known[0].get("role_descriptors")):
        return False
    may = {"cluster": KEYS[name]["cluster"], "index": KEYS[name]["indices"]}
    said = ask("POST", "/_security/user/_has_privileges", may, auth=name.removesuffix("_key"))
    return bool(said["has_all_requested"])


def check() -> bool:
    return bool(secret(PASSWORD)) and authenticates("elastic") and all(map(valid, KEYS))


def ensure() -> None:
    if not (secret(PASSWORD) and authenticates("elastic")):
        reset_password()
    for name in KEYS:
        if not valid(name):
            make_key(name)
    retire()


def reset_password() -> None:
    """By Elasticsearch's own tool, which needs no password; or by what a rotation that broke off left."""
    started = secret(f"{PASSWORD}.next")
    if started and authenticates(basic("elastic", started)):
        keep_secret(PASSWORD, started)
        return
    argv = [RESET, "-u", "elastic", "-b", "-s", "--url", "https://127.0.0.1:9200"]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    words = done.stdout.split()
    if done.returncode or not words:
        raise SystemExit(f"{RESET} made no password (exit {done.returncode}): {done.stderr.strip()[-400:]}")
    keep_secret(PASSWORD, words[-1])


def make_key(name: str) -> None:
    body = {
        "name": key_name(name),
        "role_descriptors": {"knockmap": KEYS[name]},
        "metadata": {"managed_by": "knockmap"},
    }
    made = ask("POST", "/_security/api_key", body)
    keep_secret(name, f"{made['id']}:{made['api_key']}")


def rotate() -> None:
    if not authenticates("elastic"):
        reset_password()
    password = secrets.token_urlsafe(24)
    keep_secret(f"{PASSWORD}.next", password)  # known also if we are killed between these two
    ask("POST", "/_security/user/elastic/_password", {"password": password})
    keep_secret(PASSWORD, password)
    os.unlink(secret_path(f"{PASSWORD}.next"))
    for name in KEYS:
        make_key(name)


def retire() -> None:
    kept = {secret(name).partition(":")[0] for name in KEYS}
    for name in KEYS:
        known = ask("GET", f"/_security/api_key?name={key_name(name)}&active_only=true")
        former = [key["id"] for key in known.get("api_keys", []) if key["id"] not in kept]
        if former:
            ask("DELETE", "/_security/api_key", {"ids": former})


def remove() -> None:
    """Elasticsearch itself may be gone already; then its keys are."""
    ids = [id for name in KEYS if (id := secret(name).partition(":")[0])]
    try:
        if ids and authenticates("elastic"):
            call("DELETE", "/_security/api_key", {"ids": ids})
    except Unreachable as error:
        print(f"the keys are left in Elasticsearch: {error}")
    for name in (PASSWORD, f"{PASSWORD}.next", *KEYS):
        if os.path.exists(secret_path(name)):
            os.unlink(secret_path(name))


def main() -> None:
    verbs = {"ensure": ensure, "rotate": rotate, "retire": retire, "remove": remove}
    try:
        if sys.argv[1] == "check":
            sys.exit(not check())
        verbs[sys.argv[1]]()
    except Unreachable as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
