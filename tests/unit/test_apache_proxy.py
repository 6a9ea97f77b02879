"""What Apache is told, which files of an operator it is given, and what the programs on the target decide."""

from __future__ import annotations

import base64
import datetime
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from fabfile import certificates
from fabfile.apache_proxy import named, resources
from fabfile.engine.resources import Command, File, Link, Requirement, Resource, Service
from fabfile.settings import SettingError, Settings, load

FOLDER = Path(__file__).parents[2] / "files/apache_proxy"
NAMES = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,20}\Z")


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"knockmap_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


users, certificate, firewall = map(program, ("users", "certificate", "firewall"))


def plan(stack: Any = "embedded", **values: Any) -> list[Resource]:
    return resources(Settings(stack=stack, **values))


def site(**values: Any) -> str:
    found = next(r for r in plan(**values) if r.name == "/etc/apache2/sites-available/zz-knockmap.conf")
    assert isinstance(found, File) and found.text is not None
    return found.text


# --- the site ---------------------------------------------------------------------------------------------------


def test_only_the_page_is_proxied_and_the_public_one_where_it_is_wanted() -> None:
    proxied = re.compile(r"^    ProxyPass (\S+) (\S+) ", re.M)
    page = ("/map/", "http://127.0.0.1:8722/map/")
    assert proxied.findall(site()) == [page]
    assert proxied.findall(site(public_page=True)) == [page, ("/public/", "http://127.0.0.1:8722/public/")]
    assert "http://127.0.0.1:9999/map/" in site(dashboard_port=9999)


def test_with_the_elastic_stack_kibana_is_behind_and_nothing_else() -> None:
    proxied = re.findall(r"^    ProxyPass (\S+) (\S+) ", site(stack="elastic", public_page=True), re.M)
    assert proxied == [("/kibana/", "http://127.0.0.1:5601/kibana/")]
    assert "RequestHeader unset Authorization" in site(stack="elastic")
    assert '<Location "/kibana/">' in site(stack="elastic") and "/map" not in site(stack="elastic")
    (config,) = (r for r in plan("elastic") if r.name == "/etc/knockmap/apache.json")
    assert isinstance(config, File) and '"page": "/kibana/"' in (config.text or "")


def test_hsts_is_sent_only_where_browsers_trust_the_certificate() -> None:
    acme = {"apache_certificate": "acme", "apache_names": ("a.example",), "apache_acme_email": "a@a.example"}
    assert "Strict-Transport-Security" not in site()
    assert "Strict-Transport-Security" in site(**acme)


def test_apache_reads_nothing_that_did_not_pass_its_own_test() -> None:
    files = {r.path: r.verify for r in plan() if isinstance(r, File) and r.path.startswith("/etc/apache2")}
    assert (
        files == {path: ("apache2ctl", "-t", "-c", f"Include {path}") for path in files} and len(files) == 2
    )
    order = plan()
    for available, enabled in zip(sorted(files), ("conf-enabled", "sites-enabled"), strict=True):
        link = next(r for r in order if isinstance(r, Link) and f"/{enabled}/zz-knockmap" in r.path)
        assert order.index(next(r for r in order if r.name == available)) < order.index(link)


def test_our_site_comes_after_all_others() -> None:
    ours = [r.path for r in plan() if isinstance(r, Link) and "/sites-enabled/" in r.path]
    assert ours == ["/etc/apache2/sites-enabled/zz-knockmap.conf"]
    (gone,) = (r for r in plan() if isinstance(r, Command) and r.argv[0] == "rm")
    assert gone.when == ("apache_sites", "ours")


def test_apache_is_reloaded_and_restarted_only_to_begin_with_acme() -> None:
    (service,) = (r for r in plan() if isinstance(r, Service) and r.unit == "apache2.service")
    reloads = {r.name for r in service.reload_on}
    assert service.restart_on == () and "/etc/apache2/sites-available/zz-knockmap.conf" in reloads


def test_who_else_holds_the_ports_is_asked_before_everything() -> None:
    assert plan()[0] == Requirement("web_ports")


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("apache_certificate", {"apache_certificate": "letsencrypt"}),
        ("apache_certificate_file", {"apache_certificate": "files"}),
        ("apache_key_file", {"apache_key_file": __file__}),
        ("apache_certificate_file", {"apache_certificate_file": "/nonexistent.pem"}),
        ("apache_names", {"apache_certificate": "acme", "apache_acme_email": "a@b.example"}),
        (
            "apache_names",
            {"apache_certificate": "acme", "apache_acme_email": "a@b.example", "apache_names": ["192.0.2.1"]},
        ),
        ("apache_names", {"apache_names": ["a b"]}),
        ("apache_names", {"apache_names": ['x"y']}),
        ("apache_acme_email", {"apache_certificate": "acme", "apache_names": ["a.example"]}),
        ("apache_acme_url", {"apache_acme_url": "http://a.example"}),
        ("web_user", {"web_user": "a:b"}),
        ("web_user", {"web_user": "-"}),
        ("public_page", {"public_page": "perhaps"}),
        ("dashboard_port", {"dashboard_port": "80"}),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=rf"^{name} = "):
        load(given, {})


def made(folder: Path, name: str, *options: str) -> tuple[str, str]:
    paths = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", "/CN=x.example", "-out", paths[0], "-keyout", paths[1], *options]
    subprocess.run(argv, capture_output=True, check=True)
    return paths


def test_own_files_are_looked_through(tmp_path: Path) -> None:
    one, other = made(tmp_path, "one"), made(tmp_path, "other")
    assert certificates.look_through(*one) is False
    with pytest.raises(SettingError, match=r"apache_key_file .* not the key"):
        certificates.look_through(one[0], other[1])
    with pytest.raises(SettingError, match=r"apache_certificate_file .* no certificate"):
        certificates.look_through(one[1], one[1])
    with pytest.raises(SettingError, match=r"apache_key_file .* no private key"):
        certificates.look_through(one[0], one[0])


def test_an_own_certificate_that_ended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"apache_certificate_file .* ended on \d{4}-\d\d-\d\d"):
        certificates.look_through(*made_long_ago(tmp_path))


def made_long_ago(folder: Path) -> tuple[str, str]:
    """openssl refuses to make one that has ended."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    begins = datetime.datetime(2020, 1, 1)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, begins.replace(year=2021))
    (folder / "old.pem").write_bytes(built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "old.key").write_bytes(plain)
    return str(folder / "old.pem"), str(folder / "old.key")


def test_a_key_that_asks_for_a_password_is_refused(tmp_path: Path) -> None:
    chain, key = made(tmp_path, "one")
    locked = str(tmp_path / "locked.key")
    argv = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked]
    subprocess.run(argv, capture_output=True, check=True)
    with pytest.raises(SettingError, match=r"apache_key_file .* has a password"):
        certificates.look_through(chain, locked)


# --- users ------------------------------------------------------------------------------------------------------


def replaced(known: list[str], header: str) -> bool:
    """What Apache's mod_headers makes of a header, by the pattern that it is given."""
    pattern = re.search(r'edit Authorization "(.*)" "(.*)" early', users.conf(dict.fromkeys(known, "")))
    assert pattern
    return re.sub(pattern[1], pattern[2], header) != header


@given(known=st.lists(NAMES, max_size=4), name=NAMES, password=st.text(max_size=20))
def test_exactly_the_names_that_apache_knows_reach_its_file(
    known: list[str], name: str, password: str
) -> None:
    header = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    assert replaced(known, header) == (name not in known)
    assert not replaced([*known, name], header) and not replaced([name], header.replace("Basic", "bAsIc "))


@pytest.mark.parametrize(
    "header", ["Basic", "Basic !!!", "Bearer YTpi", "Basic " + "A" * 4000, "Basic YTpi, Basic YTpi"]
)
def test_what_is_no_login_of_a_user_is_nobodys(header: str) -> None:
    assert replaced(["knockmap"], header)


# --- names and certificate --------------------------------------------------------------------------------------


def test_names_are_those_of_the_host_and_the_given_ones_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "own", lambda: ["vps.example", "192.0.2.1", "2001:db8::1"])
    config = {"names": ["VPS.example", "2001:DB8:0:0::1", "own"], "certificate": "self-signed"}
    found = certificate.names(config)
    assert found == ["vps.example", "2001:db8::1", "192.0.2.1"]
    text = certificate.names_conf(found)
    assert "ServerName vps.example\nServerAlias [2001:db8::1]\nServerAlias 192.0.2.1\n" in text


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("vps.example", "vps.example"),
        ("VPS.example:8080", "VPS.example"),
        ("[2001:db8::1]:80", "[2001:db8::1]"),
        ("evil.example", None),
        ("vps.example.evil.example", None),
        ("vpsXexample", None),
        ("vps.example/x", None),
        ("vps.example:80@evil.example", None),
    ],
)
def test_only_a_name_of_ours_is_put_into_a_redirect(host: str, taken: str | None) -> None:
    text = certificate.names_conf(["vps.example", "2001:db8::1"])
    pattern = re.search(r'SetEnvIfNoCase Host "(.*)" KNOCKMAP_HOST=\$1', text)
    assert pattern
    found = re.match(pattern[1], host, re.I)
    assert (found[1] if found else None) == taken


def test_a_certificate_is_made_for_all_names_and_renewed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = str(tmp_path / "self-signed.pem")
    monkeypatch.setattr(certificate, "PEM", pem)
    config = {"names": [], "certificate": "self-signed"}
    names = ["vps.example", "192.0.2.1", "2001:db8::1"]
    assert not certificate.good(config, names)
    certificate.make(names)
    assert certificate.good(config, names) and certificate.holds(pem, names[::-1], 89)
    assert not certificate.good(config, names[:2])
    assert certificate.lasts(pem, 89) and not certificate.lasts(pem, 91)
    assert Path(pem).stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(certificate, "DAYS", 29)
    certificate.make(names)
    assert not certificate.good(config, names)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (("own",), ("10.0.0.5", "own")),
        (("map.example", "own"), ("map.example", "10.0.0.5", "own")),
        (("map.example",), ("map.example",)),
    ],
)
def test_the_name_that_the_operator_wrote_stays_first(
    chosen: tuple[str, ...], names: tuple[str, ...]
) -> None:
    c = SimpleNamespace(host="10.0.0.5")
    assert named(c, Settings(apache_names=chosen)).apache_names == names


# --- the firewall -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ("", [80, 443]),
        ("### tuple ### allow tcp 443 0.0.0.0/0 any 0.0.0.0/0 in\n", [80]),
        ("### tuple ### allow tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 Apache%20Full - in\n", []),
        (
            "### tuple ### deny tcp 80 0.0.0.0/0 any 0.0.0.0/0 in\n### tuple ### limit any 443 ::/0 any ::/0 in\n",
            [80],
        ),
        ("### tuple ### allow tcp 80,443 0.0.0.0/0 any 10.0.0.0/8 in\n", [80, 443]),
        ("### tuple ### allow tcp 8080,8443 0.0.0.0/0 any 0.0.0.0/0 in\n", [80, 443]),
    ],
)
def test_ufw_is_asked_only_for_what_it_does_not_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str, wanted: list[int]
) -> None:
    monkeypatch.setattr(firewall, "UFW", str(tmp_path))
    monkeypatch.setattr(firewall, "UFW_PROGRAM", "/bin/sh")
    (tmp_path / "user.rules").write_text(rules)
    assert [port for port in (80, 443) if firewall.ufw_wants(port)] == wanted
    monkeypatch.setattr(firewall, "UFW_PROGRAM", str(tmp_path / "ufw"))
    assert not firewall.ufw_wants(80), "a ufw that was removed leaves its files behind"
