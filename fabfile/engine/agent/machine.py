"""The machine as a whole: its root, and running programs on it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from .wire import Failure

ROOT = ""  # the unit tests put everything below a folder of theirs


ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_MODE": "l",  # Ubuntu's needrestart would restart what we did not change
    "HOME": "/root",
}


def at(path: str) -> str:
    return ROOT + path


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Exit status 127 stands for a program that is not there, as in a shell."""
    process = _ahead.pop(argv, None) or begin(argv)
    if isinstance(process, str):
        return subprocess.CompletedProcess(argv, 127, "", process)
    out, err = process.communicate()
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def begin(argv: tuple[str, ...]) -> subprocess.Popen[str] | str:
    """Start a program; what hinders that is returned as text."""
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=ENVIRONMENT,
            close_fds=False,  # Python's are closed on exec anyway, and this way starts in a third of the time
        )
    except (FileNotFoundError, PermissionError) as error:
        return str(error)


# Programs that were started before their answers are wanted: on a target that is as it shall be, looking is all we
# do, and looking means waiting for others. `run` takes the answer from here if it is there.
_ahead: dict[tuple[str, ...], subprocess.Popen[str] | str] = {}


def ask_ahead(questions: Iterable[tuple[str, ...]]) -> None:
    _ahead.update({argv: begin(argv) for argv in questions if argv not in _ahead})


def about_units(names: Iterable[str]) -> tuple[str, ...]:
    """The one question to systemd about all of these units; its answer has a block for each, in this order."""
    properties = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload"
    return ("systemctl", "show", "-p", properties, "--", *names)


def forget_ahead() -> None:
    """Something changes now, so no answer from before may be used."""
    for process in _ahead.values():
        if not isinstance(process, str):
            process.communicate()
    _ahead.clear()


def must(message: str, *argv: str) -> str:
    done = run(*argv)
    if done.returncode:
        raise Failure(
            f"{message}: `{' '.join(argv)}` exited with {done.returncode}", done.stdout + done.stderr
        )
    return done.stdout


def read_text(path: str) -> str:
    try:
        with open(at(path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
