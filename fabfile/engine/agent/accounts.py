"""System users."""

from __future__ import annotations

import pwd
from typing import Any

from .item import Item
from .machine import must
from .paths import group_name, look
from .wire import Failure, Have


class User(Item):
    def wanted(self) -> Have:
        return {"home": self.want["home"], "group": self.want["user"]}

    def observe(self) -> Have:
        try:
            entry = pwd.getpwnam(self.want["user"])
        except KeyError:
            return {"home": None, "group": None}
        return {"home": entry.pw_dir, "group": group_name(entry.pw_gid)}

    def apply(self, have: Have) -> None:
        if have["home"] is not None:
            raise Failure(
                f"a user {self.want['user']} exists with home {have['home']}; it is not ours, so it stays as it is"
            )
        argv = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", self.want["home"]]
        must(
            f"user {self.want['user']} was not made", *argv, "--shell", "/usr/sbin/nologin", self.want["user"]
        )

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        mine = [
            entry
            for entry in self.journal.entries.values()
            if self.want["user"] in (entry["after"].get("owner"), entry["after"].get("group"))
        ]
        if any(look(entry["want"]["path"])["type"] != "absent" for entry in mine):
            return "kept, since it owns what was kept"
        if before["home"] is None and self.observe()["home"] is not None:
            must(f"user {self.want['user']} was not removed", "userdel", self.want["user"])
        return ""
