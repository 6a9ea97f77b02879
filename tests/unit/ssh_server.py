"""A real SSH server on loopback, in this process: what it is asked to run runs in a shell with a PATH of its own.

In that PATH `id` says whether the user is root, and `sudo` is a stand-in with sudo's own flags and words, so that the
tests need neither root nor sudo.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

SUDO = """#!/bin/sh
# sudo -n | -S -p PROMPT, then -- COMMAND...
if [ "$1" = -n ]; then
  [ -e {home}/passwordless ] || {{ echo "sudo: a password is required" >&2; exit 1; }}
  shift 2
else
  for try in 1 2; do
    printf %s "$3" >&2
    IFS= read -r given
    [ "$given" = secret ] && break
    echo "Sorry, try again." >&2
  done
  [ "$given" = secret ] || {{ echo "sudo: 2 incorrect password attempts" >&2; exit 1; }}
  shift 4
fi
echo "$@" >> {home}/as-root
exec "$@"
"""


def private_key(passphrase: bytes = b"") -> str:
    """A new Ed25519 key as ssh-keygen writes it."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        quick = serialization.PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(1)
        encryption = quick.build(passphrase)
    openssh = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)
    return ed25519.Ed25519PrivateKey.generate().private_bytes(*openssh, encryption).decode()


def ed25519_key() -> paramiko.PKey:
    return paramiko.Ed25519Key.from_private_key(io.StringIO(private_key()))


class _Login(paramiko.ServerInterface):
    def __init__(self, server: SshServer) -> None:
        self.server = server

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if password == "login" else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_direct_tcpip_request(self, chanid: int, origin: Any, destination: Any) -> int:
        if not self.server.forwarding:
            return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        try:
            self.server.forwards[chanid] = socket.create_connection(destination)
        except OSError:
            return paramiko.OPEN_FAILED_CONNECT_FAILED
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self.server.run, args=(channel, command.decode()), daemon=True).start()
        return True


class SshServer:
    """Listens on 127.0.0.1:`port`. `home` is where the stand-ins and their traces are."""

    def __init__(
        self,
        home: Path,
        *keys: paramiko.PKey,
        root: bool = True,
        banner: bool = True,
        forwards: bool = True,
    ) -> None:
        self.home, self.keys, self.banner, self.forwarding = home, keys or (ed25519_key(),), banner, forwards
        self.forwards: dict[int, socket.socket] = {}
        self.logins = 0
        self.transports: list[paramiko.Transport] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        bin = home / "bin"
        bin.mkdir(exist_ok=True)
        for name, text in (
            ("id", f"#!/bin/sh\necho {0 if root else 1000}\n"),
            ("sudo", SUDO.format(home=home)),
        ):
            (bin / name).write_text(text)
            (bin / name).chmod(0o755)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                self._serve(peer) if self.banner else peer.close()

    def _serve(self, peer: socket.socket) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(peer)
        for key in self.keys:
            transport.add_server_key(key)
        self.transports.append(transport)
        self.logins += 1
        threading.Thread(target=self._sessions, args=(transport,), daemon=True).start()

    def _sessions(self, transport: paramiko.Transport) -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=_Login(self))
            while transport.is_active():
                channel = transport.accept(1)
                if channel is not None and channel.chanid in self.forwards:
                    self._forward(channel, self.forwards.pop(channel.chanid))

    def _forward(self, channel: paramiko.Channel, peer: socket.socket) -> None:
        def pump(read: Any, write: Any) -> None:
            with contextlib.suppress(OSError):
                while data := read(65536):
                    write(data)
            channel.close()
            peer.close()

        threading.Thread(target=pump, args=(channel.recv, peer.sendall), daemon=True).start()
        threading.Thread(target=pump, args=(peer.recv, channel.sendall), daemon=True).start()

    def run(self, channel: paramiko.Channel, command: str) -> None:
        environment = {
            "PATH": f"{self.home}/bin:/usr/bin:/bin",
            "SSH_CONNECTION": f"127.0.0.1 40000 127.0.0.1 {self.port}",
        }
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe, env=environment
        )
        assert process.stdin and process.stdout and process.stderr
        self.processes.append(process)
        pumps = [
            threading.Thread(target=_copy, args=(process.stdout.fileno(), channel.sendall), daemon=True),
            threading.Thread(
                target=_copy, args=(process.stderr.fileno(), channel.sendall_stderr), daemon=True
            ),
        ]
        feed = threading.Thread(target=_feed, args=(channel, process.stdin), daemon=True)
        for thread in (*pumps, feed):
            thread.start()
        for thread in pumps:
            thread.join()
        with contextlib.suppress(OSError, EOFError):
            if (status := process.wait()) >= 0:  # sshd sends no status for a signal
                channel.send_exit_status(status)
            channel.close()

    def drop(self) -> None:
        """All connections break, as when the network goes."""
        for transport in self.transports:
            transport.close()

    def close(self) -> None:
        self.listener.close()
        self.drop()
        for process in self.processes:
            process.kill()
            process.wait()


def _copy(fd: int, write: Any) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := os.read(fd, 65536):
            write(data)


def _feed(channel: paramiko.Channel, stdin: Any) -> None:
    with contextlib.suppress(OSError), stdin:
        while data := channel.recv(65536):
            stdin.write(data)
            stdin.flush()


@contextlib.contextmanager
def serving(home: Path, *keys: paramiko.PKey, **options: Any) -> Iterator[SshServer]:
    server = SshServer(home, *keys, **options)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def freezing(server: SshServer) -> Iterator[tuple[int, threading.Event]]:
    """A port in front of the server, and an event: once it is set nothing passes any more, and nothing is closed."""
    freeze = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (data := source.recv(65536)) and not freeze.is_set():
                sink.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", server.port))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1], freeze
