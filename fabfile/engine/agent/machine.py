"""The machine as a whole: its root, and running programs on it."""

from __future__ import annotations

import subprocess

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
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=ENVIRONMENT
        )
    except (FileNotFoundError, PermissionError) as error:
        return subprocess.CompletedProcess(argv, 127, "", str(error))


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
