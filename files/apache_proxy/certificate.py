#!/usr/bin/python3 -IS
"""On the target: under which names Apache answers, and the certificate for them. What shall be says CONFIG.

check             succeed if names and certificate are as they shall be and far from their end
renew             make them so, for Apache to read
watch             renew, and let Apache read what changed; fail where a certificate that we do not make ourselves ends
                  soon (knockmap-certificate.timer)
show NAME         JSON: the page's address, by NAME if that is one of ours, and the fingerprint to compare
remove            remove what renew made
"""

from __future__ import annotations

import contextlib
import glob
import ipaddress
import json
import os
import re
import subprocess
import sys
import time

CONFIG = "/etc/knockmap/apache.json"
STATE = "/var/lib/knockmap/apache"
NAMES, PEM, OPERATORS = f"{STATE}/names.conf", f"{STATE}/self-signed.pem", f"{STATE}/certificate.pem"
SITES = "/etc/apache2/sites-enabled"
STAGED, GOT = f"{STATE}/md/staging/*/job.json", f"{STATE}/md/domains/*/pubcert.pem"
DAYS, RENEW_DAYS, WARN_DAYS = 90, 30, 14

REQUEST = """[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = {common}
[extensions]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
subjectAltName = {names}
"""


def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, input=stdin, check=False)


def must(failed: str, *argv: str, stdin: str = "") -> str:
    done = run(*argv, stdin=stdin)
    if done.returncode:
        raise SystemExit(f"{failed}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def put(path: str, text: str, mode: int) -> None:
    """Write beside and rename: Apache sees the former file or the new one, whole."""
    with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


# --- names ------------------------------------------------------------------------------------------------------


def names(config: dict[str, list[str] | str]) -> list[str]:
    """Every name and address, the one to redirect to first; "own" stands for those that the host has itself."""
    found: list[str] = []
    for name in config["names"]:
        found += own() if name == "own" else [plain(name)]
    return list(dict.fromkeys(found))


def own() -> list[str]:
    host = os.uname().nodename.lower()
    # Of /etc/hosts alone: a name service that does not answer must not change the certificate.
    lines = (line.split("#")[0].lower().split()[1:] for line in text_of("/etc/hosts").splitlines())
    known = [name for line in lines if host in line for name in line if "." in name]
    return [name for name in (*known, host) if is_name(name)] + addresses()


def addresses() -> list[str]:
    """Without those of link and loopback, and without IPv6 addresses that change every day for privacy."""
    shown = json.loads(run("ip", "-j", "address", "show", "scope", "global").stdout or "[]")
    passing = ("temporary", "deprecated", "tentative", "dadfailed")
    infos = [info for link in shown for info in link.get("addr_info", []) if "local" in info]
    return [info["local"] for info in infos if not any(info.get(word) for word in passing)]


def is_name(name: str) -> bool:
    return bool(re.fullmatch(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9])?", name))


def is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False


def plain(name: str) -> str:
    """As it stands in a certificate: addresses in their short form."""
    return str(ipaddress.ip_address(name)) if is_address(name) else name.lower()


def in_urls(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def names_conf(found: list[str]) -> str:
    """What both virtual hosts include. Only a name of ours is ever put into a redirect, never what a client says."""
    hosts = [in_urls(name) for name in found]
    wanted = "|".join(re.escape(host) for host in hosts)
    lines = ["# Written by knockmap (certificate.py): changes made here are lost.", f"ServerName {hosts[0]}"]
    lines += [f"ServerAlias {host}" for host in hosts[1:]]
    return "\n".join([*lines, f'SetEnvIfNoCase Host "^({wanted})(:[0-9]+)?$" KNOCKMAP_HOST=$1', ""])


# --- the certificate --------------------------------------------------------------------------------------------


def holds(path: str, found: list[str], days: int) -> bool:
    """True if a certificate is for exactly these names and addresses, and lasts so many days."""
    argv = [
        "openssl",
        "x509",
        "-in",
        path,
        "-noout",
        "-ext",
        "subjectAltName",
        "-checkend",
        str(days * 86400),
    ]
    shown = run(*argv)
    names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", shown.stdout)
    return shown.returncode == 0 and {plain(name) for name in names} == set(found)


def lasts(path: str, days: int) -> bool:
    return run("openssl", "x509", "-in", path, "-noout", "-checkend", str(days * 86400)).returncode == 0


def make(found: list[str]) -> None:
    """A new key and a certificate for it, in one file, so that one never stands there without the other."""
    subject = ",".join(f"IP:{name}" if is_address(name) else f"DNS:{name}" for name in found)
    request = REQUEST.format(common=found[0][:64], names=subject)
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-sha256", "-days", str(DAYS), "-config", "/dev/stdin", "-keyout", "-"]
    put(PEM, must("openssl made no certificate", *argv, stdin=request), 0o600)


def good(config: dict[str, list[str] | str], found: list[str]) -> bool:
    return config["certificate"] != "self-signed" or holds(PEM, found, RENEW_DAYS)


def renew() -> bool:
    """True if something changed."""
    with open(CONFIG, encoding="utf-8") as file:
        config = json.load(file)
    found = names(config)
    changed = False
    if text_of(NAMES) != names_conf(found):
        put(NAMES, names_conf(found), 0o644)
        changed = True
    if not good(config, found):
        make(found)
        changed = True
    return changed


def staged() -> bool:
    """True if mod_md got a certificate that Apache has not taken up: it does when it reads its configuration again."""
    return any(json.loads(text_of(job) or "{}").get("finished") for job in glob.glob(STAGED))


def wait(seconds: float, wanted: bool) -> None:
    """mod_md writes a certificate shortly before it is done with it, and takes it up shortly after a reload."""
    deadline = time.monotonic() + seconds
    while glob.glob(STAGED) and staged() != wanted and time.monotonic() < deadline:
        time.sleep(0.2)


def check() -> bool:
    try:
        with open(CONFIG, encoding="utf-8") as file:
            config = json.load(file)
    except FileNotFoundError:
        return False
    found = names(config)
    return text_of(NAMES) == names_conf(found) and good(config, found)


def watch() -> None:
    wait(20, wanted=True)
    changed = renew()
    if (changed or staged()) and not run("systemctl", "is-active", "-q", "apache2").returncode:
        must("Apache did not take up the new certificate", "systemctl", "reload", "apache2")
        wait(20, wanted=False)
    with open(CONFIG, encoding="utf-8") as file:
        kind = json.load(file)["certificate"]
    if kind == "files" and not lasts(OPERATORS, WARN_DAYS):
        raise SystemExit(
            f"the certificate of apache_certificate_file ends within {WARN_DAYS} days: get a new one and run "
            "`fab -H … deploy`"
        )
    got = glob.glob(GOT)
    if kind == "acme" and not got:
        raise SystemExit(
            "mod_md has no certificate yet: /var/log/apache2/error.log says why, if this stays so"
        )
    if kind == "acme" and not all(lasts(path, WARN_DAYS) for path in got):
        raise SystemExit(
            f"the certificate ends within {WARN_DAYS} days and mod_md could not renew it: /var/log/apache2/error.log "
            "says why"
        )


def show(name: str) -> None:
    with open(CONFIG, encoding="utf-8") as file:
        config = json.load(file)
    found = names(config)
    host = plain(name) if plain(name) in found else found[0]
    # By an address a browser sends no name before TLS, and Apache would be at another site already.
    if set(os.listdir(SITES)) - {"zz-knockmap.conf"} and is_address(host):
        host = next((other for other in found if not is_address(other)), host)
    shown = run("openssl", "x509", "-in", PEM, "-noout", "-fingerprint", "-sha256").stdout
    fingerprint = shown.strip().rpartition("=")[2] if config["certificate"] == "self-signed" else ""
    print(
        json.dumps(
            {"url": f"https://{in_urls(host)}{config.get('page', '/map/')}", "fingerprint": fingerprint}
        )
    )


def remove() -> None:
    for path in (NAMES, PEM):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def main() -> None:
    if sys.argv[1:] == ["check"]:
        sys.exit(0 if check() else 1)
    if sys.argv[1] == "show":
        show(sys.argv[2])
        return
    {"renew": renew, "watch": watch, "remove": remove}[sys.argv[1]]()


if __name__ == "__main__":
    main()
