"""One box: made, looked into, restarted, removed."""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.client import DockerClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from . import images, kernel, state
from .images import LABEL, BoxError, Say, inside

# What systemd, sshd and netfilter in a box need beyond Docker's default; never --privileged.
CAPABILITIES = [
    "SYS_ADMIN",  # systemd mounts and makes cgroups; units are sandboxed by mount namespaces
    "NET_ADMIN",  # iptables
    "SYSLOG",  # rsyslog's imklog opens /proc/kmsg
    "LINUX_IMMUTABLE",  # logrotate and sandboxed units keep file attributes
    "SYS_NICE",  # units with a scheduling priority
]


@dataclass(frozen=True)
class Box:
    """A running box. `kernel_log` is False where the host's kernel keeps LOG lines of namespaces to itself."""

    name: str
    release: str
    address: str
    container: str
    kernel_log: bool
    ssh_config: Path = state.SSH_CONFIG

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        """Exit status and output of a command inside, by Docker: to look, never to prove that a login works."""
        return inside(images.client().containers.get(self.container), argv)

    def restart(self) -> None:
        """A reboot: everything in /run is gone, the network is new, addresses and ports are the same."""
        engine = images.client()
        engine.containers.get(self.container).restart(timeout=20)
        wait_for_systemd(engine.containers.get(self.container))
        # The relay looks at the network namespace of the box, and that is a new one.
        engine.containers.get(relay_name(self.name)).restart(timeout=1)

    def overruns(self) -> int:
        """How often the kernel overwrote lines before the relay read them; 0 means that counts are true."""
        return int(self.run(["cat", "/.box/overruns"])[1].strip() or 0)


def container_name(name: str) -> str:
    return f"knockmap-{name}"


def relay_name(name: str) -> str:
    return f"knockmap-{name}-relay"


def silent(text: str) -> None:
    """For callers who do not want to hear how it goes."""


def up(
    name: str = "box",
    release: str | None = None,
    variant: str = "full",
    archive: str | None = None,
    say: Say = silent,
) -> Box:
    """Make a box and wait until sshd answers. Raises BoxError, and leaves nothing behind then.

    `release`: noble, jammy, trixie or bookworm (default: noble where it can be pulled, else trixie).
    `variant`: full, minimal (python3-minimal) or bare (no Python). `archive`: URL to bootstrap from.
    """
    engine = images.client()
    if name in (found := boxes()):
        raise BoxError(
            f"there is a box {name} at {found[name]['address']} already; `invoke box.down --name {name}` removes it"
        )
    with state.lock("images.lock"):
        if release is None:
            release = "noble" if images.pull(engine, images.OFFICIAL["noble"], say) else "trixie"
        image = images.box_image(engine, release, variant, archive, say)
        tools = images.tools_image(engine, say)
    try:
        with state.lock():
            kernel_log = kernel.open_log(engine, tools)
            container, address = start(engine, image, name, release)
        start_relay(engine, tools, name)
        wait_for_systemd(container)
        welcome(container, name, address)
    except BaseException:
        down(name)
        raise
    return Box(name, release, address, container_name(name), kernel_log)


def start(engine: DockerClient, image: str, name: str, release: str) -> tuple[Container, str]:
    """Run the container on the lowest loopback address 127.0.22.N that no box has."""
    taken = {entry["address"] for entry in boxes().values()}
    address = next(a for n in range(1, 255) if (a := f"127.0.22.{n}") not in taken)
    options: dict[str, Any] = {
        "name": container_name(name),
        "hostname": name,
        "labels": {LABEL: name, "knockmap.release": release, "knockmap.address": address},
        "cap_add": CAPABILITIES,
        "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
        "cgroupns": "private",
        "tmpfs": {"/run": "exec,mode=755", "/run/lock": "", "/tmp": "exec,mode=1777"},
        "volumes": {f"{container_name(name)}-kmsg": {"bind": "/.box", "mode": "rw"}},
        "sysctls": {"net.ipv6.conf.all.disable_ipv6": "0", "net.ipv6.conf.default.disable_ipv6": "0"},
        "environment": {"container": "docker"},
        "ports": {f"{port}/tcp": (address, port) for port in state.PORTS},
        "detach": True,
    }
    engine.volumes.create(f"{container_name(name)}-kmsg", labels={LABEL: name})
    try:
        return engine.containers.run(image, **options), address
    except APIError as error:
        raise BoxError(f"Docker did not start the box {name}: {error.explanation}") from None


def start_relay(engine: DockerClient, tools: str, name: str) -> None:
    """Beside the box, in its network namespace: kernel lines into its pipe, and a hand for attacks."""
    engine.containers.run(
        tools,
        name=relay_name(name),
        labels={LABEL: name},
        network_mode=f"container:{container_name(name)}",
        cap_add=["SYSLOG", "NET_ADMIN", "NET_RAW", "SYS_ADMIN"],
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        devices=["/dev/kmsg:/dev/kmsg:r"],
        volumes={f"{container_name(name)}-kmsg": {"bind": "/.box", "mode": "rw"}},
        detach=True,
    )


def wait_for_systemd(container: Container, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    output = ""
    while time.monotonic() < deadline:
        output = inside(container, ["systemctl", "is-system-running"])[1].strip()
        if output in ("running", "degraded"):
            return
        time.sleep(0.1)
    log = container.logs(tail=20).decode(errors="replace")
    raise BoxError(f"systemd in {container.name} is {output!r} after {seconds:.0f} s; its log ends:\n{log}")


def welcome(container: Container, name: str, address: str) -> None:
    """Let our key in, and note the host keys: we made this machine, so this is its console."""
    key = state.public_key()
    for home, user in (("root", 0), ("home/op", 1000)):
        container.put_archive(f"/{home}", authorized_keys(key, user))
    shown = inside(container, ["sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub"])[1]
    keys = [" ".join(line.split()[:2]) for line in shown.splitlines()]
    with state.lock():
        entries = state.load("boxes.json")
        entries[name] = {"address": address, "keys": keys}
        state.store("boxes.json", entries)
        state.write_ssh_files(entries)


def authorized_keys(key: str, user: int) -> bytes:
    """A tar with .ssh/authorized_keys in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo(".ssh")
        folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o700, user, user
        tar.addfile(folder)
        file = tarfile.TarInfo(".ssh/authorized_keys")
        file.mode, file.uid, file.gid, file.size = 0o600, user, user, len(key)
        tar.addfile(file, io.BytesIO(key.encode()))
    return buffer.getvalue()


def boxes() -> dict[str, dict[str, str]]:
    """The boxes that exist: name -> {address, release, status}."""
    found = images.client().containers.list(
        all=True, filters={"label": "knockmap.address"}, ignore_removed=True
    )
    return {
        c.labels[LABEL]: {
            "address": c.labels["knockmap.address"],
            "release": c.labels["knockmap.release"],
            "status": c.status,
        }
        for c in found
    }


def find(name: str) -> Box:
    """The running box of this name. Raises BoxError."""
    entry = boxes().get(name)
    if not entry:
        raise BoxError(f"there is no box {name}; `invoke box.up --name {name}` makes one")
    engine = images.client()
    kernel_log = kernel.access(engine, images.tools_image(engine, silent), None) == "1"
    return Box(name, entry["release"], entry["address"], container_name(name), kernel_log)


def down(name: str) -> list[str]:
    """Remove a box and all that was made for it, also what a crash left; gives the names of what was removed."""
    engine = images.client()
    mine: dict[str, Any] = {"label": f"{LABEL}={name}"}
    removed = []
    for container in engine.containers.list(all=True, filters=mine, ignore_removed=True):
        with contextlib.suppress(NotFound):  # its relay goes with it
            container.remove(force=True, v=True)
            removed.append(str(container.name))
    for volume in engine.volumes.list(filters=mine):
        volume.remove(force=True)
        removed.append(str(volume.name))
    with state.lock():
        entries = state.load("boxes.json")
        entries.pop(name, None)
        entries = {other: entry for other, entry in entries.items() if other in boxes()}
        state.store("boxes.json", entries)
        state.write_ssh_files(entries)
        if not boxes():
            with contextlib.suppress(BoxError, NotFound):
                kernel.close_log(engine, images.tools_image(engine, silent))
    return removed
