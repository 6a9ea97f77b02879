"""`invoke box.*`: a disposable VPS on this machine."""

from __future__ import annotations

import os
from dataclasses import asdict
from json import dumps as to_json

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from . import kernel, machine, state
from .attack import Attack
from .attack import attack as send
from .images import BoxError


@task(
    help={
        "release": "noble, jammy, trixie or bookworm; default: noble where its image can be pulled, else trixie.",
        "name": "Name of the box, also its host name for fab.",
        "bootstrap_from": "URL of a Debian or Ubuntu archive to make the system from, in place of an image.",
        "variant": "full, minimal (python3-minimal only) or bare (no Python).",
    }
)
def up(
    c: Context, release: str = "", name: str = "box", bootstrap_from: str = "", variant: str = "full"
) -> None:
    """Start a fresh VPS in Docker, with sshd on a loopback address of its own."""
    try:
        box = machine.up(name, release or None, variant, bootstrap_from or None, print)
    except BoxError as error:
        raise Exit(f"box.up: {error}", code=1) from None
    print(f"{box.name}: {box.release} at {box.address} (ports {', '.join(map(str, state.PORTS))})")
    if not box.kernel_log:
        print(f"  {kernel.WITHHELD}")
    config = os.path.relpath(state.SSH_CONFIG)
    print(
        f"  fab -S {config} -H {box.name} deploy\n  ssh -F {config} {box.name}    (after a deploy: -p 2222)"
    )


@task(help={"name": "Name of the box."})
def shell(c: Context, name: str = "box") -> None:
    """Open a root shell in a box, past sshd."""
    try:
        box = machine.find(name)
    except BoxError as error:
        raise Exit(f"box.shell: {error}", code=1) from None
    os.execvp("docker", ["docker", "exec", "-it", box.container, "bash"])


@task(
    help={
        "name": "Name of the box.",
        "sources": "How many addresses take turns, IPv4 and IPv6.",
        "count": "How many SYNs in all.",
        "rate": "SYNs per second.",
        "json": "Print one JSON document.",
    }
)
def attack(
    c: Context, name: str = "box", sources: int = 40, count: int = 200, rate: int = 100, json: bool = False
) -> None:
    """Send SYNs to port 22 of a box from addresses all over the world, through real netfilter."""
    try:
        done = send(machine.find(name), sources, count, rate)
    except BoxError as error:
        raise Exit(f"box.attack: {error}", code=1) from None
    print(to_json(asdict(done)) if json else told(done))


def told(done: Attack) -> str:
    """An attack in words."""
    countries = "  ".join(f"{country} {number}" for country, number in done.countries.items())
    lines = [
        f"sent {done.v4 + done.v6} SYNs ({done.v4} IPv4, {done.v6} IPv6) from {done.sources} addresses in {done.seconds} s",
        f"  {countries}",
        f"  {done.leaked} replies left by another way than they came",
    ]
    if done.overruns:
        lines.append(
            f"  {done.overruns} kernel lines were overwritten unread: do not count lines of this attack"
        )
    return "\n".join(lines)


@task(help={"name": "Name of the box, or all: those of this checkout."})
def down(c: Context, name: str = "box") -> None:
    """Remove a box and everything that was made for it."""
    try:
        names = machine.made_here() if name == "all" else [name]
        removed = [item for one in names for item in machine.down(one)]
    except BoxError as error:
        raise Exit(f"box.down: {error}", code=1) from None
    none = "there was no box" + ("" if name == "all" else f" {name}")
    print("removed " + ", ".join(removed) if removed else none)


__all__ = ["attack", "down", "shell", "up"]
