#!/usr/bin/python3 -IS
"""On the target: what sshd listens on, making it listen elsewhere, and the way back if nobody says that it worked.

facts PORT        JSON: who owns the port, which lines of the configuration speak of ports, who is on PORT
test              sshd accepts its configuration
listens PORT…     succeed if sshd listens on these ports alone, and the host's firewall lets the last one in
listen PORT…      make it so; the configuration must say so already
reload            let sshd read its configuration again, ports too
close PORT        take back what `listen` opened in the firewall
arm SECONDS       keep what is there now, and go back to it after SECONDS unless disarmed
disarm            it worked: no way back is needed
revert [--now]    go back, if armed and the time is over; run by knockmap-ssh-revert.timer, also after a reboot
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

DROP_INS = "/etc/ssh/sshd_config.d"
OURS = tuple(
    f"{DROP_INS}/{name}"
    for name in ("00-knockmap-port.conf", "10-knockmap-hardening.conf", "20-knockmap-keys.conf")
)
SOCKET = "/etc/systemd/system/ssh.socket.d/zz-knockmap.conf"
STATE = "/var/lib/knockmap/ssh"
ARMED = f"{STATE}/armed.json"
OPENED = f"{STATE}/opened.json"
LOADED = f"{STATE}/loaded"  # our files as sshd last read them
# The engine's journal goes back with the files: else it would take for ours what is not there any more.
KEPT = (*OURS, SOCKET, "/var/lib/knockmap/journal/journal.json", "/var/lib/knockmap/journal/pending.json")
TIMER = "knockmap-ssh-revert.timer"
GENERATOR = (
    "/lib/systemd/system-generators/sshd-socket-generator"  # Ubuntu 24.04: ssh.socket follows sshd_config
)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))


def say_no(text: str) -> None:
    raise SystemExit(text)


# --- what is there ----------------------------------------------------------------------------------------------


def owner() -> str:
    """Who holds the port now: "service", "socket", or "generator" (ssh.socket that follows sshd_config)."""
    if run("systemctl", "is-active", "-q", "ssh.socket").returncode:
        return "service"
    return "generator" if os.access(GENERATOR, os.X_OK) else "socket"


def listeners() -> dict[int, str]:
    """TCP port → the process that listens on it."""
    found = {}
    for line in run("ss", "-ltnpH").stdout.splitlines():
        fields = line.split()
        process = re.search(r'\(\("([^"]+)",pid=(\d+)', line)
        found[int(fields[3].rsplit(":", 1)[1])] = (
            "" if not process else "init" if process[2] == "1" else process[1]
        )
    return found


def sshd_ports() -> set[int]:
    """Ports on which sshd, or systemd for it, listens."""
    found = listeners()
    ports = {port for port, process in found.items() if process in ("sshd", "sshd-session")}
    by_systemd = {port for port, process in found.items() if process == "init"}
    if by_systemd:
        shown = run("systemctl", "show", "ssh.socket", "-P", "Listen").stdout
        by_systemd &= {int(port) for port in re.findall(r":(\d+) \(Stream\)", shown)}
    return ports | by_systemd


def effective() -> str:
    """sshd's configuration as it would be in force for a login of root. Ends with sshd's words if it is refused."""
    os.makedirs(
        "/run/sshd", exist_ok=True
    )  # a stopped ssh.service took it away, and then every answer is an error
    login = "user=root,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
    done = run("/usr/sbin/sshd", "-T", "-C", login)
    if done.returncode:
        say_no(f"sshd refuses its configuration: {done.stderr.strip()}")
    return done.stdout


def configured_ports() -> set[int]:
    """From the `listenaddress` lines: the `port` lines tell nothing where a ListenAddress has a port of its own."""
    return {int(port) for port in re.findall(r"^listenaddress \S*?:(\d+)$", effective(), re.M)}


def port_lines() -> list[str]:
    """Lines of others that decide about ports, as "file:number: text"."""
    files = ["/etc/ssh/sshd_config"]
    with contextlib.suppress(FileNotFoundError):
        files += sorted(f"{DROP_INS}/{name}" for name in os.listdir(DROP_INS) if name.endswith(".conf"))
    found = []
    for path in files:
        if path in OURS:
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if re.match(r"\s*(port|listenaddress)\b", line, re.I):
                    found.append(f"{path}:{number}: {line.strip()}")
    return found


def reads_drop_ins() -> bool:
    """True if the main file includes our folder before any Match block: a drop-in behind one would be dead."""
    with open("/etc/ssh/sshd_config", encoding="utf-8", errors="replace") as file:
        for line in file:
            if re.match(r"\s*match\b", line, re.I):
                return False
            if re.match(r"\s*include\s+/etc/ssh/sshd_config\.d/\*\.conf", line, re.I):
                return True
    return False


def facts(port: int) -> dict[str, object]:
    os.makedirs("/run/sshd", exist_ok=True)
    tested = run("/usr/sbin/sshd", "-t")
    enabled = {
        unit: run("systemctl", "is-enabled", unit).stdout.strip() for unit in ("ssh.service", "ssh.socket")
    }
    socket_unit = run("systemctl", "cat", "ssh.socket").stdout
    return {
        "owner": owner(),
        "enabled": [unit for unit, state in enabled.items() if state == "enabled"],
        "accept": bool(re.search(r"^Accept=(yes|true|1)", socket_unit, re.M | re.I)),
        "refused": tested.stderr.strip() if tested.returncode else "",
        "port_lines": port_lines(),
        "reads_drop_ins": reads_drop_ins(),
        "ports": sorted(sshd_ports()),
        "on_port": "" if port in sshd_ports() else listeners().get(port, "nobody"),
        "selinux": run("getenforce").stdout.strip(),
        "armed": armed_until(),
    }


# --- the firewall in front --------------------------------------------------------------------------------------


def ufw_wants(port: int) -> bool:
    """True if ufw is enabled and has no rule of its own for the port; by its files, since `ufw status` takes long."""
    if not re.search(r"^ENABLED=yes", text_of("/etc/ufw/ufw.conf"), re.M):
        return False
    return not re.search(rf"^### tuple ### allow tcp {port} ", text_of("/etc/ufw/user.rules"), re.M)


def firewalld_wants(port: int) -> bool:
    if (
        not os.path.exists("/usr/sbin/firewalld")
        or run("systemctl", "is-active", "-q", "firewalld.service").returncode
    ):
        return False
    return run("firewall-cmd", "-q", f"--query-port={port}/tcp").returncode != 0


def text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def open_firewall(port: int) -> None:
    """Let the port in where ufw or firewalld would not, and remember that it was us."""
    opened = json.loads(text_of(OPENED) or "[]")
    if ufw_wants(port):
        must("ufw", "allow", f"{port}/tcp")
        opened.append(["ufw", port])
    if firewalld_wants(port):
        must("firewall-cmd", "-q", f"--add-port={port}/tcp")
        must("firewall-cmd", "-q", "--permanent", f"--add-port={port}/tcp")
        opened.append(["firewalld", port])
    if opened:
        write(OPENED, json.dumps(opened))


def close_firewall(port: int) -> None:
    kept = []
    for firewall, which in json.loads(text_of(OPENED) or "[]"):
        if which != port:
            kept.append([firewall, which])
        elif firewall == "ufw":
            run("ufw", "delete", "allow", f"{port}/tcp")
        else:
            run("firewall-cmd", "-q", f"--remove-port={port}/tcp")
            run("firewall-cmd", "-q", "--permanent", f"--remove-port={port}/tcp")
    if kept:
        write(OPENED, json.dumps(kept))
    else:
        remove_state(OPENED)


def must(*argv: str) -> None:
    done = run(*argv)
    if done.returncode:
        say_no(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")


# --- listening --------------------------------------------------------------------------------------------------


def ours() -> str:
    """The text of all our drop-ins; empty if there is none."""
    return "".join(f"{path}\n{text_of(path)}" for path in OURS if os.path.exists(path))


def listens(ports: set[int], last: int) -> bool:
    """True if the ports are these alone, sshd has read our drop-ins as they are, and the firewall lets `last` in."""
    return (
        sshd_ports() == ports
        and text_of(LOADED) == ours()
        and not ufw_wants(last)
        and not firewalld_wants(last)
    )


def listen(ports: set[int], last: int) -> None:
    """Live sessions stay. Exit status and `ss` alone prove little, so every port must show sshd's banner in the end."""
    found = configured_ports()
    if found != ports:
        others = "; ".join(port_lines()) or "none, so /etc/ssh/sshd_config does not read its drop-ins"
        say_no(
            f"sshd is configured for {sorted(found)}, not {sorted(ports)}; other lines about ports: {others}"
        )
    open_firewall(last)
    reload()
    for _ in range(100):
        if sshd_ports() == ports and all(answers(port) for port in ports):
            return
        time.sleep(0.1)
    say_no(f"sshd listens on {sorted(sshd_ports())} after the change, not on {sorted(ports)}")


def reload() -> None:
    """Let the configuration take effect in the way that this owner of the port needs."""
    effective()
    run("systemctl", "daemon-reload")
    # Five starts in ten seconds are the limit; the sixth would end with no listener at all.
    run("systemctl", "reset-failed", "ssh.service", "ssh.socket")
    mode = owner()
    if mode == "service":
        active = not run("systemctl", "is-active", "-q", "ssh.service").returncode
        must("systemctl", "reload" if active else "start", "ssh.service")
    elif mode == "generator":
        must("systemctl", "restart", "ssh.socket")
    else:
        # Restarting the socket beside a running service is refused and loses the port; reloading the service, too.
        run("systemctl", "stop", "ssh.socket", "ssh.service")
        if run("systemctl", "start", "ssh.socket").returncode:
            must("systemctl", "start", "ssh.service")
    if ours():
        write(LOADED, ours())
    else:
        remove_state(LOADED)


def answers(port: int) -> bool:
    import socket  # here and not above: `listens` runs in every deploy, and has no need of it

    for address in ("127.0.0.1", "::1"):
        try:
            with socket.create_connection((address, port), 2) as connection:
                connection.settimeout(3)
                return connection.recv(4) == b"SSH-"
        except OSError:
            continue
    return False


# --- the way back -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Arming, disarming and reverting exclude each other."""
    os.makedirs(STATE, 0o700, exist_ok=True)
    with open(f"{STATE}/lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def armed_until() -> float:
    """The deadline (epoch), 0 if not armed."""
    return float(json.loads(text_of(ARMED) or '{"deadline": 0}')["deadline"])


def write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    os.sync()


def remove_state(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        if os.listdir(STATE) in ([], ["lock"]):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{STATE}/lock")
            os.rmdir(STATE)


def arm(seconds: int) -> None:
    until = armed_until()
    if until:
        left = max(0, round(until - time.time()))
        say_no(
            f"another move of the SSH port is under way on this machine; it ends or goes back within {left + 10} s"
        )
    import base64

    files: dict[str, tuple[str, int] | None] = {}
    for path in KEPT:
        try:
            with open(path, "rb") as file:
                files[path] = (base64.b64encode(file.read()).decode(), os.stat(path).st_mode & 0o7777)
        except FileNotFoundError:
            files[path] = None
    write(ARMED, json.dumps({"deadline": time.time() + seconds, "files": files}))
    must("systemctl", "daemon-reload")
    must("systemctl", "enable", "-q", "--now", TIMER)


def disarm() -> None:
    if not armed_until():
        say_no("the time for the proof was over, so the machine went back to what it was before; run again")
    os.unlink(ARMED)
    run("systemctl", "disable", "-q", "--now", TIMER)
    remove_state()


def revert(now: bool) -> None:
    """Put the files back and let sshd read them. Restores what was there when the move began, not the factory's."""
    until = armed_until()
    if not until or (time.time() < until and not now):
        return
    import base64

    for path, kept in json.loads(text_of(ARMED))["files"].items():
        if kept is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.knockmap-new", "wb") as file:
            file.write(base64.b64decode(kept[0]))
        os.chmod(f"{path}.knockmap-new", kept[1])
        os.rename(f"{path}.knockmap-new", path)
    reload()
    os.unlink(ARMED)
    run("systemctl", "disable", "-q", "--now", TIMER)
    print("went back to the former SSH configuration: no login over the new port was proven in time")


def main(argv: list[str]) -> None:
    verb, ports = argv[0] if argv else "", [int(word) for word in argv[1:] if word.isdigit()]
    if verb == "facts":
        print(json.dumps(facts(ports[0])))
    elif verb == "test":
        effective()
        must("/usr/sbin/sshd", "-t")
    elif verb == "listens":
        sys.exit(not listens(set(ports), ports[-1]))
    elif verb == "listen":
        listen(set(ports), ports[-1])
    elif verb == "reload":
        reload()
    elif verb == "close":
        close_firewall(ports[0])
    elif verb in ("arm", "disarm", "revert"):
        with alone():
            if verb == "arm":
                arm(ports[0])
            elif verb == "disarm":
                disarm()
            else:
                revert("--now" in argv)
        remove_state()
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
