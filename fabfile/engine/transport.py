"""Feeding the agent: one SSH channel, root by sudo where needed, frames to it and events from it as they come.

The program and its job travel length-prefixed on stdin (`b"%d\\n" % len(z) + z`), large files follow on request;
answers are one JSON object per line. Nothing is written on the target but by the agent itself.
Errors are those of `errors.py`; a broken connection is `ConnectionLostError`, and then the target finishes the resource
at hand and stops.
"""

from __future__ import annotations

import json
import select
import shlex
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import paramiko

from fabfile.engine import agent
from fabfile.engine.errors import AgentError, BootstrapError, ConnectionLostError, SudoError

Event = dict[str, Any]
OnEvent = Callable[[Event], None]

# A connection on which nothing came for so long is asked whether it lives, and is dead without an answer in as long.
QUIET_SECONDS = 20.0
CHUNK_BYTES = 1 << 20

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

# What the agent imports; python3-minimal lacks some of it. Looking the files up costs less than importing them.
_MODULES = "json shutil tempfile shlex difflib subprocess hashlib fcntl pwd base64 zlib"
LOADER = (
    "import sys;"
    f'lacks=[n for n in "{_MODULES}".split() if all(f.find_spec(n,None) is None for f in sys.meta_path)];'
    'print("knockmap "+("no-python" if lacks else "ready"),flush=True);'
    "lacks and sys.exit();"
    "import zlib;b=sys.stdin.buffer;"
    'exec(compile(zlib.decompress(b.read(int(b.readline()))),"knockmap-agent","exec"))'
)
_START = (
    "/bin/sh",
    "-c",
    '[ -x /usr/bin/python3 ] || { echo "knockmap no-python"; exit 0; }; exec /usr/bin/python3 -I -S -B -c "$1"',
    "sh",
    LOADER,
)

_INSTALL_PYTHON = """
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l LC_ALL=C.UTF-8
command -v apt-get >/dev/null || { echo "no apt-get: this is neither Debian nor Ubuntu"; exit 2; }
install() { apt-get -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold install --no-install-recommends python3; }
update() { for try in 1 2 3 4 5 6; do apt-get -o DPkg::Lock::Timeout=600 update && return; sleep 5; done; return 1; }
[ -z "$(dpkg --audit)" ] || dpkg --configure -a
install || { update && install; }
"""


@lru_cache
def _program() -> bytes:
    return frame(zlib.compress(agent.program()))


def frame(data: bytes) -> bytes:
    return b"%d\n" % len(data) + data


def run_agent(
    c: Any,
    job: dict[str, Any],
    blobs: Mapping[str, Path],
    on_event: OnEvent,
    program: bytes | None = None,
) -> None:
    """Run `job` on the target of connection `c` and hand every event to `on_event` as it comes.

    `blobs` are the large files by SHA-256. A target without a usable python3 gets Debian's first, reported as a
    changed `package:python3`; in check mode it is only reported, and the rest is not guessed.
    `program` is the source to run instead of the agent's.
    """
    first = (frame(zlib.compress(program)) if program else _program()) + frame(json.dumps(job).encode())
    if _converse(c, first, blobs, on_event):
        return
    if job["mode"] == "undo":
        raise BootstrapError(
            f"{_name(c)}: python3 is missing on the target, and undo needs it; install it there"
        )
    on_event({"event": "start", "id": "package:python3", "task": "engine"})
    changed = {"event": "result", "id": "package:python3", "task": "engine", "status": "changed"}
    if job["mode"] == "check":
        on_event(changed)
        on_event(
            {"event": "notice", "text": "the target has no python3 yet, so the rest cannot be looked at"}
        )
        return
    _install_python(c, on_event)
    on_event(changed)
    if not _converse(c, first, blobs, on_event):
        raise BootstrapError(
            f"{_name(c)}: python3 was installed and still cannot be used; look at `python3 -c 'import json'` there"
        )


def ask(c: Any, argv: Sequence[str], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run one command as root on the target: (exit status, stdout, stderr). No shell sees the arguments.

    Raises SudoError or ConnectionLostError; a non-zero exit status is the caller's to judge.
    """
    with RootChannel(c, argv, argv[0]) as channel:
        channel.begin(stdin, more=False)
        out, err = b"", b""
        for more_out, more_err in channel.receive():
            out, err = out + more_out, err + more_err
        return channel.exit_status(), out, err


def server_port(c: Any) -> int:
    """The port on which the target's sshd took this connection, by the target's own word.

    What we asked for is no proof where a ProxyCommand stands in between.
    """
    with _Channel(c, 'echo "$SSH_CONNECTION"', "the question for the port") as channel:
        out = b"".join(out for out, _ in channel.receive())
    return int(out.split()[-1])


def _name(c: Any) -> str:
    return str(c.original_host)


# --- the agent's side of the talk -------------------------------------------------------------------------------


def _converse(c: Any, first: bytes, blobs: Mapping[str, Path], on_event: OnEvent) -> bool:
    """False if the target has no Python that could run the agent."""
    with RootChannel(c, _START, "the start of the agent") as channel:
        channel.begin(first, more=True)
        ended, rest = False, []
        for line in channel.lines():
            if line == b"knockmap no-python":
                return False
            event = _event(line)
            if event is None:
                rest.append(line)
                continue
            ended = event["event"] == "end"
            channel.doing = event.get("id", channel.doing)
            on_event(event)
            if event["event"] == "need":
                _send_blob(channel, event, blobs[event["sha256"]], on_event)
        if not ended:
            raise channel.broken(b"\n".join(rest[1:]))
    return True


def _event(line: bytes) -> Event | None:
    if not line.startswith(b"{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _send_blob(channel: RootChannel, event: Event, path: Path, on_event: OnEvent) -> None:
    """Send the file from where the target already has it, compressed by the MiB, saying how far we are."""
    size = event["size"]
    with path.open("rb") as file:
        file.seek(event["offset"])
        while chunk := file.read(CHUNK_BYTES):
            channel.send(frame(zlib.compress(chunk, 3)))
            text = f"{file.tell() >> 20} of {size >> 20} MiB sent"
            on_event(
                {"event": "progress", "id": event["id"], "text": text, "bytes": file.tell(), "size": size}
            )
    channel.send(b"0\n")


def _install_python(c: Any, on_event: OnEvent) -> None:
    with RootChannel(c, ("/bin/sh", "-c", f"{{ {_INSTALL_PYTHON} }} 2>&1"), "package:python3") as channel:
        channel.begin(b"", more=False)
        said = []
        for line in channel.lines():
            said.append(line.decode(errors="replace"))
            on_event({"event": "progress", "id": "package:python3", "text": said[-1]})
        status = channel.exit_status()
    if status:
        raise BootstrapError(
            f"{_name(c)}: there is no usable python3, and apt-get could not install it (exit {status}); "
            "mend what apt says and run again:\n" + "\n".join(said[-8:])
        )


# --- channels ---------------------------------------------------------------------------------------------------


class _Channel:
    """One command on the target: bytes both ways, and ConnectionLostError in a sentence when the way breaks."""

    def __init__(self, c: Any, command: str, doing: str) -> None:
        self.c, self.doing = c, doing
        c.open()
        with self._guarded():
            self.channel = c.create_session()
            self.channel.exec_command(command)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.channel.close()

    def _guarded(self) -> _Guard:
        return _Guard(self)

    def lost(self, why: str) -> ConnectionLostError:
        return ConnectionLostError(
            f"{_name(self.c)}: the connection broke during {self.doing} ({why}); the target finishes that and stops; "
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


class _Guard:
    def __init__(self, channel: _Channel) -> None:
        self.channel = channel

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (paramiko.SSHException, OSError, EOFError)):
            raise self.channel.lost(str(error) or type(error).__name__) from error


class RootChannel(_Channel):
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
                f"{_name(self.c)}: sudo refuses the password of {self.c.user}; run again with --prompt-for-sudo-password"
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
                f"{_name(self.c)}: the agent crashed during {self.doing} (exit status {status}), which is a bug of "
                "knockmap:\n" + "\n".join(lines[-12:])
            )
        why = " / ".join([f"exit status {status}", *lines[-2:]])
        return AgentError(
            f"{_name(self.c)}: the agent was ended on the target during {self.doing} ({why}); is memory short there? "
            "Run the same again, it goes on from there"
        )


def _sudo_error(c: Any, said: bytes) -> SudoError:
    text = said.decode(errors="replace").replace(PROMPT.decode(), "").strip()
    who = f"{_name(c)}: {c.user} is not root"
    if "knockmap no-sudo" in text:
        return SudoError(f"{who}, and there is no sudo; log in as root (-H root@{_name(c)}) or install sudo")
    if "password is required" in text or "interactive authentication" in text:
        return SudoError(f"{who}, and sudo wants a password; run again with --prompt-for-sudo-password")
    if "incorrect password" in text or "no password was provided" in text:
        return SudoError(f"{who}, and sudo refuses the password; run again with --prompt-for-sudo-password")
    return SudoError(
        f"{who}, and sudo does not help: {' / '.join(text.splitlines()[-2:]) or 'it ended without a word'}"
    )
