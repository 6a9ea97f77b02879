"""One command on the target, as root: bytes both ways, and a sentence when the way breaks.

Root is the login user itself, or by sudo: passwordless, or with Fabric's own `sudo.password` (fabric.yaml,
--prompt-for-sudo-password). The password goes to sudo's stdin when sudo asks for it, and nowhere else.
"""

from __future__ import annotations

import contextlib
import select
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import paramiko

from fabfile.engine.errors import AgentError, ConnectionLostError, SudoError

Event = dict[str, Any]
OnEvent = Callable[[Event], None]

# A connection on which nothing came for so long is asked whether it lives, and is dead without an answer in as long.
QUIET_SECONDS = 20.0
MARKER = b"knockmap root\n"
PROMPT = b"knockmap sudo password: "

# Runs as the login user. "$1" is the second stage, the rest is the command; both run as root.
_PLAIN = (
    'if [ "$(id -u)" = 0 ]; then exec /bin/sh -c "$@"; fi; '
    'command -v sudo >/dev/null || { echo "knockmap no-sudo" >&2; exit 126; }; '
    'LC_ALL=C exec sudo -n -- /bin/sh -c "$@"'
)
_PASSWORD = f'LC_ALL=C exec sudo -S -p "{PROMPT.decode()}" -- /bin/sh -c "$@"'
_STAGE2 = 'echo "knockmap root" >&2; exec "$@"'


class Channel:
    """One command on the target: bytes both ways, and ConnectionLostError in a sentence when the way breaks."""

    def __init__(self, c: Any, command: str, doing: str) -> None:
        self.c, self.doing = c, doing
        c.open()
        with self._opening():
            self.channel = c.create_session()
            self.channel.exec_command(command)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.channel.close()

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """paramiko would wait for ever for a server that falls silent here."""
        watch = threading.Timer(2 * QUIET_SECONDS, self.c.transport.close)
        watch.daemon = True
        watch.start()
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self.lost(str(error) or type(error).__name__) from error
        finally:
            watch.cancel()

    def lost(self, why: str) -> ConnectionLostError:
        return ConnectionLostError(
            f"{name(self.c)}: the connection broke during {self.doing} ({why}); the target finishes that and stops; "
            "run the same again, it goes on from there"
        )

    def send(self, data: bytes) -> None:
        """All of it; in silence if the command has ended, since what it said is still to be read."""
        view = memoryview(data)
        self.channel.settimeout(QUIET_SECONDS)
        while view and not self.channel.closed and not self.channel.eof_received:
            try:
                view = view[self.channel.send(view[:65536].tobytes()) :]
            except TimeoutError:
                self._probe()
            except OSError as error:
                if not self._alive():
                    raise self.lost(str(error)) from None
                return

    def receive(self) -> Iterator[tuple[bytes, bytes]]:
        """(stdout, stderr) as they come, until the command has ended. Raises ConnectionLostError if we cannot know that."""
        fd = self.channel.fileno()
        while True:
            ended = self.channel.eof_received or self.channel.closed
            out = self.channel.recv(65536) if self.channel.recv_ready() else b""
            err = self.channel.recv_stderr(65536) if self.channel.recv_stderr_ready() else b""
            if out or err:
                yield out, err
            elif ended:
                break
            elif not select.select([fd], [], [], QUIET_SECONDS)[0]:
                self._probe()
        if not self._alive():
            raise self.lost("the other end is gone")

    def exit_status(self) -> int:
        while not self.channel.status_event.wait(QUIET_SECONDS):
            self._probe()
        status = int(self.channel.recv_exit_status())
        if status < 0 and not self._alive():
            raise self.lost("the other end is gone")
        return status

    def _alive(self) -> bool:
        return bool(self.c.transport and self.c.transport.is_active())

    def _probe(self) -> None:
        """Ask the server for any answer: keepalives alone would take TCP's quarter of an hour to notice a dead peer."""
        asked = threading.Thread(
            target=lambda: self.c.transport.global_request("keepalive@openssh.com", wait=True), daemon=True
        )
        asked.start()
        asked.join(QUIET_SECONDS)
        if asked.is_alive() or not self._alive():
            self.c.transport.close()
            raise self.lost(f"no answer for {2 * QUIET_SECONDS:.0f} s")


class RootChannel(Channel):
    """A command that runs as root: directly, by passwordless sudo, or with Fabric's `sudo.password`."""

    def __init__(self, c: Any, argv: Sequence[str], doing: str) -> None:
        self.password = None if c.user == "root" else c.config.sudo.password
        script = _PLAIN if self.password is None else _PASSWORD
        words = ("/bin/sh", "-c", script, "sh", _STAGE2, "sh", *argv)
        super().__init__(c, shlex.join(words), doing)
        self.stream = super().receive()
        self.early = b""
        self.complaint = b""

    def begin(self, data: bytes, more: bool) -> None:
        """Become root and feed `data`; with `more` false, stdin ends with it.

        Without a password all is sent at once: waiting for the marker first would cost a round trip.
        """
        if self.password is None:
            self._feed(data, more)
        said = b""
        for out, err in self.stream:
            self.early += out
            said += err
            if said.endswith(PROMPT):
                said = self._answer(said)
            if MARKER in said:
                self.complaint = said.partition(MARKER)[2]
                break
        else:
            raise _sudo_error(self.c, said)
        if self.password is not None:
            self._feed(data, more)

    def _feed(self, data: bytes, more: bool) -> None:
        self.send(data)
        if not more:
            self.channel.shutdown_write()

    def _answer(self, said: bytes) -> bytes:
        if said.count(PROMPT) > 1:
            raise SudoError(
                f"{name(self.c)}: sudo refuses the password of {self.c.user}; run again with --prompt-for-sudo-password"
            )
        self.send(f"{self.password}\n".encode())
        return said

    def receive(self) -> Iterator[tuple[bytes, bytes]]:
        yield self.early, self.complaint
        yield from self.stream

    def lines(self) -> Iterator[bytes]:
        """stdout by lines; stderr is kept in `complaint`."""
        buffer = b""
        for out, err in self.receive():
            self.complaint += err
            *whole, buffer = (buffer + out).split(b"\n")
            yield from whole
        if buffer:
            yield buffer

    def broken(self, said: bytes) -> Exception:
        """Why there was no last word: the agent crashed, or somebody ended it."""
        lines = (said + self.complaint).decode(errors="replace").strip().splitlines()
        status = self.exit_status()
        if any(line.startswith("Traceback") for line in lines):
            return AgentError(
                f"{name(self.c)}: the agent crashed during {self.doing} (exit status {status}), which is a bug of "
                "knockmap:\n" + "\n".join(lines[-12:])
            )
        why = " / ".join([f"exit status {status}", *lines[-2:]])
        return AgentError(
            f"{name(self.c)}: the agent was ended on the target during {self.doing} ({why}); is memory short there? "
            "Run the same again, it goes on from there"
        )


def _sudo_error(c: Any, said: bytes) -> SudoError:
    text = said.decode(errors="replace").replace(PROMPT.decode(), "").strip()
    who = f"{name(c)}: {c.user} is not root"
    if "password has expired" in text or "Password change required" in text:
        return SudoError(
            f"{name(c)}: {c.user} has to choose a new password first; log in once with `ssh` and do so"
        )
    if "knockmap no-sudo" in text:
        return SudoError(f"{who}, and there is no sudo; log in as root (-H root@{name(c)}) or install sudo")
    if "password is required" in text or "interactive authentication" in text:
        return SudoError(f"{who}, and sudo wants a password; run again with --prompt-for-sudo-password")
    if "incorrect password" in text or "no password was provided" in text:
        return SudoError(f"{who}, and sudo refuses the password; run again with --prompt-for-sudo-password")
    return SudoError(
        f"{who}, and sudo does not help: {' / '.join(text.splitlines()[-2:]) or 'it ended without a word'}"
    )


def name(c: Any) -> str:
    return str(c.original_host)
