#!/usr/bin/python3 -IS
"""On the target: who may log in at Apache. A password of ours is born here, an operator's own comes on stdin.

check NAME             succeed if NAME is a user whose password is known here, or an own one
ensure NAME            make it so
add NAME [--own]       a new user: with a generated password, or with the one on stdin
rotate NAME [--own]    another password for a user
remove NAME            a user less
show                   JSON: each user, with the password where it was generated
forget                 remove all users
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import grp
import json
import os
import re
import string
import subprocess
import sys

STATE, SECRETS = "/var/lib/knockmap/apache", "/var/lib/knockmap/secrets"
HASHES, CONF = f"{STATE}/users", f"{STATE}/users.conf"
# Every request pays for its hash again. A generated password (128 bits) needs no slow one, an own one does.
QUICK, SLOW = 5, 10
# Stands in for every name that is unknown: its hash takes as long as a user's, and nobody knows its password.
NOBODY = "-"
NOBODY_SAYS = base64.b64encode(f"{NOBODY}:{NOBODY}".encode()).decode()


def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, input=stdin, check=False)


def text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def put(path: str, text: str, mode: int, group: int = 0) -> None:
    with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchown(file.fileno(), 0, group)
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def secret_path(name: str) -> str:
    return f"{SECRETS}/web-{name}"


def read() -> dict[str, str]:
    """name -> hash."""
    lines = (line.split(":", 1) for line in text_of(HASHES).splitlines() if ":" in line)
    return {name: hash for name, hash in lines if name != NOBODY}


def hashed(name: str, password: str, cost: int) -> str:
    done = run("htpasswd", "-niB", "-C", str(cost), name, stdin=password)
    if done.returncode:
        raise SystemExit(f"htpasswd made no hash: {done.stderr.strip()}")
    return done.stdout.strip().split(":", 1)[1]


def fits(name: str) -> bool:
    """True if the generated password is the one that Apache knows."""
    return run("htpasswd", "-vi", HASHES, name, stdin=text_of(secret_path(name))).returncode == 0


def generate(name: str) -> str:
    password = base64.b32encode(os.urandom(16)).decode().rstrip("=").lower()
    os.makedirs(SECRETS, 0o700, exist_ok=True)
    put(secret_path(name), password, 0o600)
    return password


def forget_secret(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(secret_path(name))


def write(users: dict[str, str]) -> None:
    """All hashes at one cost, so that the time of an answer tells nobody's name; and Apache's list of names."""
    generated = {name: text_of(secret_path(name)) for name in users}
    cost = QUICK if all(generated.values()) else SLOW
    for name, password in generated.items():
        if password and not users[name].startswith(f"$2y${cost:02}$"):
            users[name] = hashed(name, password, cost)
    nobody = hashed(NOBODY, os.urandom(24).hex(), cost)
    lines = [f"{name}:{hash}\n" for name, hash in {**users, NOBODY: nobody}.items()]
    put(HASHES, "".join(lines), 0o640, grp.getgrnam("www-data").gr_gid)
    put(CONF, conf(users), 0o600)


def tell_apache() -> None:
    """Hashes are read for every request, but names stand in Apache's configuration."""
    if run("systemctl", "is-active", "-q", "apache2").returncode:
        return
    done = run("systemctl", "reload", "apache2")
    if done.returncode:
        raise SystemExit(f"Apache did not take up the users: {done.stderr.strip()}")


def conf(users: dict[str, str]) -> str:
    """Apache answers at once where a name is not in its file. So it never sees one: those become NOBODY's.

    Only an `early` header comes before the login, and it has no condition but a pattern of what clients send.
    """
    known = "|".join(in_base64(f"{name}:") for name in sorted(users)) or "(?!)"
    return (
        "# Written by knockmap (users.py): changes made here are lost.\n"
        f'RequestHeader edit Authorization "^(?!(?i:Basic) +(?:{known})).*$" "Basic {NOBODY_SAYS}" early\n'
    )


def in_base64(prefix: str) -> str:
    """The pattern of all Base64 whose content begins so: what is left of the last three bytes leaves some bits open."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    whole, rest = divmod(len(prefix), 3)
    fixed = base64.b64encode(prefix[: whole * 3].encode()).decode()
    if not rest:
        return re.escape(fixed)
    head = base64.b64encode(prefix[whole * 3 :].encode()).decode()
    first = alphabet.index(head[rest])
    return re.escape(fixed + head[:rest]) + f"[{alphabet[first : first + 4 ** (3 - rest)]}]"


def own_password() -> str:
    password = sys.stdin.readline().rstrip("\n")
    # bcrypt looks at 72 bytes; Apache and htpasswd cut the rest off without a word.
    if not 12 <= len(password.encode()) <= 72:
        raise SystemExit(
            "a password of your own must have 12 to 72 bytes: every guess costs a request, no more"
        )
    return password


def give_password(users: dict[str, str], name: str, own: bool) -> None:
    if own:
        users[name] = hashed(name, own_password(), SLOW)
        forget_secret(name)
    else:
        users[name] = hashed(name, generate(name), QUICK)
    write(users)


def check(name: str) -> bool:
    users = read()
    return name in users and text_of(CONF) == conf(users) and all(map(consistent, users))


def consistent(name: str) -> bool:
    return not os.path.exists(secret_path(name)) or fits(name)


def ensure(name: str) -> None:
    """A user that is there keeps the password; a generated one is the truth where the file says otherwise."""
    users = read()
    for known in [name, *users]:
        password = text_of(secret_path(known))
        if password and (known not in users or not fits(known)):
            users[known] = hashed(known, password, QUICK)
    if name not in users:
        users[name] = hashed(name, generate(name), QUICK)
    write(users)


def add(name: str, own: bool = False) -> None:
    users = read()
    if name in users:
        raise SystemExit(
            f"there is a user {name} already; `fab -H … user.rotate {name}` gives another password"
        )
    give_password(users, name, own)
    tell_apache()


def rotate(name: str, own: bool = False) -> None:
    users = read()
    if name not in users:
        raise SystemExit(f"there is no user {name}; there are: {', '.join(users)}")
    give_password(users, name, own)


def remove(name: str) -> None:
    users = read()
    if name not in users:
        raise SystemExit(f"there is no user {name}; there are: {', '.join(users)}")
    del users[name]
    forget_secret(name)
    write(users)
    tell_apache()


def show() -> None:
    print(json.dumps([{"user": name, "password": text_of(secret_path(name))} for name in read()]))


def forget() -> None:
    for name in read():
        forget_secret(name)
    for path in (HASHES, CONF):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    with contextlib.suppress(OSError):  # others' secrets stay
        os.rmdir(SECRETS)


def main() -> None:
    verb, *words = sys.argv[1:]
    if verb == "check":
        sys.exit(0 if check(words[0]) else 1)
    if verb in ("show", "forget"):
        return {"show": show, "forget": forget}[verb]()
    name, own = words[0], "--own" in words
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        raise SystemExit(f"{name!r} is no user's name: letters, digits, dot, hyphen and underscore are")
    fcntl.flock(os.open(STATE, os.O_RDONLY), fcntl.LOCK_EX)  # until this process ends
    if verb in ("add", "rotate"):
        return {"add": add, "rotate": rotate}[verb](name, own)
    return {"ensure": ensure, "remove": remove}[verb](name)


if __name__ == "__main__":
    main()
