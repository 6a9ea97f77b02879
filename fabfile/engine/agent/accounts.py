"""System users."""

from __future__ import annotations

import pwd
from typing import Any

from .item import Item
from .machine import must
from .paths import look
from .wire import Failure, Have


class User(Item):
    def wanted(self) -> Have:
        return {"user": self.want["user"], "home": self.want["home"]}

    def observe(self) -> Have:
        try:
            entry = pwd.getpwnam(self.want["user"])
        except KeyError:
            return {"user": None, "home": self.want["home"]}
        return {"user": entry.pw_name, "home": entry.pw_dir}

    def apply(self, have: Have) -> None:
        if have["user"]:
            raise Failure(
                f"a user {self.want['user']} exists with home {have['home']}; it is not ours, so it stays as it is"
            )
        argv = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", self.want["home"]]
        must(
            f"user {self.want['user']} was not made", *argv, "--shell", "/usr/sbin/nologin", self.want["user"]
        )

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        user = self.want["user"]
        owned = [
            entry["want"]["path"]
            for entry in self.journal.entries.values()
            if "path" in entry["want"] and user in (entry["after"].get("owner"), entry["after"].get("group"))
        ]
        if any(look(path)["type"] != "absent" for path in owned):
            return "kept, since it owns what was kept"
        if not before["user"] and self.observe()["user"]:
            must(f"user {user} was not removed", "userdel", user)
        return ""
