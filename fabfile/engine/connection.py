"""A Fabric connection that knows who answers, and finds the port on which the host is to be found.

Fabric takes any host key in silence and reads no known_hosts; `VerifiedConnection` replaces it everywhere, also for
the hops of a ProxyJump. Where sshd has moved away from 22 by itself, the ports to try are: those recorded for the
host, `settings.ssh_port`, then what -H and ssh_config say. The next one is tried only where nobody answers;
a wrong host key or a refused login ends the search.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fabric  # type: ignore[import-untyped]
import paramiko

from fabfile.engine import host_keys, host_records, ssh_errors
from fabfile.engine.errors import HostKeyError, TransportError, UnreachableError
from fabfile.engine.host_keys import HostKey, Line
from fabfile.engine.report import terminal
from fabfile.settings import Settings

# How long a port that may be the right one has for its answer, and one that must be; seconds.
GUESS_SECONDS = 4
CONNECT_SECONDS = 10

# What paramiko logs (also of failures that we explain ourselves) is for --debug only.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class _UnknownKeyError(Exception):
    """An unknown host's key, for the question that is asked with the connection closed again."""

    def __init__(self, key: HostKey) -> None:
        super().__init__(key.fingerprint)
        self.key = key


class _Judge(paramiko.MissingHostKeyPolicy):
    """Hands every host key to the connection: paramiko is told of no known hosts, so that it asks us for each."""

    def __init__(self, judge: Callable[[HostKey], None]) -> None:
        self.judge = judge

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        self.judge(HostKey(key.get_name(), key.get_base64()))


class VerifiedConnection(fabric.Connection):  # type: ignore[misc] # fabric has no types
    """`fabric.Connection` with verified host keys. Without `port` (or `host:port`) it finds the port when it opens.

    `settings` gives the port to guess and what to do with an unknown host; `tell(text)` shows a notice to the
    operator. `host_key` is the one that was shown; with `pinned` keys no other is taken, whoever says so. Raises the
    errors of `errors.TransportError` instead of paramiko's.
    """

    # Named here since Invoke's contexts turn unknown attributes into configuration.
    settings: Settings
    tell: Any = None
    screen: Any = None
    host_key: HostKey | None = None
    pinned: tuple[HostKey, ...] = ()
    hop: bool = False
    many: bool = False  # other hosts are worked on in the same run
    given_port: bool = False
    attempt_seconds: float = CONNECT_SECONDS
    seconds: float = CONNECT_SECONDS
    connect_timeout: Any
    connect_kwargs: Any

    def __init__(self, host: str, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        self._set(settings=settings or Settings())
        super().__init__(host, *args, **kwargs)
        port = kwargs.get("port") or self.derive_shorthand(host)["port"]
        self._set(given_port=bool(port), host_key=None, hop=False, screen=None)
        self._set(tell=lambda text: print(text, file=sys.stderr))
        # Fabric knows two places for this and refuses to be given both.
        timeout = self.connect_timeout or self.connect_kwargs.pop("timeout", None)
        self._set(attempt_seconds=float(timeout or CONNECT_SECONDS))
        self.connect_timeout = None

    # --- what is known before connecting ------------------------------------------------------------------------

    def derive_shorthand(self, host_string: str) -> dict[str, Any]:
        """Fabric's user@host:port, and `[2001:db8::1]:2222`, which it lacks."""
        user, _, rest = host_string.rpartition("@")
        if not rest.startswith("["):
            return dict(super().derive_shorthand(host_string))
        host, _, port = rest[1:].partition("]")
        return {"user": user or None, "host": host, "port": int(port[1:]) if port else None}

    def resolve_connect_kwargs(self, given: dict[str, Any] | None) -> dict[str, Any]:
        """Keys of -i, of the caller and of ssh_config. Unlike Fabric's, one host's keys do not leak to the next."""
        configured = dict(self.config.connect_kwargs)
        kwargs = {**configured, **(given or {})}
        files = [
            *_strings(configured.get("key_filename")),
            *_strings((given or {}).get("key_filename")),
            *(path for path in self.ssh_config.get("identityfile", []) if Path(path).expanduser().is_file()),
        ]
        kwargs.pop("key_filename", None)
        if files:
            kwargs["key_filename"] = list(dict.fromkeys(files))
        if self.ssh_config.get("identitiesonly", "no") == "yes":
            # Each refused key counts for sshd's MaxAuthTries and its penalties.
            kwargs.update(allow_agent=False, look_for_keys=False)
        return kwargs

    def get_gateway(self) -> Any:
        """The last hop of ProxyJump, verified like the target; or a ProxyCommand."""
        hops = [hop for hop in str(self.ssh_config.get("proxyjump", "none")).split(",") if hop != "none"]
        gateway = None
        for hop in hops:
            if self.derive_shorthand(hop)["host"] == self.original_host:
                return None  # a `Host *` that holds for the jump host as well
            extra: dict[str, Any] = {} if gateway is None else {"gateway": gateway}
            gateway = VerifiedConnection(hop, config=self.config.clone(), settings=self.settings, **extra)
            gateway._set(hop=True)
        if gateway is not None:
            return gateway
        return self.ssh_config.get("proxycommand") or self.config.gateway

    def candidates(self) -> tuple[int, ...]:
        """The ports to try, the likeliest first."""
        if self.given_port:
            return (self.port,)
        recorded = host_records.recorded(self.original_host).ports
        guess = () if self.hop else (self.settings.ssh_port,)
        return tuple(dict.fromkeys((*recorded, *guess, self.port)))

    def key_name(self, port: int) -> str:
        return host_keys.lookup_name(self.host, port, self.ssh_config.get("hostkeyalias"))

    def known_hosts_files(self) -> tuple[list[Path], list[Path]]:
        tokens = {
            "%d": str(Path.home()),
            "%h": self.host,
            "%n": self.original_host,
            "%k": self.ssh_config.get("hostkeyalias", self.original_host),
            "%u": getpass.getuser(),
            "%r": self.user,
            "%%": "%",
        }
        return host_keys.files(self.ssh_config, tokens)

    def known_keys(self, port: int) -> tuple[list[Line], list[HostKey]]:
        """(lines of known_hosts that name this host and port, keys that vouch for it otherwise).

        The others are those of the operator's record, and those that known_hosts has for port 22: sshd keeps its
        keys when its port moves.
        """
        user, system = self.known_hosts_files()
        lines = host_keys.read([*user, *system])
        named = [line for line in lines if line.names(self.key_name(port))]
        plain = [line.key for line in lines if line.names(self.key_name(22)) and not line.revoked]
        return named, [*host_records.recorded(self.original_host).keys, *plain]

    # --- opening ------------------------------------------------------------------------------------------------

    def open(self) -> Any:
        """Connect and log in, once. Raises UnreachableError, HostKeyError or LoginError."""
        if self.is_connected:
            return None
        ports = self.candidates()
        silent: dict[int, str] = {}
        for port in ports:
            last = port == ports[-1]
            try:
                return self._open_at(port, self.attempt_seconds if last else GUESS_SECONDS)
            except _NobodyThereError as nobody:
                silent[port] = str(nobody)
        raise UnreachableError(ssh_errors.unreachable(self, silent))

    def _open_at(self, port: int, seconds: float) -> Any:
        self.port = port
        try:
            with self._translated(seconds):
                return self._attempt(seconds)
        except _UnknownKeyError as unknown:
            self._ask(unknown.key)
            self._keep(unknown.key)
        with self._translated(self.attempt_seconds):
            return self._attempt(self.attempt_seconds)

    def _attempt(self, seconds: float) -> Any:
        self._set(seconds=seconds)
        named, vouching = self.known_keys(self.port)
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_Judge(self._judge))
        self.client = client
        types = [key.type for key in self.pinned or (*(line.key for line in named), *vouching)]
        kwargs = dict(self.connect_kwargs)
        self.connect_kwargs.update(
            transport_factory=_preferring(types), timeout=seconds, banner_timeout=max(seconds, GUESS_SECONDS)
        )
        try:
            return super().open()
        except BaseException:
            client.close()
            raise
        finally:
            self.connect_kwargs = kwargs
            if self.is_connected:
                self.transport.set_keepalive(15)

    def open_gateway(self) -> Any:
        """As Fabric's, but a ProxyCommand gets the port that we mean in its %p, and a hop's failure names the hop."""
        if not isinstance(self.gateway, str):
            self.gateway.open()
            target = (self.host, self.port)
            return self.gateway.transport.open_channel("direct-tcpip", target, ("", 0), timeout=self.seconds)
        command = _proxy_command(self.config.base_ssh_config, self.original_host, self.port) or self.gateway
        for token, text in (("%h", self.host), ("%p", str(self.port)), ("%r", self.user), ("%%", "%")):
            command = command.replace(token, text)
        return paramiko.ProxyCommand(command)

    # --- the host key -------------------------------------------------------------------------------------------

    def _judge(self, key: HostKey) -> None:
        """Return if this key is the host's; raise HostKeyError if it is not, _UnknownKeyError if nobody can say."""
        self._set(host_key=key)
        if self.pinned:
            if key not in self.pinned:
                raise HostKeyError(self._changed(key, [], list(self.pinned)))
            return
        named, vouching = self.known_keys(self.port)
        if any(line.key == key and line.revoked for line in named):
            raise HostKeyError(f"{self.where()}: its host key {key} is revoked in known_hosts; not connected")
        known = [line for line in named if not line.revoked]
        if any(line.key == key for line in known):
            return
        # As OpenSSH, which knows nothing of our record: a line with another key of this type is a changed key.
        if key in vouching and not any(line.key.type == key.type for line in known):
            return
        recorded = self.port in host_records.recorded(self.original_host).ports
        if known or recorded or (vouching and not self.given_port):
            raise HostKeyError(self._changed(key, known, vouching))
        self._meet(key)

    def _meet(self, key: HostKey) -> None:
        """Take an unknown host's key by a setting, else raise."""
        strict = self.ssh_config.get("stricthostkeychecking", "ask").lower()
        pinned = self.settings.ssh_fingerprint
        if pinned and key.fingerprint not in pinned:
            wanted = ", ".join(pinned)
            raise HostKeyError(
                f"{self.where()}: it shows {key}, but ssh_fingerprint wants {wanted}; not connected"
            )
        if pinned or self.settings.ssh_accept_new or strict in ("accept-new", "no", "off"):
            self._keep(key)
        elif strict == "yes":
            raise HostKeyError(f"{self.where()}: {_UNKNOWN.format(key=key)} (StrictHostKeyChecking yes)")
        else:
            raise _UnknownKeyError(key)

    def _keep(self, key: HostKey) -> None:
        file = self._own_file()
        host_keys.append(file, self.key_name(self.port), key)
        self.tell(f"{self.original_host}: new host key {key}, kept in {_short(file)}")

    def _own_file(self) -> Path:
        user, _ = self.known_hosts_files()
        return user[0] if user else Path("~/.ssh/known_hosts").expanduser()

    def _changed(self, key: HostKey, known: list[Line], vouching: list[HostKey]) -> str:
        keys = [line.key for line in known] or vouching
        same = [other for other in keys if other.type == key.type]
        sources = [f"{line.path} line {line.number}" for line in known]
        record = host_records.path(self.original_host)
        if not known:
            sources = [str(record)] if record.is_file() else ["known_hosts, for port 22"]
        if not known and self.port not in (22, *host_records.recorded(self.original_host).ports):
            advice = (
                f"if another service answers on {self.port}, name the right port (-H {self.original_host}:22) "
                "and choose another KNOCKMAP_SSH_PORT"
            )
        else:
            advice = (
                f"if the machine was installed anew, remove the old key (ssh-keygen -R '{self.key_name(self.port)}'"
                + (f"; rm '{record}'" if record.is_file() else "")
                + ") and run again; else somebody is in between"
            )
        return (
            f"{self.where()}: the host key is not the known one, so nothing was sent. It shows {key}; known is "
            f"{', '.join(str(other) for other in dict.fromkeys(same or keys))} ({', '.join(dict.fromkeys(sources))}); {advice}"
        )

    def _ask(self, key: HostKey) -> None:
        """Show the fingerprint and let the operator decide. The connection is closed: sshd does not wait for people."""
        where = self.where()
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise HostKeyError(f"{where}: {_UNKNOWN.format(key=key)}")
        with terminal:
            sys.stderr.write(
                f"\r\x1b[K{where} is unknown: {_short(self._own_file())} has no key for it.\n"
                f"It shows {key}.\n"
                f"Compare with the provider's console: ssh-keygen -lf /etc/ssh/ssh_host_{_stem(key.type)}_key.pub\n"
                "Is it the right one? [y/N] "
            )
            sys.stderr.flush()
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                raise HostKeyError(f"{where}: its host key was not accepted, so nothing was done")

    # --- errors -------------------------------------------------------------------------------------------------

    def where(self) -> str:
        port = "" if self.port == 22 else f" port {self.port}"
        address = "" if self.host == self.original_host else f" ({self.host})"
        return f"{self.original_host}{address}{port}"

    @contextlib.contextmanager
    def _translated(self, seconds: float) -> Iterator[None]:
        """paramiko's and the socket's exceptions in our words; what may mean "wrong port" becomes _NobodyThereError."""
        try:
            yield
        except (TransportError, _UnknownKeyError, _NobodyThereError, KeyboardInterrupt):
            raise
        except (OSError, EOFError, paramiko.SSHException, ValueError) as error:
            if why := ssh_errors.nobody(error, seconds):
                raise _NobodyThereError(why) from error
            raise ssh_errors.explained(self, error) from error

    def sibling(self, port: int, keys: Iterable[HostKey] = ()) -> VerifiedConnection:
        """A new connection, not yet open, to the same host by the same way and user, on exactly this port.

        There one of `keys` must answer, or one that is known of the host by now, such as the one that this connection
        was shown: nobody is asked about another one.
        """
        host = f"[{self.original_host}]" if ":" in self.original_host else self.original_host
        config, settings = self.config.clone(), self.settings
        options = {"user": self.user, "port": port, "gateway": self.gateway or False}
        other = VerifiedConnection(host, config=config, settings=settings, **options)
        other.connect_kwargs = dict(self.connect_kwargs)
        named, vouching = self.known_keys(self.port)
        known = [line.key for line in named if not line.revoked]
        shown = [self.host_key] if self.host_key else []
        other._set(pinned=tuple(dict.fromkeys((*shown, *keys, *known, *vouching))))
        other._set(tell=self.tell, screen=self.screen)
        other._set(attempt_seconds=self.attempt_seconds)
        return other


class _NobodyThereError(Exception):
    """No SSH server on this port, as far as one can tell: the next one may be tried."""


_UNKNOWN = (
    "the host is unknown; it shows {key}. Compare this with the provider's console, then run in a terminal and say y, "
    "or add --accept-new, or set KNOCKMAP_SSH_FINGERPRINT to it"
)


def connect(
    host: str, *, config: Any = None, settings: Settings | None = None, user: str | None = None
) -> VerifiedConnection:
    """An open connection to `host` (as written after -H), on the port where it is found."""
    c = VerifiedConnection(host, user=user, config=config, settings=settings)
    c.open()
    return c


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value or ()]


def _short(path: Path) -> str:
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if str(path).startswith(home + os.sep) else str(path)


def _stem(key_type: str) -> str:
    return next((stem for stem in ("ed25519", "ecdsa", "rsa") if stem in key_type), "*")


def _preferring(types: list[str]) -> Callable[..., paramiko.Transport]:
    """A transport that asks for host keys of these types first: a server may have several, and we know only these."""
    wanted = [name for type in types for name in (_RSA if type == "ssh-rsa" else (type,))]

    def make(sock: Any, **kwargs: Any) -> paramiko.Transport:
        if isinstance(sock, socket.socket):
            # paramiko leaves Nagle's algorithm on: 40 ms lost wherever two small packets follow each other.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(sock, **kwargs)
        options = transport.get_security_options()
        known = [name for name in options.key_types if name in wanted]
        options.key_types = [*known, *(name for name in options.key_types if name not in known)]
        return transport

    return make


_RSA = ("rsa-sha2-512", "rsa-sha2-256")


def _proxy_command(ssh_config: Any, host: str, port: int) -> str:
    """ssh_config's ProxyCommand for `host` with %p as `port`: the first value that ssh_config names for Port wins."""
    config = paramiko.SSHConfig.from_text(f"Host *\n  Port {port}\n")
    blocks: list[Any] = config.__dict__["_config"]
    blocks.extend(ssh_config.__dict__["_config"])
    return str(config.lookup(host).get("proxycommand") or "")
