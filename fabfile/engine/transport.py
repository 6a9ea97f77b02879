"""Feeding the agent: one SSH channel, root by sudo where needed, frames to it and events from it as they come.

The program and its job travel length-prefixed on stdin (`b"%d\\n" % len(z) + z`), large files follow on request;
answers are one JSON object per line. Nothing is written on the target but by the agent itself.
Errors are those of `errors.py`; a broken connection is `ConnectionLostError`, and then the target finishes the resource
at hand and stops.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fabfile.engine import agent, bootstrap
from fabfile.engine.errors import BootstrapError
from fabfile.engine.host_keys import HostKey
from fabfile.engine.root_channel import Channel, Event, OnEvent, RootChannel

CHUNK_BYTES = 1 << 20

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


@lru_cache
def packed_agent() -> bytes:
    """The frame of the agent's program: prepared while a connection is made, it is there when it is needed."""
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
    source = frame(zlib.compress(program)) if program else packed_agent()
    if _converse(c, source + frame(json.dumps(job).encode()), blobs, on_event):
        return
    if job["mode"] == "undo":
        raise BootstrapError(
            f"{c.original_host}: there is no usable python3 any more, and undo needs it; install it there"
        )
    if job["mode"] == "check":
        bootstrap.would_install(on_event)
        return
    job = {**job, "bootstrap": bootstrap.install(c, on_event)}
    if not _converse(c, source + frame(json.dumps(job).encode()), blobs, on_event):
        raise BootstrapError(f"{c.original_host}: python3 was installed and still lacks some of {_MODULES}")


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
    with Channel(c, 'echo "$SSH_CONNECTION"', "the question for the port") as channel:
        out = b"".join(out for out, _ in channel.receive())
    return int(out.split()[-1])


def server_keys(c: Any) -> tuple[HostKey, ...]:
    """All host keys of the target, read through this connection: a later login may be shown another one of them."""
    _, out, _ = ask(c, ("/bin/sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub"))
    lines = [line.split() for line in out.decode(errors="replace").splitlines()]
    return tuple(HostKey(fields[0], fields[1]) for fields in lines if len(fields) > 1)


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
            if ended:
                break  # Python takes some milliseconds to go, and nobody needs to see it
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
