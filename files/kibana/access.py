#!/usr/bin/python3 -Bs
"""On the target: who Kibana is to Elasticsearch (a service token), and who its visitors are (a user that reads).

access.py check     exit 0 if token, role and user are as they shall be
access.py ensure    make them so
access.py rotate    a new token and a new password for the viewers; Kibana wants to be started anew with them
access.py remove    for undo
"""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

import kibana_api
from kibana_api import APPLICATION, VIEWER, Refused, asked, elasticsearch

TOKEN = "kibana_token"  # noqa: S105 - the name of the file
TOKEN_PATH = "/_security/service/elastic/kibana/credential/token/knockmap"  # noqa: S105
ROLE: dict[str, Any] = {
    "cluster": [],
    "indices": [
        {
            "names": [elasticsearch.DATA_STREAMS, "knockmap-countries"],
            "privileges": ["read", "view_index_metadata"],
            "allow_restricted_indices": False,
        }
    ],
    "applications": [{"application": APPLICATION, "privileges": ["read"], "resources": ["space:default"]}],
    "run_as": [],
}


def token_works() -> bool:
    """True if Elasticsearch takes the kept token for Kibana's own account."""
    value = elasticsearch.secret(TOKEN)
    if not value:
        return False
    status, who = elasticsearch.call("GET", "/_security/_authenticate", auth=elasticsearch.bearer(value))
    return status == 200 and who.get("username") == "elastic/kibana"


def role_is_right() -> bool:
    status, roles = elasticsearch.call("GET", f"/_security/role/{VIEWER}")
    role = asked(status, roles, "reading the role", 404).get(VIEWER, {})
    return all(role.get(key) == value for key, value in ROLE.items())


def user_is_right() -> bool:
    """True if the viewer can log in by the kept password and has its one role."""
    status, who = elasticsearch.call("GET", "/_security/_authenticate", auth=kibana_api.viewer())
    return status == 200 and who.get("roles") == [VIEWER]


def check() -> int:
    return 0 if token_works() and role_is_right() and user_is_right() else 1


def make_token() -> None:
    """A token's value is shown once, so one that we do not know is replaced."""
    asked(*elasticsearch.call("DELETE", TOKEN_PATH), "removing Kibana's former token", 404)
    made = asked(*elasticsearch.call("POST", TOKEN_PATH), "making Kibana's token")
    elasticsearch.keep_secret(TOKEN, made["token"]["value"])


def ensure() -> None:
    if not token_works():
        make_token()
    if not role_is_right():
        asked(*elasticsearch.call("PUT", f"/_security/role/{VIEWER}", ROLE), "making the viewers' role")
    if not user_is_right():
        password = elasticsearch.secret("kibana_viewer_password")
        if not password:
            raise Refused("the viewer's password is not born yet; `fab -H … kibana` makes it")
        user = {"password": password, "roles": [VIEWER], "full_name": "Everybody behind Apache's login"}
        asked(*elasticsearch.call("POST", f"/_security/user/{VIEWER}", user), "making the viewer")


def rotate() -> None:
    """The former ones are refused at once, so Kibana follows right after."""
    elasticsearch.keep_secret("kibana_viewer_password", secrets.token_urlsafe(24))
    make_token()
    ensure()


def remove() -> None:
    """Where Elasticsearch is gone already, they are gone with it."""
    try:
        for path in (f"/_security/user/{VIEWER}", f"/_security/role/{VIEWER}", TOKEN_PATH):
            elasticsearch.call("DELETE", path)
    except elasticsearch.Unreachable as error:
        print(f"left in Elasticsearch: {error}", file=sys.stderr)
    if elasticsearch.secret(TOKEN):
        os.unlink(elasticsearch.secret_path(TOKEN))


if __name__ == "__main__":
    sys.exit(
        kibana_api.run("access.py", {"check": check, "ensure": ensure, "rotate": rotate, "remove": remove})
    )
