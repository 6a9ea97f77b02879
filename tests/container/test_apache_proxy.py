"""Apache in front of the page: what a browser gets, what a guesser does not, and what other sites notice (nothing)."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from box import Box, images
from testinfra.host import Host

from tests.container.conftest import ROOT, Fab, boxes
from tests.container.web import Web, ask, basic

FabCommand = Callable[..., Fab]
HERE = Path(__file__).parent
STATE = "/var/lib/knockmap/apache"
SITE = "/etc/apache2/sites-available/zz-knockmap.conf"


@pytest.fixture(scope="module")
def box(worker_id: str, release: str) -> Iterator[Box]:
    """With a double of the dashboard behind Apache."""
    with boxes(worker_id) as make:
        made = make(release)
        start_double(made)
        yield made


def start_double(box: Box) -> None:
    source = (HERE / "dashboard_double.py").read_text()
    assert box.run(["systemd-run", "-q", "--unit", "double", "python3", "-c", source])[0] == 0


def shell(box: Box, script: str) -> str:
    status, out = box.run(["sh", "-c", script])
    assert status == 0, out
    return out


def login_of(fab: FabCommand, box: Box) -> tuple[str, str]:
    shown = fab(box, "credentials", "--json")
    assert shown.rc == 0, shown.out
    (user, *_) = json.loads(shown.out)["users"]
    return user["user"], user["password"]


@pytest.fixture
def login(fab: FabCommand, box: Box) -> tuple[str, str]:
    return login_of(fab, box)


@pytest.fixture
def calm(box: Box) -> None:
    """A test that fails to log in shall not pay for those before it: the counts begin anew with Apache's processes."""
    shell(box, "systemctl reload apache2; sleep 1")


# --- from a fresh box to a page ---------------------------------------------------------------------------------


def test_check_on_a_fresh_box_writes_nothing(fab: FabCommand, box: Box) -> None:
    checked = fab(box, "apache-proxy", "--check")
    assert checked.rc == 0 and "would change package:apache2,openssl" in checked.out
    assert (
        box.run(["test", "-e", "/etc/apache2"])[0] == 1 and box.run(["test", "-e", "/etc/knockmap"])[0] == 1
    )


def test_a_second_run_changes_nothing(fab: FabCommand, box: Box) -> None:
    done = fab(box, "apache-proxy")
    assert done.rc == 0, done.out
    assert fab(box, "apache-proxy").last.endswith("ok, 0 changed, 0 failed, 0 skipped")


def test_credentials_lead_to_the_page(fab: FabCommand, box: Box) -> None:
    shown = fab(box, "credentials")
    words = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert words["URL"] == f"https://{box.address}/map/"
    assert ask(box, "/map/x?y=%20z", (words["User"], words["Password"])).status == 200
    der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((box.address, 443)))
    assert words["Certificate"].split()[-1].replace(":", "").lower() == hashlib.sha256(der).hexdigest()


def test_the_password_is_long_and_for_root_alone(box: Box, login: tuple[str, str]) -> None:
    assert len(login[1]) * 5 >= 128 - 4  # Base32
    shown = shell(
        box,
        f"stat -c '%a %U' /var/lib/knockmap/secrets /var/lib/knockmap/secrets/*; stat -c '%a %G' {STATE}/users",
    )
    assert shown.splitlines() == ["700 root", "600 root", "640 www-data"]
    assert "$2y$05$" in shell(box, f"cat {STATE}/users")


HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "server": "Apache",
}


def test_headers_stand_once_on_every_answer(box: Box, login: tuple[str, str]) -> None:
    page, refused, missing = ask(box, "/map/", login), ask(box, "/map/"), ask(box, "/elsewhere")
    assert (page.status, refused.status, missing.status) == (200, 401, 404)
    for answer in (page, refused, missing):
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert "camera=()" in answer.headers["permissions-policy"]
        # A browser would hold to it, and lock its user out when the certificate is made anew.
        assert "strict-transport-security" not in answer.headers
    assert page.headers["content-security-policy"] == "default-src 'self'"
    assert "frame-ancestors 'none'" in refused.headers["content-security-policy"]


def test_what_is_behind_never_sees_the_login(box: Box, login: tuple[str, str]) -> None:
    seen = json.loads(ask(box, "/map/", login, Proxy="http://evil.example").body)["headers"]
    assert not {"authorization", "proxy"} & {name.lower() for name in seen}
    assert seen["X-Forwarded-For"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/public/",
        "/server-status",
        "/map",
        "/mapx",
        "/map/../public/",
        "/MAP/",
        "/map%2f",
        "/index.html",
    ],
)
def test_nothing_but_the_page_is_proxied(box: Box, login: tuple[str, str], path: str) -> None:
    answer = ask(box, path, login)
    assert answer.status in (302, 404) and '"method"' not in answer.body
    assert answer.status == 404 or answer.headers["location"] == f"https://{box.address}/map/"


@pytest.mark.parametrize(
    "path", ["/map/", "//map/", "/%6dap/", "/./map/", "/public/../map/", "/map/%2e%2e/map/", "/map/;x"]
)
def test_the_page_has_no_way_in_without_a_login(box: Box, path: str) -> None:
    assert ask(box, path).status in (401, 404)
    assert ask(box, path, "knockmap").status in (401, 404)


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize("method", ["TRACE", "POST", "PUT", "DELETE", "OPTIONS"])
def test_the_page_is_only_read(box: Box, port: int, method: str) -> None:
    assert ask(box, "/map/", port=port, method=method).status == 405


@pytest.mark.parametrize(
    ("path", "host", "to"),
    [
        ("/a%20b/%C3%BC?c=d%26e&f=%20", "{address}", "{address}"),
        ("/map/?q=1", "{name}:80", "{name}"),
        ("/x%3Fy/%0d%0aX:%20y", "{address}", "{address}"),
        ("/p?q", "evil.example", "{address}"),
        ("/p", "{address}.evil.example", "{address}"),
    ],
)
def test_http_is_sent_to_https_for_good_with_host_path_and_query(
    box: Box, path: str, host: str, to: str
) -> None:
    names = {"address": box.address, "name": box.name}
    answer = ask(box, path, port=80, Host=host.format(**names))
    assert (answer.status, answer.headers["location"]) == (301, f"https://{to.format(**names)}{path}")


def test_acme_challenges_are_answered_over_http(box: Box) -> None:
    folder = "/var/www/html/.well-known/acme-challenge"
    shell(box, f"mkdir -p {folder}; echo right >{folder}/token")
    answer = ask(box, "/.well-known/acme-challenge/token", port=80)
    assert (answer.status, answer.body) == (200, "right\n")
    shell(box, "rm -r /var/www/html/.well-known")


def test_answers_are_compressed_unless_the_page_did_it_already(box: Box, login: tuple[str, str]) -> None:
    web = Web(box)
    sizes = {}
    for path in ("/map/plain", "/map/packed"):
        web.connection.request(
            "GET", path, headers={"Authorization": basic(login), "Accept-Encoding": "gzip"}
        )
        response = web.connection.getresponse()
        assert response.getheader("Content-Encoding") == "gzip"
        assert json.loads(gzip.decompress(response.read()))["path"] == path
        sizes[path] = response.getheader("Content-Length")


def test_http_2_is_spoken(box: Box) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection((box.address, 443), 10) as plain, context.wrap_socket(plain) as tls:
        assert (tls.selected_alpn_protocol(), tls.version()) == ("h2", "TLSv1.3")


def sslyze() -> Path:
    """Made once, in a venv of its own: it holds cryptography below what paramiko needs for post-quantum key exchange.

    Its lock: uv pip compile, with the options that pyproject.toml names, of a file that says `sslyze`.
    """
    lock = HERE / "sslyze.lock"
    mark = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "knockmap" / f"sslyze-{mark}"
    if not (folder / "bin" / "sslyze").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [f"{folder}/bin/pip", "install", "-q", "--require-hashes", "-r", str(lock)]
        subprocess.run(pip, check=True)
    return folder / "bin" / "sslyze"


def test_sslyze_finds_nothing_against_mozillas_intermediate_profile(box: Box, tmp_path: Path) -> None:
    anchor = tmp_path / "own.pem"
    anchor.write_text(ssl.get_server_certificate((box.address, 443)))
    argv = ["--mozilla_config", "intermediate", "--certinfo_ca_file", str(anchor), box.address]
    done = subprocess.run([str(sslyze()), *argv], capture_output=True, text=True, check=False)
    assert f"{box.address}:443: OK - Compliant." in done.stdout, done.stdout[-600:]


# --- the certificate --------------------------------------------------------------------------------------------


def certificate(box: Box) -> str:
    return shell(box, f"openssl x509 -in {STATE}/self-signed.pem -noout -serial -enddate -ext subjectAltName")


def serial_seen(box: Box) -> str:
    pem = ssl.get_server_certificate((box.address, 443))
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-serial"], input=pem, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def watch(box: Box) -> None:
    shell(box, "systemctl start knockmap-certificate.service; sleep 1")


def test_the_certificate_names_the_host_and_lives_90_days(box: Box) -> None:
    shown = certificate(box)
    address = shell(box, "hostname -I").split()[0]
    for name in (f"DNS:{box.name}", f"IP Address:{box.address}", f"IP Address:{address}"):
        assert name in shown
    assert (
        box.run(
            ["openssl", "x509", "-in", f"{STATE}/self-signed.pem", "-noout", "-checkend", str(89 * 86400)]
        )[0]
        == 0
    )
    assert (
        box.run(
            ["openssl", "x509", "-in", f"{STATE}/self-signed.pem", "-noout", "-checkend", str(91 * 86400)]
        )[0]
        == 1
    )


def test_the_timer_renews_a_certificate_that_ends_soon_and_apache_shows_it(box: Box) -> None:
    watch(box)
    fresh = serial_seen(box)
    shell(box, "systemctl is-active knockmap-certificate.timer")
    old = (
        f"cd {STATE}; "
        "sed 's/^DAYS, RENEW_DAYS, WARN_DAYS = 90, 30/DAYS, RENEW_DAYS, WARN_DAYS = 29, 0/' "
        "/usr/local/lib/knockmap/apache_proxy/certificate.py >/root/certificate.py; rm self-signed.pem; "
        "python3 /root/certificate.py renew; systemctl reload apache2; sleep 1"
    )
    shell(box, old)
    ends_soon = serial_seen(box)
    assert ends_soon != fresh
    watch(box)
    assert serial_seen(box) not in (fresh, ends_soon)
    assert serial_seen(box) == certificate(box).splitlines()[0]


def test_a_new_address_and_a_lost_one_are_taken_up(fab: FabCommand, box: Box) -> None:
    shell(box, "ip address add 198.51.100.7/32 dev eth0; ip address add 2001:db8::7/128 dev eth0 nodad")
    watch(box)
    shown = certificate(box)
    assert "IP Address:198.51.100.7" in shown and "IP Address:2001:DB8:0:0:0:0:0:7" in shown
    assert ask(box, "/", port=80, Host="[2001:db8::7]").headers["location"] == "https://[2001:db8::7]/"
    assert ask(box, "/", Host="198.51.100.7").headers["location"] == "https://198.51.100.7/map/"
    assert fab(box, "apache-proxy").last.endswith("ok, 0 changed, 0 failed, 0 skipped")
    shell(box, "ip address del 198.51.100.7/32 dev eth0; ip address del 2001:db8::7/128 dev eth0")
    watch(box)
    assert "198.51.100.7" not in certificate(box)


# --- users and guesses ------------------------------------------------------------------------------------------


def test_users_come_change_and_go_without_a_deploy(fab: FabCommand, box: Box, calm: None) -> None:
    added = fab(box, "user.add", "anna")
    assert added.rc == 0, added.out
    first = added.out.split()[-1]
    assert ask(box, "/map/", ("anna", first)).status == 200
    assert fab(box, "user.add", "anna").rc == 1
    second = fab(box, "user.rotate", "anna").out.split()[-1]
    assert (ask(box, "/map/", ("anna", first)).status, ask(box, "/map/", ("anna", second)).status) == (
        401,
        200,
    )
    assert fab(box, "apache-proxy").last.endswith("ok, 0 changed, 0 failed, 0 skipped")
    assert fab(box, "user.remove", "anna").rc == 0
    assert ask(box, "/map/", ("anna", second)).status == 401
    assert "anna" not in fab(box, "credentials").out
    assert fab(box, "user.remove", "knockmap").rc == 2 and fab(box, "user.remove", "anna").rc == 1
    assert fab(box, "user.add", "an:na").rc == 1


def with_own_password(
    operator: dict[str, str], box: Box, password: str, *words: str
) -> subprocess.CompletedProcess[str]:
    argv = [f"{Path(sys.executable).parent}/fab", "-S", str(box.ssh_config), "-H", box.name, *words, "--own"]
    return subprocess.run(
        argv, cwd=ROOT, env=operator, input=password, capture_output=True, text=True, check=False
    )


def test_an_own_password_is_hashed_slowly_and_kept_nowhere(
    fab: FabCommand, box: Box, operator: dict[str, str], login: tuple[str, str], calm: None
) -> None:
    own = "eleven owls in one barn"
    refused = with_own_password(operator, box, "short\n", "user.add", "otto")
    assert refused.returncode == 1 and "12 to 72 bytes" in refused.stderr + refused.stdout
    done = with_own_password(operator, box, f"{own}\n", "user.add", "otto")
    assert done.returncode == 0 and own not in done.stdout + done.stderr
    assert ask(box, "/map/", ("otto", own)).status == 200 and ask(box, "/map/", login).status == 200
    # All at one cost: else the time of an answer would tell who has which.
    hashes = shell(box, f"cut -d: -f2 {STATE}/users").split()
    assert len(hashes) == 3 and all(hash.startswith("$2y$10$") for hash in hashes)
    assert box.run(["grep", "-rlF", own, "/etc", "/var/lib", "/var/log", "/root"])[1] == ""
    assert "(your own)" in fab(box, "credentials").out
    assert fab(box, "apache-proxy").last.endswith("ok, 0 changed, 0 failed, 0 skipped")
    assert ask(box, "/map/", ("otto", own)).status == 200
    assert fab(box, "user.remove", "otto").rc == 0
    assert all(hash.startswith("$2y$05$") for hash in shell(box, f"cut -d: -f2 {STATE}/users").split())


def test_an_emptied_list_of_users_is_repaired_with_the_same_password(
    fab: FabCommand, box: Box, login: tuple[str, str]
) -> None:
    shell(box, f": >{STATE}/users")
    assert ask(box, "/map/", login).status == 401
    assert fab(box, "apache-proxy").rc == 0
    assert ask(box, "/map/", login).status == 200


@pytest.mark.parametrize("cost", ["quick", "slow"])
def test_known_and_unknown_names_take_the_same_time(
    fab: FabCommand, box: Box, operator: dict[str, str], cost: str
) -> None:
    """Each is asked 300 times, in turns; a name that Apache did not look up a hash for would be 1.5 or 45 ms quicker."""
    if cost == "slow":
        assert (
            with_own_password(operator, box, "eleven owls in one barn\n", "user.add", "otto").returncode == 0
        )
    try:
        fifths = {
            name: quick_fifth(values)
            for name, values in answer_times(box, 300 if cost == "quick" else 60).items()
        }
    finally:
        if cost == "slow":
            assert fab(box, "user.remove", "otto").rc == 0
        assert fab(box, "apache-proxy").rc == 0
    print(cost, fifths)
    assert max(fifths.values()) - min(fifths.values()) < (0.5 if cost == "quick" else 10), fifths
    assert min(fifths.values()) > (1 if cost == "quick" else 30), fifths


def quick_fifth(values: list[float]) -> float:
    """Where the quickest fifth ends: what else this machine does slows the others."""
    return statistics.quantiles(values, n=5)[0]


def answer_times(box: Box, count: int) -> dict[str, list[float]]:
    """Milliseconds of refused logins by name, the one that exists first, with the guard out of the way."""
    guard = "/usr/local/lib/knockmap/apache_proxy/guard.lua"
    shell(box, f"sed -i 's/^local GUESSES, REQUESTS = [0-9]*/local GUESSES, REQUESTS = 999999/' {guard}")
    shell(box, "systemctl reload apache2; sleep 1")
    times: dict[str, list[float]] = {name: [] for name in ("knockmap", "root", "knockma", "knockmapp")}
    web = Web(box)
    for _ in range(count):
        for name, values in times.items():
            answer = web.ask("/map/", (name, "wrong"))
            assert answer.status == 401
            values.append(answer.seconds * 1000)
    return times


def test_guessing_is_slowed_down_and_a_polling_page_is_not(
    box: Box, login: tuple[str, str], calm: None
) -> None:
    begun = time.monotonic()

    def guess(number: int) -> int:
        return ask(box, "/map/", ("knockmap", f"guess{number}")).status

    web = Web(box)
    # A page with a right password is asked far more often than a guesser may be, and none of it counts.
    assert {web.ask("/map/api/view", login).status for _ in range(300)} == {200}
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(guess, range(400)))
    processes = int(shell(box, "pgrep -c -u www-data apache2"))
    let_through = statuses.count(401)
    print(
        let_through,
        "of 400 guesses were looked at by",
        processes,
        "processes in",
        time.monotonic() - begun,
        "s",
    )
    assert set(statuses) == {401, 429}
    # Each process counts by itself; one that was about to be refused may have been on its way.
    assert let_through <= processes * (10 + 8)


def test_a_refused_guesser_is_told_when_to_come_again(box: Box, login: tuple[str, str], calm: None) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ask(box, "/map/", ("knockmap", f"x{n}")).status, range(200)))
    refused = next(a for a in (ask(box, "/map/", ("knockmap", "x")) for _ in range(20)) if a.status == 429)
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert ask(box, "/map/").status == 401  # without a password nothing is guessed


def test_the_public_page_is_open_where_it_is_wanted_and_has_a_limit_of_its_own(
    fab: FabCommand, box: Box, login: tuple[str, str], calm: None
) -> None:
    assert fab(box, "apache-proxy", KNOCKMAP_PUBLIC_PAGE="true").rc == 0
    time.sleep(1)
    answer = ask(box, "/public/api/view")
    assert (answer.status, json.loads(answer.body)["path"]) == (200, "/public/api/view")
    assert ask(box, "/map/").status == 401
    web = Web(box)
    statuses = [web.ask("/public/").status for _ in range(1000)]
    assert set(statuses) == {200, 429} and ask(box, "/map/", login).status == 200
    assert fab(box, "apache-proxy").rc == 0
    time.sleep(1)
    assert ask(box, "/public/").status == 404


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_a_site_that_configtest_refuses_is_not_taken_and_the_old_one_goes_on(
    fab: FabCommand, box: Box, login: tuple[str, str]
) -> None:
    broken = "/etc/apache2/conf-enabled/broken.conf"
    before = shell(box, f"cat {SITE}; systemctl show -P MainPID apache2")
    shell(box, f"echo Nonsense >{broken}")
    failed = fab(box, "apache-proxy", KNOCKMAP_DASHBOARD_PORT="8723")
    assert failed.rc == 1 and "what was there before is back" in failed.out and "Nonsense" in failed.out
    assert shell(box, f"cat {SITE}; systemctl show -P MainPID apache2") == before
    assert ask(box, "/map/", login).status == 200
    shell(box, f"rm {broken}")
    assert fab(box, "apache-proxy").rc == 0


def test_drift_is_repaired(fab: FabCommand, box: Box, login: tuple[str, str]) -> None:
    # Its timer would make the certificate anew, if its moment were this one.
    shell(box, "systemctl stop knockmap-certificate.timer")
    shell(
        box,
        f"systemctl disable -q --now apache2; echo >{SITE}; rm /etc/apache2/mods-enabled/headers.load {STATE}/self-signed.pem",
    )
    repaired = fab(box, "apache-proxy")
    assert repaired.rc == 0 and ", 5 changed, 0 failed" in repaired.last, repaired.out
    assert ask(box, "/map/", login).status == 200


AUTHORITY = """
apt-get install -q -y --no-install-recommends pebble >/dev/null
echo '127.0.0.1 page.example www.page.example acme.example' >>/etc/hosts
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=acme.example -days 9 -addext subjectAltName=DNS:acme.example -out /usr/local/share/ca-certificates/acme.crt -keyout /root/acme.key
update-ca-certificates
cat >/root/acme.json <<'END'
{"pebble": {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000", "httpPort": 80, "tlsPort": 443,
 "certificate": "/usr/local/share/ca-certificates/acme.crt", "privateKey": "/root/acme.key", "externalAccountBindingRequired": false}}
END
systemd-run -q --unit acme -E PEBBLE_VA_NOSLEEP=1 -E PEBBLE_WFE_NONCEREJECT=0 pebble -config /root/acme.json
"""
ACME = {
    "KNOCKMAP_APACHE_CERTIFICATE": "acme",
    "KNOCKMAP_APACHE_NAMES": "page.example,www.page.example",
    "KNOCKMAP_APACHE_ACME_EMAIL": "operator@page.example",
    "KNOCKMAP_APACHE_ACME_URL": "https://acme.example:14000/dir",
}


def test_a_certificate_comes_by_acme_and_is_taken_up_by_itself(
    fab: FabCommand, box: Box, login: tuple[str, str]
) -> None:
    """From Pebble, Let's Encrypt's own server for tests, which asks for the challenge over HTTP."""
    shell(box, AUTHORITY)
    done = fab(box, "apache-proxy", **ACME)
    assert done.rc == 0, done.out
    deadline = time.monotonic() + 60
    shown = ""
    while "Pebble" not in shown and time.monotonic() < deadline:
        time.sleep(1)
        ends = "openssl s_client -connect 127.0.0.1:443 -servername www.page.example </dev/null 2>/dev/null"
        shown = box.run(["sh", "-c", f"{ends} | openssl x509 -noout -issuer -ext subjectAltName"])[1]
    assert "Pebble" in shown and "DNS:page.example, DNS:www.page.example" in shown
    answer = ask(box, "/map/", login, name="page.example")
    assert answer.status == 200 and answer.headers["strict-transport-security"] == "max-age=63072000"
    assert fab(box, "apache-proxy", **ACME).last.endswith("ok, 0 changed, 0 failed, 0 skipped")
    assert fab(box, "credentials").out.startswith("URL          https://page.example/map/")
    assert fab(box, "apache-proxy").rc == 0


def made(folder: Path, name: str, *options: str) -> tuple[str, str]:
    """A certificate and its key, by openssl."""
    certificate, key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", f"/CN={name}.example", "-addext", f"subjectAltName=DNS:{name}.example", *options]
    subprocess.run([*argv, "-out", certificate, "-keyout", key], capture_output=True, check=True)
    return certificate, key


def files(certificate: str, key: str) -> dict[str, str]:
    return {
        "KNOCKMAP_APACHE_CERTIFICATE": "files",
        "KNOCKMAP_APACHE_CERTIFICATE_FILE": certificate,
        "KNOCKMAP_APACHE_KEY_FILE": key,
    }


def test_own_files_are_taken_if_they_fit_and_refused_before_anything_changes(
    fab: FabCommand, box: Box, tmp_path: Path, login: tuple[str, str]
) -> None:
    good, other = made(tmp_path, "good", "-days", "60"), made(tmp_path, "other", "-days", "60")
    before = serial_seen(box)
    refused = fab(box, "deploy", **files(good[0], other[1]))
    assert refused.rc == 2 and "apache_key_file" in refused.out and "not the key" in refused.out
    assert serial_seen(box) == before and box.run(["test", "-e", "/etc/rsyslog.d/10-knockmap.conf"])[0] == 1
    shown = fab(box, "apache-proxy", "--check", "--diff", **files(*good))
    assert shown.rc == 0 and "PRIVATE KEY" not in shown.out
    assert fab(box, "apache-proxy", **files(*good)).rc == 0
    time.sleep(1)
    assert ssl.get_server_certificate((box.address, 443)).strip() == Path(good[0]).read_text().strip()
    assert shell(box, f"stat -c '%a %U' {STATE}/key.pem").strip() == "600 root"
    answer = ask(box, "/map/", login)
    assert answer.status == 200 and "strict-transport-security" not in answer.headers
    assert fab(box, "apache-proxy", **files(*good)).last.endswith("ok, 0 changed, 0 failed, 0 skipped")
    # This machine's authorities stand for a browser's: what they vouch for gets HSTS.
    assert (
        fab(
            box,
            "apache-proxy",
            SSL_CERT_FILE=made_by_authority(tmp_path),
            **files(str(tmp_path / "leaf.pem"), str(tmp_path / "leaf.key")),
        ).rc
        == 0
    )
    time.sleep(1)
    assert ask(box, "/map/", login).headers["strict-transport-security"] == "max-age=63072000"
    ends_soon = made(tmp_path, "soon", "-days", "3")
    assert fab(box, "apache-proxy", **files(*ends_soon)).rc == 0
    assert box.run(["systemctl", "start", "knockmap-certificate.service"])[0] == 1
    assert "ends within 14 days" in shell(box, "journalctl -u knockmap-certificate -n 5 -o cat")
    back = fab(box, "apache-proxy")
    assert back.rc == 0 and shell(box, f"ls {STATE}/*.pem").strip() == f"{STATE}/self-signed.pem", back.out


def made_by_authority(folder: Path) -> str:
    """leaf.pem and leaf.key, signed by an authority whose certificate's path is given."""
    authority, key = made(folder, "authority", "-addext", "keyUsage=critical,keyCertSign", "-days", "60")
    extensions = folder / "leaf.ext"
    extensions.write_text(
        "basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:leaf.example\n"
        "authorityKeyIdentifier=keyid\n"
    )
    made(folder, "leaf")
    request = [
        "openssl",
        "req",
        "-new",
        "-key",
        str(folder / "leaf.key"),
        "-subj",
        "/CN=leaf",
        "-out",
        str(folder / "leaf.csr"),
    ]
    subprocess.run(request, capture_output=True, check=True)
    sign = [
        "openssl",
        "x509",
        "-req",
        "-in",
        str(folder / "leaf.csr"),
        "-CA",
        authority,
        "-CAkey",
        key,
        "-days",
        "50",
    ]
    sign += ["-extfile", str(extensions), "-out", str(folder / "leaf.pem")]
    subprocess.run(sign, capture_output=True, check=True)
    return authority


# --- others on the same machine ---------------------------------------------------------------------------------


FOREIGN = """
mkdir -p /var/www/shop; echo 'the shop' >/var/www/shop/index.html
cat >/etc/apache2/sites-available/shop.conf <<'END'
<VirtualHost *:80>
    ServerName shop.example
    DocumentRoot /var/www/shop
</VirtualHost>
<VirtualHost *:443>
    ServerName shop.example
    DocumentRoot /var/www/shop
    SSLEngine On
    SSLCertificateFile /etc/ssl/shop.pem
    SSLCertificateKeyFile /etc/ssl/shop.key
</VirtualHost>
END
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=shop.example -days 9 -out /etc/ssl/shop.pem -keyout /etc/ssl/shop.key 2>/dev/null
apt-get install -q -y --no-install-recommends apache2 >/dev/null && a2enmod -q ssl && a2ensite -q shop && systemctl restart apache2
"""


def test_other_sites_answer_as_before_and_undo_leaves_them(
    fab: FabCommand, new_box: Callable[..., Box], release: str
) -> None:
    box = new_box(release)
    start_double(box)
    shell(box, "mkdir -p /etc/apache2/sites-available; " + FOREIGN)

    def shop() -> list[tuple[int, str]]:
        asked = [
            ask(box, "/", port=port, Host=host)
            for port in (80, 443)
            for host in ("shop.example", "unknown.example")
        ]
        return [(answer.status, answer.body) for answer in asked]

    before = shop()
    assert before[0] == (200, "the shop\n") and before[2] == (200, "the shop\n") and before[1][0] == 200
    links = shell(box, "cd /etc/apache2; ls -l */ | cut -c1-10,40-; cat sites-available/*")
    done = fab(box, "apache-proxy")
    assert done.rc == 0, done.out
    time.sleep(1)
    assert shop() == before
    user = login_of(fab, box)
    shown = json.loads(fab(box, "credentials", "--json").out)
    # By an address a browser sends no name before TLS, and is at the first site.
    assert shown["url"] == f"https://{box.name}/map/"
    assert ask(box, "/map/", user, name=box.name).status == 200
    # The shop's is the first site, and must not get our password.
    links_of = {link["name"]: link for link in json.loads(fab(box, "doctor", "--json").out)["links"]}
    assert [links_of[name]["state"] for name in ("Apache", "certificate", "login")] == ["ok"] * 3, links_of
    assert fab(box, "apache-proxy").last.endswith("ok, 0 changed, 0 failed, 0 skipped")
    assert fab(box, "undo", "apache-proxy", "--packages", "--data").rc == 0
    time.sleep(1)
    assert shop() == before
    assert shell(box, "cd /etc/apache2; ls -l */ | cut -c1-10,40-; cat sites-available/*") == links


def test_an_nginx_on_the_ports_is_refused_before_anything_changes(
    fab: FabCommand, new_box: Callable[..., Box], release: str
) -> None:
    box = new_box(release)
    shell(
        box, "apt-get install -q -y --no-install-recommends nginx-light >/dev/null && systemctl start nginx"
    )
    look = "find /etc /usr/local /var/lib/knockmap -newer /root/mark ! -name adjtime 2>/dev/null; ss -Hltn | sort"
    shell(box, "touch /root/mark; sleep 1")
    before = box.run(["sh", "-c", look])[1]
    for words in (("deploy",), ("deploy", "--check"), ("apache-proxy",)):
        refused = fab(box, *words)
        assert refused.rc == 1, refused.out
        assert "port 80 is taken by nginx" in refused.out and "nothing was touched" in refused.out
        assert " 0 would change, 1 failed," in refused.last or " 0 changed, 1 failed," in refused.last
    assert box.run(["sh", "-c", look])[1] == before


def test_a_firewall_is_asked_to_let_the_page_in_and_undo_takes_that_back(
    fab: FabCommand, new_box: Callable[..., Box], release: str
) -> None:
    box = new_box(release)
    start_double(box)
    shell(
        box,
        "apt-get install -q -y --no-install-recommends ufw >/dev/null; ufw allow 22/tcp; ufw --force enable",
    )
    rules = "grep '^### tuple' /etc/ufw/user.rules | cut -d' ' -f4-6"
    before = shell(box, rules)
    assert fab(box, "apache-proxy").rc == 0
    assert ask(box, "/map/", login_of(fab, box)).status == 200
    assert shell(box, rules).splitlines() == [*before.splitlines(), "allow tcp 80", "allow tcp 443"]
    assert fab(box, "apache-proxy").last.endswith("ok, 0 changed, 0 failed, 0 skipped")
    assert fab(box, "undo", "apache-proxy", "--packages", "--data").rc == 0
    assert shell(box, rules) == before


# --- from outside -----------------------------------------------------------------------------------------------


def test_from_outside_only_sshd_and_apache_answer(
    fab: FabCommand, new_box: Callable[..., Box], release: str
) -> None:
    box = new_box(release)
    done = fab(box, "deploy")
    assert done.rc == 0, done.out
    assert fab(box, "deploy").last.endswith("ok, 0 changed, 0 failed, 0 skipped")
    found = scan(box)
    assert len(found) == 2 and set(map(tuple, found.values())) == {(80, 443, 2222)}, found
    listening = shell(box, "ss -Hltn | awk '{print $4}'").split()
    outside = {
        address.rpartition(":")[2] for address in listening if not address.startswith(("127.", "[::1]"))
    }
    assert outside == {"80", "443", "2222"}


def scan(box: Box) -> dict[str, list[int]]:
    """All 65,535 TCP ports over IPv4 and IPv6, from a neighbour in the box's network."""
    engine = images.client()
    networks = engine.containers.get(box.container).attrs["NetworkSettings"]["Networks"]
    (name, network), *_ = networks.items()
    local = shell(box, "ip -6 -o address show dev eth0 scope link").split()[3].split("/")[0]
    out = engine.containers.run(
        images.tools_image(engine, lambda text: None),
        ["-c", (HERE / "portscan.py").read_text(), network["IPAddress"], f"{local}%eth0"],
        entrypoint="python3",
        network=name,
        sysctls={"net.ipv6.conf.all.disable_ipv6": "0", "net.ipv6.conf.default.disable_ipv6": "0"},
        labels={images.LABEL: box.name},
        remove=True,
    )
    found: dict[str, list[int]] = json.loads(out)
    return found


def test_apache_is_small(host: Host) -> None:
    """Beside the collector on a VPS with 512 MB: what its processes hold for themselves, in MB."""
    script = "cat /proc/$(pgrep -o apache2)/smaps_rollup $(pgrep -P $(pgrep -o apache2) | sed 's#.*#/proc/&/smaps_rollup#')"
    pss = [int(line.split()[1]) for line in host.check_output(script).splitlines() if line.startswith("Pss:")]
    print("Apache's proportional set:", sum(pss) >> 10, "MB")
    assert sum(pss) >> 10 < 60
