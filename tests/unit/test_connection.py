"""Who answers, and on which port: over real SSH to servers in this process (ssh_server.py)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from fabric import Config
from paramiko import SSHConfig

from fabfile.engine import host_records
from fabfile.engine.connection import VerifiedConnection
from fabfile.engine.errors import HostKeyError, LoginError, UnreachableError
from fabfile.engine.host_keys import HostKey, read
from fabfile.settings import Settings
from tests.unit.ssh_server import SshServer, ed25519_key, private_key, serving

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def server(home: Path) -> Iterator[SshServer]:
    with serving(home) as server:
        yield server


@pytest.fixture
def closed_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


class Terminal(io.StringIO):
    """Somebody sits there."""

    def isatty(self) -> bool:
        return True


def connection(
    host: str = HOST, ssh_config: str = "", port: int = 22, password: str = "login", **chosen: Any
) -> VerifiedConnection:
    login = {"password": password, "look_for_keys": False, "allow_agent": False}
    config = Config(
        ssh_config=SSHConfig.from_text(ssh_config), overrides={"connect_kwargs": login, "port": port}
    )
    c = VerifiedConnection(host, config=config, settings=Settings(**chosen))
    c.tell = lambda text: None
    return c


def at(server: SshServer, **options: Any) -> VerifiedConnection:
    return connection(f"{HOST}:{server.port}", **options)


def line(name: str, key: paramiko.PKey) -> str:
    return f"{name} {key.get_name()} {key.get_base64()}\n"


def know(home: Path, *lines: str) -> Path:
    path = home / ".ssh" / "known_hosts"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines))
    return path


def public(server: SshServer) -> HostKey:
    return HostKey(server.keys[0].get_name(), server.keys[0].get_base64())


def test_a_known_key_opens(server: SshServer, home: Path) -> None:
    know(home, line(f"[{HOST}]:{server.port}", server.keys[0]))
    with at(server) as c:
        c.open()
        assert c.is_connected
        assert c.host_key == public(server)


def test_an_unknown_host_is_refused_where_nobody_can_be_asked(server: SshServer, home: Path) -> None:
    with pytest.raises(HostKeyError) as error:
        at(server).open()
    for part in (public(server).fingerprint, "--accept-new", "KNOCKMAP_SSH_FINGERPRINT"):
        assert part in str(error.value)
    assert not (home / ".ssh").exists()


def test_an_accepted_key_is_appended_and_known_from_then_on(server: SshServer, home: Path) -> None:
    path = know(home, "# mine\n", "elsewhere ssh-ed25519 AAAA")
    path.chmod(0o640)
    at(server, ssh_accept_new=True).open()
    assert path.read_text() == "# mine\nelsewhere ssh-ed25519 AAAA\n" + line(
        f"[{HOST}]:{server.port}", server.keys[0]
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    at(server).open()
    assert server.logins == 2


@pytest.mark.parametrize(("answer", "kept"), [("y", True), ("yes", True), ("n", False), ("", False)])
def test_an_operator_is_shown_the_fingerprint_and_asked(
    server: SshServer, home: Path, monkeypatch: pytest.MonkeyPatch, answer: str, kept: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    if kept:
        at(server).open()
    else:
        with pytest.raises(HostKeyError):
            at(server).open()
    assert public(server).fingerprint in terminal.getvalue()
    assert (home / ".ssh" / "known_hosts").exists() == kept
    assert server.logins == 1 + kept  # it is closed while somebody thinks


def test_a_new_known_hosts_file_is_for_its_owner_only(server: SshServer, home: Path) -> None:
    at(server, ssh_accept_new=True).open()
    assert stat.S_IMODE((home / ".ssh" / "known_hosts").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / ".ssh").stat().st_mode) == 0o700


def test_a_changed_key_stops_everything_even_where_new_ones_are_accepted(
    server: SshServer, home: Path
) -> None:
    other = ed25519_key()
    path = know(home, line(f"[{HOST}]:{server.port}", other))
    before = path.read_text()
    with pytest.raises(HostKeyError) as error:
        at(server, ssh_accept_new=True).open()
    for part in (public(server).fingerprint, other.fingerprint, f"{path} line 1", "ssh-keygen -R"):
        assert part in str(error.value)
    assert path.read_text() == before


def test_the_operators_fingerprint_decides(server: SshServer) -> None:
    with pytest.raises(HostKeyError, match="ssh_fingerprint wants"):
        at(server, ssh_fingerprint=("SHA256:" + "x" * 43,)).open()
    at(server, ssh_fingerprint=(public(server).fingerprint,)).open()
    at(server).open()


def test_a_revoked_key_is_refused(server: SshServer, home: Path) -> None:
    name = f"[{HOST}]:{server.port}"
    know(home, line(name, server.keys[0]), "@revoked " + line("*", server.keys[0]))
    with pytest.raises(HostKeyError, match="revoked"):
        at(server).open()


def test_asks_for_the_type_of_key_that_is_known(home: Path) -> None:
    ecdsa = paramiko.ECDSAKey.generate()
    with serving(home, ed25519_key(), ecdsa) as server:
        know(home, line(f"[{HOST}]:{server.port}", ecdsa))
        with at(server) as c:
            c.open()
            assert c.host_key == HostKey(ecdsa.get_name(), ecdsa.get_base64())


def test_the_best_of_several_known_keys_is_asked_for(home: Path) -> None:
    ecdsa = paramiko.ECDSAKey.generate()
    with serving(home, ed25519_key(), ecdsa) as server:
        name = f"[{HOST}]:{server.port}"
        know(home, line(name, ecdsa), line(name, server.keys[0]))
        with at(server) as c:
            c.open()
            assert c.host_key == public(server)


def test_a_key_of_another_type_than_the_known_one_is_not_taken(server: SshServer, home: Path) -> None:
    know(home, line(f"[{HOST}]:{server.port}", paramiko.ECDSAKey.generate()))
    with pytest.raises(HostKeyError, match=r"not the known one.*ecdsa"):
        at(server, ssh_accept_new=True).open()


def test_ssh_configs_files_alias_and_strictness_are_honoured(server: SshServer, home: Path) -> None:
    know(home, line(f"[{HOST}]:{server.port}", ed25519_key()))  # wrong, and not to be read
    (home / "mine").write_text(line("box", server.keys[0]))
    config = f"Host *\n UserKnownHostsFile {home}/none %d/mine\n HostKeyAlias box\n StrictHostKeyChecking yes"
    at(server, ssh_config=config).open()
    (home / "mine").write_text("")
    with pytest.raises(HostKeyError, match="StrictHostKeyChecking yes"):
        at(server, ssh_config=config).open()
    at(server, ssh_config=config.replace("yes", "accept-new")).open()
    assert (home / "none").read_text() == line("box", server.keys[0])


def hashed(name: str) -> str:
    salt = b"s" * 20
    mac = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(mac).decode()}"


@pytest.mark.parametrize(
    ("hosts", "name", "expected"),
    [
        ("vps", "vps", True),
        ("vps,192.0.2.7", "192.0.2.7", True),
        ("vps", "[vps]:2222", False),
        ("[vps]:2222", "[vps]:2222", True),
        ("*.example.org", "a.example.org", True),
        ("*.example.org,!b.example.org", "b.example.org", False),
        ("v?s", "vps", True),
        ("[v*]:2222", "[vps]:2222", True),
        ("VPS", "vps", True),
        (hashed("[vps]:2222"), "[vps]:2222", True),
        (hashed("vps"), "other", False),
        ("|1|broken", "vps", False),
    ],
)
def test_known_hosts_names_are_matched_as_openssh_does(
    tmp_path: Path, hosts: str, name: str, expected: bool
) -> None:
    path = tmp_path / "known"
    path.write_text(
        f"# comment\n\nnonsense\nx ssh-ed25519 !!!\n@cert-authority {name} ssh-rsa AAAA\n{hosts} ssh-rsa AAAA me\n"
    )
    assert any(one.names(name) for one in read([path, tmp_path / "absent"])) is expected


# --- finding the port -------------------------------------------------------------------------------------------


def test_the_moved_port_is_found_by_the_setting_and_the_key_of_port_22(
    server: SshServer, home: Path, closed_port: int
) -> None:
    know(home, line(HOST, server.keys[0]))
    with connection(port=closed_port, ssh_port=server.port) as c:
        c.open()
        assert c.port == server.port


def test_a_fresh_host_costs_one_refused_connect(server: SshServer, closed_port: int) -> None:
    with connection(port=server.port, ssh_port=closed_port, ssh_accept_new=True) as c:
        assert c.candidates() == (closed_port, server.port)
        c.open()
        assert c.port == server.port


def test_the_recorded_port_and_key_come_first(server: SshServer, closed_port: int) -> None:
    host_records.record(HOST, [public(server)], [server.port, 22], old_port=22)
    with connection(ssh_port=closed_port) as c:
        assert c.candidates() == (server.port, 22, closed_port)
        c.open()
    host_records.forget(HOST)
    assert connection(ssh_port=closed_port).candidates() == (closed_port, 22)


def test_a_port_that_is_accepted_and_closed_at_once_is_nobody(server: SshServer, home: Path) -> None:
    know(home, line(HOST, server.keys[0]))
    with serving(home, banner=False) as proxy, connection(port=server.port, ssh_port=proxy.port) as c:
        c.open()
        assert c.port == server.port


def test_another_service_on_the_guessed_port_stops_the_search(server: SshServer, home: Path) -> None:
    with serving(home) as other:
        know(home, line(HOST, server.keys[0]))
        with pytest.raises(HostKeyError, match=f"another service answers on {other.port}"):
            connection(port=server.port, ssh_port=other.port).open()
    assert server.logins == 0


def test_a_refused_login_stops_the_search(server: SshServer, home: Path) -> None:
    with serving(home, *server.keys) as moved:
        know(home, line(HOST, server.keys[0]))
        with pytest.raises(LoginError, match=r"the login of .* is refused.*-i path"):
            connection(port=server.port, ssh_port=moved.port, password="wrong").open()
    assert server.logins == 0


@pytest.mark.parametrize(
    ("login", "message"),
    [
        ({}, "no key to log in with; name one with -i"),
        ({"key_filename": "{home}/locked"}, "the key is encrypted; load it with ssh-add"),
        ({"key_filename": "{home}/locked", "passphrase": "wrong"}, "and the passphrase right"),
        ({"key_filename": "{home}/junk"}, "a key file cannot be used"),
        ({"key_filename": "{home}/absent"}, "the key file .*/absent is not there"),
        ({"key_filename": "{home}/other"}, "the login of .* is refused"),
    ],
)
def test_what_is_wrong_with_a_key_is_said(
    server: SshServer, home: Path, login: dict[str, str], message: str
) -> None:
    (home / "junk").write_text("junk")
    (home / "locked").write_text(private_key(b"secret"))
    (home / "other").write_text(private_key())
    kwargs = {name: value.format(home=home) for name, value in login.items()}
    overrides = {"connect_kwargs": {"look_for_keys": False, "allow_agent": False, **kwargs}}
    config = Config(ssh_config=SSHConfig(), overrides=overrides)
    c = VerifiedConnection(f"{HOST}:{server.port}", config=config, settings=Settings(ssh_accept_new=True))
    c.tell = lambda text: None
    with pytest.raises(LoginError, match=message):
        c.open()


def test_an_explicit_port_is_the_only_one(server: SshServer, closed_port: int) -> None:
    with pytest.raises(UnreachableError, match=rf"port {closed_port}: refused"):
        connection(f"{HOST}:{closed_port}", ssh_port=server.port).open()
    assert server.logins == 0


def test_an_unknown_name_is_said_in_a_sentence() -> None:
    with pytest.raises(UnreachableError, match=r"the name no-such-host\.invalid is not known"):
        connection("no-such-host.invalid").open()


def test_ipv6_with_a_port_is_understood() -> None:
    c = connection("op@[2001:db8::1]:2222")
    assert (c.user, c.host, c.port, c.given_port) == ("op", "2001:db8::1", 2222, True)
    assert connection("2001:db8::1").host == "2001:db8::1"


# --- by way of others -------------------------------------------------------------------------------------------


def test_every_hop_is_verified(server: SshServer, home: Path) -> None:
    with serving(home) as jump:
        config = f"Host target\n HostName {HOST}\n ProxyJump {HOST}:{jump.port}\n"
        target = line(f"[{HOST}]:{server.port}", server.keys[0])
        know(home, target)
        with pytest.raises(HostKeyError, match=str(jump.port)):
            connection(f"target:{server.port}", ssh_config=config).open()
        know(home, target, line(f"[{HOST}]:{jump.port}", jump.keys[0]))
        with connection(f"target:{server.port}", ssh_config=config) as c:
            c.open()
            assert c.is_connected


def test_the_port_is_found_behind_a_jump_host(server: SshServer, home: Path, closed_port: int) -> None:
    with serving(home) as jump:
        config = f"Host target\n HostName {HOST}\n ProxyJump {HOST}:{jump.port}\n"
        know(home, line(HOST, server.keys[0]), line(f"[{HOST}]:{jump.port}", jump.keys[0]))
        with connection("target", ssh_config=config, port=server.port, ssh_port=closed_port) as c:
            c.open()
            assert c.port == server.port


def test_hops_are_taken_in_the_order_in_which_they_are_written() -> None:
    c = connection("target", ssh_config="Host target\n ProxyJump first,second:2200\n")
    assert (c.gateway.host, c.gateway.port, c.gateway.gateway.host) == ("second", 2200, "first")


def test_a_proxy_command_gets_the_port_that_is_meant(server: SshServer, home: Path) -> None:
    know(home, line(f"[{HOST}]:{server.port}", server.keys[0]))
    config = "Host *\n ProxyCommand exec 3<>/dev/tcp/%h/%p; cat <&3 & cat >&3\n"
    config = f"Host *\n ProxyCommand bash -c '{config.split('ProxyCommand ')[1].strip()}'\n"
    with at(server, ssh_config=config) as c:
        c.open()
        assert c.is_connected


def test_a_sibling_goes_the_same_way_to_another_port(server: SshServer, home: Path) -> None:
    with serving(home, *server.keys) as moved:
        know(home, line(HOST, server.keys[0]))
        with connection(port=server.port) as c, c.sibling(moved.port) as proof:
            proof.open()
            assert (proof.port, proof.user, proof.original_host) == (moved.port, c.user, HOST)


def test_no_setting_lets_a_sibling_accept_another_key(server: SshServer, home: Path) -> None:
    know(home, line(HOST, server.keys[0]))
    with serving(home) as other, connection(port=server.port, ssh_accept_new=True) as c:
        c.open()
        with pytest.raises(HostKeyError, match="not the known one"):
            c.sibling(other.port).open()
        with c.sibling(other.port, keys=[public(other)]) as proof:
            proof.open()
            assert proof.host_key == public(other)


def test_a_recorded_port_with_another_key_is_never_taken_for_a_new_host(server: SshServer) -> None:
    other = ed25519_key()
    host_records.record(HOST, [HostKey(other.get_name(), other.get_base64())], [server.port])
    with pytest.raises(HostKeyError, match=r"not the known one.*rm '.*json'"):
        at(server, ssh_accept_new=True).open()


def test_a_known_host_with_another_key_is_refused_whatever_we_recorded(server: SshServer, home: Path) -> None:
    host_records.record(HOST, [public(server)], [server.port])
    know(home, line(f"[{HOST}]:{server.port}", ed25519_key()))
    with pytest.raises(HostKeyError, match="not the known one"):
        at(server).open()


def test_a_jump_host_that_forwards_nothing_is_named(server: SshServer, home: Path) -> None:
    with serving(home, forwards=False) as jump:
        config = f"Host target\n HostName {HOST}\n ProxyJump {HOST}:{jump.port}\n"
        know(home, line(f"[{HOST}]:{jump.port}", jump.keys[0]))
        with pytest.raises(UnreachableError, match="forwards nothing"):
            connection("target", ssh_config=config, port=server.port).open()
