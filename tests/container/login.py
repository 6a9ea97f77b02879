"""Logins from outside, over SSH through the published ports: what counts when a port has moved."""

from __future__ import annotations

import secrets
import subprocess
import time

from box import Box

# An sshd that systemd starts for each connection, as Ubuntu has it.
SOCKET = "systemctl disable -q --now ssh.service; systemctl enable -q --now ssh.socket"


def login(box: Box, port: int, user: str = "root") -> bool:
    """True if OpenSSH's client gets in with the box's key, with a verified host key."""
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=4", "-o", "StrictHostKeyChecking=yes"]
    argv = ["ssh", "-F", str(box.ssh_config), *options, "-p", str(port), "-l", user, box.name, "true"]
    return subprocess.run(argv, capture_output=True, check=False, timeout=20).returncode == 0


def within(seconds: float, box: Box, port: int) -> bool:
    """True as soon as a login over `port` works, False if none does in `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if login(box, port):
            return True
        time.sleep(0.5)
    return False


def new_password(box: Box, user: str = "pw") -> str:
    """A password for a user of a box, who has none from the image: nobody else on this machine shall get in."""
    password = secrets.token_hex(8)
    status, out = box.run(["sh", "-c", f"echo {user}:{password} | chpasswd"])
    assert status == 0, out
    return password
