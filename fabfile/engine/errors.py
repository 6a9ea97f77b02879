"""What can go wrong on one host without being our bug. Each message is for a person: what, where, why, what to do.

HostError                     this host failed; the others go on                                    exit code 1
├── TransportError            the way to the target or back
│   ├── UnreachableError      nobody answers, under no port that could be right
│   ├── HostKeyError          it is not proven that the right host answers: everything stops
│   ├── LoginError            it is the right host, and it does not let us in
│   ├── SudoError             we are in, and do not become root
│   ├── BootstrapError        we are root, and there is no Python to run the agent
│   └── ConnectionLostError        it worked, and broke off
└── AgentError                the agent on the target crashed (its last lines are shown)
UsageError                    the command line or a setting cannot be; found before anything connects   exit code 2
"""

from __future__ import annotations


class HostError(Exception):
    """This host failed; the message says what was tried, why it did not work and what to do."""


class TransportError(HostError):
    """The way to the target, or back, does not work."""


class UnreachableError(TransportError):
    """No SSH server answers: refused, timed out, unknown name, or a port without an SSH banner."""


class HostKeyError(TransportError):
    """The host key is unknown, or is not the known one."""


class LoginError(TransportError):
    """The SSH server refuses the user, the key or the password, or speaks no algorithm that we do."""


class SudoError(TransportError):
    """The user cannot become root: no sudo, a password is wanted, or it is wrong."""


class BootstrapError(TransportError):
    """Python could not be installed on the target."""


class ConnectionLostError(TransportError):
    """The connection broke while something ran."""


class AgentError(HostError):
    """The agent ended without its last word."""


class UsageError(Exception):
    """A command line that cannot be meant; raised before anything connects."""
