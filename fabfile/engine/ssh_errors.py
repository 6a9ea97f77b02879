"""What paramiko and the socket say when a connection fails, in words for a person.

`nobody` tells "no SSH server behind this port", after which another port may be tried, from all that ends the search.
"""

from __future__ import annotations

import socket
from typing import Any

import paramiko
from paramiko.ssh_exception import (
    ChannelException,
    IncompatiblePeer,
    NoValidConnectionsError,
    PasswordRequiredException,
    ProxyCommandFailure,
)

from fabfile.engine.errors import LoginError, TransportError, UnreachableError

FORWARDING_PROHIBITED = 1  # RFC 4254, 5.1


def nobody(error: Exception, seconds: float) -> str:
    """A few words on why nobody seems to be there; empty if the error says something else."""
    if isinstance(error, NoValidConnectionsError):
        causes = {type(cause): cause for cause in error.errors.values()}
        if ConnectionRefusedError in causes:
            return "refused"
        return ", ".join(
            sorted({str(getattr(cause, "strerror", cause)).lower() for cause in causes.values()})
        )
    if isinstance(error, TimeoutError):
        return f"no answer in {seconds:.0f} s"
    if isinstance(error, ChannelException) and error.code != FORWARDING_PROHIBITED:
        return f"the jump host could not connect ({error.text.lower()})"
    if isinstance(error, ProxyCommandFailure):
        return "the ProxyCommand ended"
    if isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)):
        return "closed without an SSH banner"
    if isinstance(error, paramiko.SSHException) and "Timeout opening channel" in str(error):
        return f"the jump host got no answer in {seconds:.0f} s"
    # paramiko says "No existing session" when its wait for the banner ended before that of the thread that reads it.
    silent = ("SSH protocol banner", "No existing session")
    if isinstance(error, paramiko.SSHException) and any(words in str(error) for words in silent):
        return "closed or silent without an SSH banner"
    return ""


def unreachable(c: Any, silent: dict[int, str]) -> str:
    """The message when no port answered: port -> why not."""
    address = "" if c.host == c.original_host else f" ({c.host})"
    tried = ", ".join(f"port {port}: {why}" for port, why in silent.items())
    advice = "is the host up, and its port open in the provider's firewall?"
    if any("banner" in why for why in silent.values()):
        advice = "sshd also closes at once for a while after failed logins: wait a minute and run again"
    elif c.given_port:
        advice += " Without a port after -H the likely ones are tried"
    return f"{c.original_host}{address}: no SSH server answers ({tried}); {advice}"


def explained(c: Any, error: Exception) -> TransportError:
    """The error of ours for one that ends the search."""
    where, text = c.where(), str(error).rstrip(".")
    if isinstance(error, socket.gaierror):
        text = f"the name {c.host} is not known ({error.strerror})"
        return UnreachableError(f"{c.original_host}: {text}; check -H and the network of this machine")
    if isinstance(error, ChannelException):
        return UnreachableError(
            f"{where}: the jump host {c.gateway.host} forwards nothing (AllowTcpForwarding there)"
        )
    if isinstance(error, PasswordRequiredException):
        return LoginError(
            f"{where}: the key is encrypted; load it with ssh-add, or run with --prompt-for-passphrase"
        )
    if isinstance(error, paramiko.AuthenticationException):
        return LoginError(
            f"{where}: the login of {c.user} is refused ({text}); another user is -H user@{c.original_host}, "
            "another key is -i path, a password --prompt-for-login-password"
        )
    if "No authentication methods" in text:
        return LoginError(
            f"{where}: there is no key to log in with; name one with -i path or load it with ssh-add"
        )
    if isinstance(error, IncompatiblePeer):
        return LoginError(
            f"{where}: client and server share no algorithm ({text}); a newer paramiko may help (./setup)"
        )
    if isinstance(error, FileNotFoundError):
        return LoginError(f"{where}: the key file {error.filename} is not there; check -i and IdentityFile")
    if isinstance(error, paramiko.SSHException) and text.lower().startswith(
        ("invalid key", "not a valid", "encountered")
    ):
        return LoginError(
            f"{where}: a key file cannot be used ({text}); is it a private key, and the passphrase right?"
        )
    if isinstance(error, OSError):
        return UnreachableError(f"{where}: {error.strerror or text}; check the network of this machine")
    return TransportError(f"{where}: the SSH connection failed ({text or type(error).__name__}); run again")
