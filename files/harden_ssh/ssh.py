#!/usr/bin/python3 -IS
"""On the target: what sshd listens on, making it listen elsewhere, and the way back if nobody says that it worked.

facts PORT        JSON: who owns the port, which lines of the configuration speak of ports, who is on PORT
test              the way back is armed, sshd accepts its configuration, and nothing overrules what our files say
listens PORT…     succeed if sshd listens on these ports alone, and the host's firewall lets the last one in
listen PORT…      make it so; the configuration must say so already
reload            let sshd read its configuration again, ports too
close PORT        take back what `listen` opened in the firewall
keep              leave in the firewall what `listen` opened, as if others had
arm SECONDS       keep what is there now, and go back to it after SECONDS unless disarmed
disarm            it worked: no way back is needed
disarmed          succeed if no way back is armed
revert [--now]    go back, if armed and the time is over; run by knockmap-ssh-revert.timer, also after a reboot
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

SSHD = "/usr/sbin/sshd"
SSHD_NAMES = {"sshd", "sshd-session"}
SEPARATION = "/run/sshd"
CONFIG = "/etc/ssh/sshd_config"
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
UFW, UFW_PROGRAM = "/etc/ufw", "/usr/sbin/ufw"
BOOT = "/proc/sys/kernel/random/boot_id"
JOURNAL = "/var/lib/knockmap/journal/journal.json"
TIMER = "knockmap-ssh-revert.timer"
RULES = "/usr/local/lib/knockmap/rules"  # of iptables_log, where that is deployed
GENERATOR = (
    "/lib/systemd/system-generators/sshd-socket-generator"  # Ubuntu 24.04: ssh.socket follows sshd_config
)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
        )
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


def listeners() -> dict[int, set[str]]:
    """TCP port → the processes that listen on it: on one family it may be another than on the other."""
    found: dict[int, set[str]] = {}
    # A process may have any name, with line ends in it, too.
    rows = re.finditer(r"^LISTEN +\d+ +\d+ +\S+:(\d+) (.*)", run("ss", "-ltnpH").stdout, re.M)
    for row in rows:
        processes = re.findall(r'"([^"]*)",pid=(\d+)', row[2])
        names = {who(*process) for process in processes}
        # A name with a quote in it could hide the process behind another's number.
        if not processes or {pid for _, pid in processes} != set(re.findall(r"pid=(\d+)", row[2])):
            names.add("somebody")
        found.setdefault(int(row[1]), set()).update(names)
    return found


def who(name: str, pid: str) -> str:
    if name in SSHD_NAMES and not is_sshd(pid):
        return "a session of ssh (a forward)"
    return "init" if pid == "1" else name


def is_sshd(pid: str) -> bool:
    """Whether it is sshd itself, which waits for logins, and neither a session that forwards a port nor another's program."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"[listener]" in file.read() and os.stat(f"/proc/{pid}").st_uid == 0
    except OSError:
        return False


def sshd_ports() -> set[int]:
    """Ports on which sshd, or systemd for it, listens, and nobody else."""
    found = listeners()
    ports = {port for port, names in found.items() if names <= SSHD_NAMES}
    by_systemd = {port for port, names in found.items() if "init" in names} - ports
    if by_systemd:
        shown = run("systemctl", "show", "ssh.socket", "-P", "Listen").stdout
        by_systemd &= {int(port) for port in re.findall(r":(\d+) \(Stream\)", shown)}
    return ports | by_systemd


def effective() -> str:
    """sshd's configuration as it would be in force for just anybody. Ends with sshd's words if it is refused."""
    # A stopped ssh.service took it away, and then every answer is an error.
    os.makedirs(SEPARATION, exist_ok=True)
    login = "user=nobody,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
    done = run(SSHD, "-T", "-C", login)
    if done.returncode:
        say_no(f"sshd refuses its configuration: {done.stderr.strip()}")
    return done.stdout


def configured_ports() -> set[int]:
    """From the `listenaddress` lines: the `port` lines tell nothing where a ListenAddress has a port of its own."""
    return {int(port) for port in re.findall(r"^listenaddress \S*?:(\d+)$", effective(), re.M)}


def overruled() -> list[str]:
    """What our files say and sshd does not do: for most options the first line counts, and it may be another's."""
    in_force = dict(line.lower().split(" ", 1) for line in effective().splitlines() if " " in line)
    said = [line.split(None, 1) for path in OURS for line in text_of(path).splitlines() if line[:1].isalpha()]
    return [
        f"{keyword} is {in_force[keyword.lower()]!r} ({'; '.join(lines_on(keyword)) or 'by its default'})"
        for keyword, value in said
        if keyword != "Port" and not holds(value.strip(), in_force.get(keyword.lower()))
    ]


def holds(said: str, in_force: str | None) -> bool:
    """True if the value in force is the one said; of a list that takes away (`-name*`), if all that is gone."""
    if in_force is None:
        return True
    if said.startswith("-"):
        names = in_force.split(",")
        return not any(fnmatch.filter(names, pattern) for pattern in said[1:].split(","))
    return in_force == said.lower().replace("prohibit-password", "without-password")


def lines_on(*keywords: str) -> list[str]:
    """Lines of others with one of these keywords, as "file:number: text"."""
    files = [CONFIG]
    with contextlib.suppress(FileNotFoundError):
        files += sorted(f"{DROP_INS}/{name}" for name in os.listdir(DROP_INS) if name.endswith(".conf"))
    found = []
    for path in files:
        if path in OURS:
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if re.match(rf"\s*({'|'.join(keywords)})\b", line, re.I):
                    found.append(f"{path}:{number}: {line.strip()}")
    return found


def reads_drop_ins() -> bool:
    """True if the main file includes our folder before any Match block: a drop-in behind one would be dead."""
    with open(CONFIG, encoding="utf-8", errors="replace") as file:
        for line in file:
            if re.match(r"\s*match\b", line, re.I):
                return False
            if re.match(r'\s*include[\s=]+"?(/etc/ssh/)?sshd_config\.d/\*(\.conf)?\b', line, re.I):
                return True
    return False


def facts(port: int) -> dict[str, object]:
    os.makedirs(SEPARATION, exist_ok=True)
    tested = run(SSHD, "-t")
    enabled = {
        unit: run("systemctl", "is-enabled", unit).stdout.strip() for unit in ("ssh.service", "ssh.socket")
    }
    socket_unit = run("systemctl", "cat", "ssh.socket").stdout
    return {
        "owner": owner(),
        "enabled": [unit for unit, state in enabled.items() if state == "enabled"],
        "accept": bool(re.search(r"^Accept=(yes|true|1)", socket_unit, re.M | re.I)),
        "refused": tested.stderr.strip() if tested.returncode else "",
        "port_lines": lines_on("port", "listenaddress"),
        "reads_drop_ins": reads_drop_ins(),
        "ports": sorted(sshd_ports()),
        "on_port": "" if port in sshd_ports() else " and ".join(sorted(listeners().get(port, {"nobody"}))),
        "lacks_ss": run("ss", "-V").returncode == 127,
        "selinux": run("getenforce").stdout.strip(),
    }


# --- the firewall in front --------------------------------------------------------------------------------------


def ufw_wants(port: int) -> bool:
    """True if ufw has no rule of its own for the port; by its files, since `ufw status` takes long.

    Also where it is not enabled: who enables it one day would shut himself out. Removed, it leaves its files behind.
    """
    if not os.access(UFW_PROGRAM, os.X_OK):
        return False
    # Allowing what is limited would undo the limit.
    rule = rf"^### tuple ### (allow|limit) (tcp|any) {port} "
    return not re.search(rule, text_of(f"{UFW}/user.rules"), re.M)


def firewalld_wants(port: int) -> bool:
    if (
        not os.path.exists("/usr/sbin/firewalld")
        or run("systemctl", "is-active", "-q", "firewalld.service").returncode
    ):
        return False
    if port == 22 and not run("firewall-cmd", "-q", "--query-service=ssh").returncode:
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
    found = opened()
    if ufw_wants(port):
        must("ufw", "allow", f"{port}/tcp")
        found.append(("ufw", port))
    if firewalld_wants(port):
        must("firewall-cmd", "-q", f"--add-port={port}/tcp")
        must("firewall-cmd", "-q", "--permanent", f"--add-port={port}/tcp")
        found.append(("firewalld", port))
    if found:
        write(OPENED, json.dumps(found))


def opened() -> list[tuple[str, int]]:
    """(firewall, port) that we let in."""
    return [(firewall, port) for firewall, port in json.loads(text_of(OPENED) or "[]")]


def close_firewall(port: int) -> None:
    kept = []
    for firewall, which in opened():
        if which != port:
            kept.append((firewall, which))
        elif firewall == "ufw":
            run("ufw", "delete", "allow", f"{port}/tcp")
        else:
            run("firewall-cmd", "-q", f"--remove-port={port}/tcp")
            run("firewall-cmd", "-q", "--permanent", f"--remove-port={port}/tcp")
    if kept:
        write(OPENED, json.dumps(kept))
    else:
        remove_state(OPENED)


def keep() -> None:
    """What was let in stays, as if others had; but a ufw that is not enabled never stood in sshd's way."""
    enabled = re.search(r"^ENABLED=yes", text_of(f"{UFW}/ufw.conf"), re.M)
    for firewall, port in opened():
        if firewall == "ufw" and not enabled:
            run("ufw", "delete", "allow", f"{port}/tcp")
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
    refuse_unarmed()
    found = configured_ports()
    if found != ports:
        others = (
            "; ".join(lines_on("port", "listenaddress"))
            or "none, so /etc/ssh/sshd_config does not read its drop-ins"
        )
        say_no(
            f"sshd is configured for {sorted(found)}, not {sorted(ports)}; other lines about ports: {others}"
        )
    open_firewall(last)
    reload()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if sshd_ports() == ports:
            stand_aside()
            if all(answers(port) for port in ports):
                return
        time.sleep(0.1)
    say_no(f"sshd listens on {sorted(sshd_ports())} after the change, not on {sorted(ports)}")


def stand_aside() -> None:
    """Where `knock_policy` stops what comes to port 22, our rules give way to an sshd there: now, not within 5 minutes."""
    if os.access(RULES, os.X_OK):
        run(RULES, "load")


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
    elif mode == "socket" or run("systemctl", "restart", "ssh.socket").returncode:
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
                # TCP wrappers (hosts.deny) may not let this machine itself in: sshd hangs up, and the login from outside proves it.
                return connection.recv(4) in (b"SSH-", b"")
        except OSError:
            continue
    return False


# --- the way back -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Arming, disarming and reverting exclude each other."""
    while (file := locked()) is None:
        pass
    with file:
        yield


def locked() -> IO[str] | None:
    """The lock, or None where whoever had it before us has removed it meanwhile: then it excludes nobody any more."""
    os.makedirs(STATE, 0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        file = open(f"{STATE}/lock", "w", encoding="ascii")  # noqa: SIM115 - it is let go of where it is closed
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
            return file
        file.close()
    return None


@contextlib.contextmanager
def while_no_agent_works() -> Iterator[None]:
    """Going back in the middle of a run would mix both; but a run that hangs must not stop it either."""
    fd = os.open("/root", os.O_RDONLY | os.O_DIRECTORY)  # where the engine's agent has its lock
    try:
        for _ in range(60):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(1)
        yield
    finally:
        os.close(fd)


def refuse_unarmed() -> None:
    """Nothing of a move may happen any more once the machine went back, or is about to."""
    if seconds_left() <= 0:
        say_no("the time for the proof is over, and the machine goes back to what it was before; run again")


def armed() -> dict[str, Any]:
    """What `arm` kept, empty if there is no way back."""
    return dict(json.loads(text_of(ARMED) or "{}"))


def seconds_left() -> float:
    """Until the machine goes back; 0 or less when it is time, or if not armed.

    Since NTP may set the clock in the middle, it counts only after a reboot, and never adds time.
    """
    state = armed()
    if not state:
        return 0
    if state["boot"] == text_of(BOOT):
        return float(state["monotonic"]) - time.monotonic()
    left = float(state["deadline"]) - time.time()
    return left if left <= state["seconds"] else 0


def write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        os.chmod(file.fileno(), 0o600)
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
    if armed():
        left = max(0, round(seconds_left()))
        say_no(
            f"another move of the SSH port is under way on this machine; it ends or goes back within {left + 10} s"
        )
    clocks = {"deadline": time.time() + seconds, "monotonic": time.monotonic() + seconds, "seconds": seconds}
    kept = {"files": copies(), "opened": opened(), "journal": move_in_journal()}
    write(ARMED, json.dumps({**clocks, "boot": text_of(BOOT), **kept}))
    try:
        must("systemctl", "daemon-reload")
        must("systemctl", "enable", "-q", "--now", TIMER)
    except SystemExit:
        os.unlink(ARMED)
        raise


def copies() -> dict[str, tuple[str, int] | None]:
    """Path → (content as base64, mode) of what a move may change, None where nothing is."""
    import base64

    files: dict[str, tuple[str, int] | None] = {}
    for path in (*OURS, SOCKET):
        try:
            with open(path, "rb") as file:
                files[path] = (base64.b64encode(file.read()).decode(), os.stat(path).st_mode & 0o7777)
        except FileNotFoundError:
            files[path] = None
    return files


def disarm() -> None:
    if not armed():
        say_no("the time for the proof was over, so the machine went back to what it was before; run again")
    left = {port for _, port in opened()} - sshd_ports()  # what a former move let in, where sshd is no longer
    os.unlink(ARMED)
    run("systemctl", "disable", "-q", "--now", TIMER)
    for port in left:
        close_firewall(port)
    remove_state()


def journal() -> dict[str, dict[str, object]]:
    """The engine's journal: what was there before us."""
    return dict(json.loads(text_of(JOURNAL) or "{}"))


def move_in_journal() -> dict[str, dict[str, object]]:
    return {id: entry for id, entry in journal().items() if entry["task"] == "harden_ssh"}


def due(now: bool) -> bool:
    return bool(armed()) and (now or seconds_left() <= 0)


def revert() -> None:
    """Put the files back and let sshd read them. Restores what was there when the move began, not the factory's."""
    kept = armed()
    put_back(kept["files"])
    # The engine would take for its own what is not there any more. What other tasks did meanwhile stays written down.
    others = {id: entry for id, entry in journal().items() if entry["task"] != "harden_ssh"}
    write(JOURNAL, json.dumps({**kept["journal"], **others}))
    before = {port for _, port in kept["opened"]}
    for port in before:  # an undo may have closed it
        with contextlib.suppress(SystemExit):  # whatever a firewall says, sshd has to go back
            open_firewall(port)
    reload()
    wanted, deadline = configured_ports(), time.monotonic() + 5
    while sshd_ports() != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    stand_aside()
    for port in {port for _, port in opened()} - before:
        close_firewall(port)
    os.unlink(ARMED)
    run("systemctl", "disable", "-q", "--now", TIMER)
    print("went back to the former SSH configuration: no login over the new port was proven in time")


def put_back(files: dict[str, tuple[str, int] | None]) -> None:
    import base64

    for path, kept in files.items():
        if kept is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.knockmap-new", "wb") as file:
            file.write(base64.b64decode(kept[0]))
        os.chmod(f"{path}.knockmap-new", kept[1])
        os.rename(f"{path}.knockmap-new", path)


def test() -> None:
    refuse_unarmed()
    effective()
    must(SSHD, "-t")
    if found := overruled():
        say_no(f"others overrule what is said here: {'; '.join(found)}; remove those lines first")


def main(argv: list[str]) -> None:
    verb, ports = argv[0] if argv else "", [int(word) for word in argv[1:] if word.isdigit()]
    if verb == "facts":
        print(json.dumps(facts(ports[0])))
    elif verb == "test":
        test()
    elif verb == "listens":
        sys.exit(not listens(set(ports), ports[-1]))
    elif verb == "listen":
        listen(set(ports), ports[-1])
    elif verb == "reload":
        reload()
    elif verb == "close":
        close_firewall(ports[0])
    elif verb == "keep":
        keep()
    elif verb == "disarmed":
        sys.exit(bool(armed()))
    elif verb in ("arm", "disarm"):
        with alone():
            arm(ports[0]) if verb == "arm" else disarm()
        remove_state()
    elif verb == "revert":
        if due("--now" in argv):
            with while_no_agent_works(), alone():
                if due("--now" in argv):  # still: a login may have disarmed it meanwhile
                    revert()
            remove_state()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
