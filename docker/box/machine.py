"""One box: made, looked into, restarted, removed."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import tarfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.client import DockerClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.types import IPAMConfig, IPAMPool

from . import images, kernel, state
from .images import LABEL, BoxError, Say, inside

# What systemd and netfilter in a box need beyond Docker's default; never --privileged.
CAPABILITIES = [
    "SYS_ADMIN",  # systemd mounts and makes cgroups; units are sandboxed by mount namespaces
    "NET_ADMIN",  # iptables
    "SYSLOG",  # rsyslog's imklog opens /proc/kmsg
]


OWNER = "knockmap.checkout"  # label: the checkout that made it
ANY = "127.0.22.255"  # no box has it: what answers here listens on every address
NETWORK, SUBNET = "knockmap", "198.18.23"  # of the benchmark range, which no network of others has
OVERRUNS = "/.box/overruns"
OP = 2201  # user number of `op`, as in provision.sh


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

    def restart(self, seconds: float = 30) -> None:
        """A reboot: everything in /run is gone, the network is new, addresses and ports are the same.

        `seconds` is how long what was deployed may take to start.
        """
        engine = images.client()
        container = engine.containers.get(self.container)
        container.restart(timeout=20)
        wait_for_systemd(container, seconds)
        # The relay looks at the network namespace of the box, and that is a new one.
        inside(container, ["rm", "-f", OVERRUNS])
        engine.containers.get(relay_name(self.name)).restart(timeout=1)
        wait_for_relay(container)

    def add_log(self, name: str, lines: Iterable[bytes], folder: str = "/var/log") -> None:
        """One more file of log lines, for the group that `folder`'s own log or else `folder` has."""
        data, packed = b"".join(lines), io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o640, int(time.time())
            owner = "/var/log/iptables.log" if folder == "/var/log" else folder
            entry.gid = int(self.run(["stat", "-c", "%g", owner])[1])
            tar.addfile(entry, io.BytesIO(data))
        images.client().containers.get(self.container).put_archive(folder, packed.getvalue())

    def overruns(self) -> int:
        """How many lines, of any box, the kernel overwrote before the relay read them; 0: counts are true."""
        return int(self.run(["cat", OVERRUNS])[1])


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
    direct: bool = False,
) -> Box:
    """Make a box and wait until sshd answers. Raises BoxError, and leaves nothing behind then.

    `release`: noble, jammy, trixie or bookworm (default: noble where it can be pulled, else trixie).
    `variant`: full, minimal (python3-minimal) or bare (no Python). `archive`: URL to bootstrap from.
    `direct`: reach it at its address in a Docker network, as is done where its ports are taken on every address.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", name):
        raise BoxError(f"{name!r} is no name for a box: small letters, digits and dashes, at most 41")
    engine = images.client()
    refuse_taken(name)
    with state.lock("images.lock"):
        if release is None:
            release = "noble" if images.pull(engine, images.OFFICIAL["noble"], say) else "trixie"
        image = images.box_image(engine, release, variant, archive, say)
        tools = images.tools_image(engine, say)
    say(f"{name}: {images.origin(engine, image)}")
    with state.lock():
        refuse_taken(name)
        container, address = start(engine, image, name, release, direct or listened_on(ANY))
    try:
        start_relay(engine, tools, name, address)
        wait_for_systemd(container)
        welcome(container, name, address)
        wait_for_relay(container)
        kernel_log = kernel.open_log(engine, tools)
    except BaseException:
        down(name)
        raise
    return Box(name, release, address, container_name(name), kernel_log)


def refuse_taken(name: str) -> None:
    if name in (found := boxes()):
        raise BoxError(
            f"there is a box {name} at {found[name]['address']} already; `invoke box.down --name {name}` removes it"
        )


def listened_on(address: str) -> bool:
    """True if something of this machine answers there on one of the ports that a box is to have."""
    for port in state.PORTS:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, port)) == 0:
                return True
    return False


def start(engine: DockerClient, image: str, name: str, release: str, direct: bool) -> tuple[Container, str]:
    """Run the container on the lowest address that no box has; gives it and the address. Raises BoxError.

    An address that looked free may be taken by another checkout, or by something else on this machine: then the next.
    """
    taken = {entry["address"].rsplit(".", 1)[1] for entry in boxes().values()}
    free = [number for number in range(1, 255) if str(number) not in taken]
    error = ""
    for number in free[:5]:
        try:
            address, way = directly(engine, number) if direct else published(number)
            return engine.containers.run(image, **fixed(name, release, address), **way), address
        except APIError as failed:
            if failed.status_code == 409:  # another process was quicker, and the container is its own
                raise BoxError(f"there is a box {name} already") from None
            discard(engine, name)
            error = str(failed.explanation)
            if "already" not in error:
                break
    raise BoxError(f"Docker did not start the box {name}: {error}") from None


def fixed(name: str, release: str, address: str) -> dict[str, Any]:
    """What every box is run with; makes the volume for its kernel log."""
    labels = {LABEL: name, OWNER: str(state.ROOT)}
    volume = images.client().volumes.create(f"{container_name(name)}-kmsg", labels=labels)
    return {
        "name": container_name(name),
        "hostname": name,
        "labels": {**labels, "knockmap.release": release, "knockmap.address": address},
        "cap_add": CAPABILITIES,
        "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
        "cgroupns": "private",
        "tmpfs": {"/run": "exec,mode=755", "/run/lock": "", "/tmp": "exec,mode=1777"},
        "volumes": {volume.name: {"bind": "/.box", "mode": "rw"}},
        "sysctls": {"net.ipv6.conf.all.disable_ipv6": "0", "net.ipv6.conf.default.disable_ipv6": "0"},
        "environment": {"container": "docker"},
        "detach": True,
    }


def published(number: int) -> tuple[str, dict[str, Any]]:
    """A loopback address of the box's own, on which its ports are published under their real numbers."""
    address = f"127.0.22.{number}"
    return address, {"ports": {f"{port}/tcp": (address, port) for port in state.PORTS}}


def directly(engine: DockerClient, number: int) -> tuple[str, dict[str, Any]]:
    """The box's address in a Docker network, where this machine's own sshd, say, holds a port on every address."""
    address = f"{SUBNET}.{number}"
    if not engine.networks.list(names=[NETWORK]):
        pool = IPAMPool(subnet=f"{SUBNET}.0/24", gateway=f"{SUBNET}.254")
        labels = {LABEL: "network"}
        engine.networks.create(NETWORK, driver="bridge", ipam=IPAMConfig(pool_configs=[pool]), labels=labels)
    endpoint = engine.api.create_endpoint_config(ipv4_address=address)
    return address, {"network": NETWORK, "networking_config": {NETWORK: endpoint}}


def attacked(address: str) -> tuple[str, str]:
    """Where attacks on the box at this address go to, IPv4 and IPv6: addresses that no other box has.

    Of the benchmark and the unique-local range, so that no real source can be one of them.
    """
    number = address.rsplit(".", 1)[1]
    return f"198.18.22.{number}", f"fd22:22::{number}"


def start_relay(engine: DockerClient, tools: str, name: str, address: str) -> None:
    """Beside the box, in its network namespace: kernel lines into its pipe, and a hand for attacks."""
    engine.containers.run(
        tools,
        name=relay_name(name),
        labels={LABEL: name, OWNER: str(state.ROOT)},
        network_mode=f"container:{container_name(name)}",
        environment={"ATTACKED": " ".join(attacked(address))},
        cap_add=[
            "SYSLOG",  # to read /dev/kmsg
            "SYS_NICE",  # to read it in time
            "SYS_ADMIN",  # to make a network namespace to attack from
            "NET_ADMIN",  # to give it addresses, and the box routes to them
            "NET_RAW",  # to send SYNs
        ],
        cpu_shares=10 * 1024,  # ten times a box: niceness counts within a container only
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        devices=["/dev/kmsg:/dev/kmsg:r"],
        volumes={f"{container_name(name)}-kmsg": {"bind": "/.box", "mode": "rw"}},
        detach=True,
    )


def wait_for_systemd(container: Container, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    output = ""
    while time.monotonic() < deadline:
        try:
            output = inside(container, ["systemctl", "is-system-running"])[1].strip()
        except APIError:  # the container has ended
            output = "gone"
            break
        if output in ("running", "degraded"):
            return
        time.sleep(0.1)
    log = container.logs(tail=20).decode(errors="replace")
    raise BoxError(
        f"systemd in {container.name} is {output!r} after at most {seconds:.0f} s. Are there many boxes (docker ps)? A box takes "
        f"about 6 of the fs.inotify.max_user_instances of this kernel, which are {inotify_instances()}. Its log ends:\n{log}"
    )


def inotify_instances() -> str:
    try:
        return Path("/proc/sys/fs/inotify/max_user_instances").read_text().strip()
    except OSError:
        return "unknown"


def wait_for_relay(container: Container, seconds: float = 10) -> None:
    """Wait until what the kernel logs from now on reaches the box."""
    deadline = time.monotonic() + seconds
    while inside(container, ["test", "-s", OVERRUNS])[0]:
        if time.monotonic() > deadline:
            raise BoxError(
                f"the kernel log of {container.name} does not come; see docker logs {container.name}-relay"
            )
        time.sleep(0.05)


def welcome(container: Container, name: str, address: str) -> None:
    """Let our key in, and note the host keys: we made this machine, so this is its console."""
    key = state.public_key()
    for home, user in (("root", 0), ("home/op", OP)):
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
    if entry["status"] != "running":
        raise BoxError(
            f"the box {name} is {entry['status']}; `invoke box.down --name {name}` removes it, then make a new one"
        )
    engine = images.client()
    kernel_log = kernel.access(engine, images.tools_image(engine, silent), None) == "1"
    return Box(name, entry["release"], entry["address"], container_name(name), kernel_log)


def made_here() -> list[str]:
    """The names of all boxes of this checkout, also of those of which a crash left only a part."""
    engine = images.client()
    mine: dict[str, Any] = {"label": f"{OWNER}={state.ROOT}"}
    containers = engine.containers.list(all=True, filters=mine, ignore_removed=True)
    labels = [c.labels for c in containers] + [v.attrs["Labels"] for v in engine.volumes.list(filters=mine)]
    return sorted({label[LABEL] for label in labels} | set(state.load("boxes.json")))


def discard(engine: DockerClient, name: str) -> list[str]:
    """Remove the containers and volumes of a box; gives their names."""
    mine: dict[str, Any] = {"label": f"{LABEL}={name}"}
    removed = []
    for container in engine.containers.list(all=True, filters=mine, ignore_removed=True):
        with contextlib.suppress(NotFound):  # its relay goes with it
            container.remove(force=True, v=True)
            removed.append(str(container.name))
    for volume in engine.volumes.list(filters=mine):
        volume.remove(force=True)
        removed.append(str(volume.name))
    return removed


def down(name: str) -> list[str]:
    """Remove a box and all that was made for it, also what a crash left; gives the names of what was removed."""
    from fabfile.engine import host_records

    engine = images.client()
    removed = discard(engine, name)
    if removed:  # else a host of the operator's may have this name
        host_records.forget(name)
    with state.lock():
        left = boxes()
        entries = state.load("boxes.json")
        entries = {other: entry for other, entry in entries.items() if other != name and other in left}
        state.store("boxes.json", entries)
        state.write_ssh_files(entries)
        state.attack_lock(name).unlink(missing_ok=True)
        if not left:
            with contextlib.suppress(BoxError, NotFound):
                kernel.close_log(engine, images.tools_image(engine, silent))
            for network in engine.networks.list(names=[NETWORK], filters={"label": f"{LABEL}=network"}):
                network.remove()
                removed.append(NETWORK)
    return removed
