"""The Logstash double at work: files that rotate, a queue that outlives kill -9, an Elasticsearch that is busy or picky."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import os
import pwd
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from logstash_double import ConfigurationError, api, runner
from logstash_double.elasticsearch import Elasticsearch, Stopped
from logstash_double.event import Event
from logstash_double.file_input import FileInput
from logstash_double.outputs import rubydebug
from logstash_double.pipeline import Pipeline
from logstash_double.queues import DeadLetters, PersistentQueue
from logstash_double.runner import Worker, answers
from logstash_double.settings import checked

from fabfile import doctor as task
from fabfile.engine.resources import ROOT
from tests.unit import logstash, tls

# Last: the target's modules import their neighbours by bare name.
sys.path += [path for path in (str(task.FOLDER), str(task.OTHERS["mmdb"].parent)) if path not in sys.path]

import pipeline
import units

DOUBLE = ROOT / "tests/doubles/logstash/root/usr/share/logstash/double"


class Reader:
    """The input file on a log in a folder, with what it has read since it was last asked."""

    def __init__(
        self, folder: Path, more: str = 'start_position => "beginning"', rotated: bool = True
    ) -> None:
        self.log, self.events = folder / "knock.log", list[Event]()
        paths = [str(self.log), *([f"{self.log}.1"] if rotated else [])]
        text = f'input {{ file {{ path => {json.dumps(paths)} sincedb_path => "{folder}/sincedb" {more} }} }}'
        self.input: FileInput = Pipeline(text).inputs[0]
        self.input.register()

    def read(self) -> list[str]:
        self.input.step(self.events.extend)
        found = [event.get("message") for event in self.events]
        self.events.clear()
        return found

    def write(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)


def test_only_whole_lines_are_read(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.write("one\ntw")
    assert reader.read() == ["one"]
    reader.write("o\n")
    assert reader.read() == ["two"]


def test_a_file_that_was_there_before_is_read_from_where_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "knock.log").write_text("old\n")
    assert Reader(tmp_path).read() == ["old"]
    reader = Reader(tmp_path, more="")
    assert reader.read() == []
    reader.write("new\n")
    assert reader.read() == ["new"]


@pytest.mark.parametrize("rotated", [True, False])
def test_nothing_is_lost_or_doubled_when_the_log_is_renamed(tmp_path: Path, rotated: bool) -> None:
    reader = Reader(tmp_path, rotated=rotated)
    reader.write("one\n")
    assert reader.read() == ["one"]
    reader.write("two\n")
    reader.log.rename(f"{reader.log}.1")
    reader.write("three\n")
    assert reader.read() == ["two", "three"]
    assert reader.read() == []


def test_what_is_written_to_the_renamed_log_is_read_too(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.write("one\n")
    assert reader.read() == ["one"]
    reader.log.rename(f"{reader.log}.1")
    reader.write("three\n")
    assert reader.read() == ["three"]
    with open(f"{reader.log}.1", "a") as file:
        file.write("two\n")
    assert reader.read() == ["two"]


def test_a_log_that_was_renamed_while_nobody_read_is_read_to_its_end(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.write("one\n")
    reader.read()
    reader.input.keep()
    reader.write("two\n")
    reader.log.rename(f"{reader.log}.1")
    reader.write("three\n")
    assert sorted(Reader(tmp_path).read()) == ["three", "two"]


def test_a_log_that_was_cut_is_read_from_its_start(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.write("one\ntwo\n")
    reader.read()
    os.truncate(reader.log, 0)
    reader.write("new\n")
    assert reader.read() == ["new"]


def test_after_a_crash_lines_since_the_last_position_are_read_again(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.write("one\n")
    reader.read()
    reader.input.keep()
    reader.write("two\n")
    assert reader.read() == ["two"]
    assert Reader(tmp_path).read() == ["two"]


def test_a_line_that_is_no_utf8_is_kept_escaped(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.log.write_bytes(b"a\xff\n")
    assert reader.read() == ["a\\xff"]


def queue(folder: Path) -> PersistentQueue:
    return PersistentQueue(folder, page_bytes=2000, most_bytes=1 << 20)


def messages(waiting: PersistentQueue) -> list[str]:
    return [event.get("message") for _, event in waiting.take(1000, 0)]


def test_what_was_not_acknowledged_is_there_again(tmp_path: Path) -> None:
    first = queue(tmp_path)
    first.put([Event({"message": str(number)}) for number in range(5)])
    first.acknowledge(first.take(2, 0))
    first.take(1, 0)
    first.release()
    assert messages(queue(tmp_path)) == ["2", "3", "4"]


def test_pages_that_are_done_are_removed(tmp_path: Path) -> None:
    waiting = queue(tmp_path)
    waiting.put([Event({"message": "x" * 300}) for _ in range(50)])
    assert len(waiting.pages()) > 5
    waiting.acknowledge(waiting.take(1000, 0))
    assert len(waiting.pages()) == 1
    waiting.release()
    assert messages(queue(tmp_path)) == []


def test_an_event_that_a_crash_cut_off_was_never_there(tmp_path: Path) -> None:
    waiting = queue(tmp_path)
    waiting.put([Event({"message": "a"})])
    with waiting.pages()[0].open("ab") as page:
        page.write(b'[2, {"mess')
    waiting.release()
    assert messages(queue(tmp_path)) == ["a"]


def test_a_queue_is_one_instances_until_that_ends(tmp_path: Path) -> None:
    first = queue(tmp_path)
    with pytest.raises(ConfigurationError, match="failed to obtain exclusive access"):
        queue(tmp_path)
    first.release()
    queue(tmp_path).release()


def test_a_queue_needs_room_for_all_that_it_may_become(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Unable to allocate"):
        PersistentQueue(tmp_path, page_bytes=2000, most_bytes=1 << 60)
    queue(tmp_path).release()


@pytest.mark.parametrize(("policy", "kept"), [("drop_newer", "a"), ("drop_older", "d")])
def test_dead_letters_have_a_bound(tmp_path: Path, policy: str, kept: str) -> None:
    letters = DeadLetters(tmp_path, 400, policy)
    for name in "abcd":
        letters.write(Event({"message": name}), "elasticsearch", "x" * 50)
    assert letters.size() <= 400 and letters.dropped
    assert f'"{kept}"' in letters.file.read_text()


Answer = tuple[int, Any]


class Server(http.server.ThreadingHTTPServer):
    """As Elasticsearch on the wire. `answer` says what becomes of a bulk; None: every event is created."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.bulks: list[list[Any]] = []
        self.answer: Callable[[list[Any]], Answer | None] = lambda _: None
        self.root: Answer = (200, {"version": {"number": "9.5.2"}})
        self.product = "Elasticsearch"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.reply(200, None)

    def do_GET(self) -> None:
        if self.path == "/_license":
            self.reply(200, {"license": {"status": "active", "type": "basic", "uid": "x"}})
        else:
            self.reply(*self.server.root)

    def do_POST(self) -> None:
        body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
        lines = [json.loads(line) for line in body.splitlines()]
        self.server.bulks.append(lines)
        created = {"errors": False, "items": [{"create": {"status": 201}} for _ in lines[::2]]}
        self.reply(*(self.server.answer(lines) or (200, created)))

    def reply(self, status: int, body: Any) -> None:
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("X-elastic-product", self.server.product)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


def certificate(folder: Path) -> Path:
    """A file with a certificate of 127.0.0.1 and its key."""
    _, both = tls.certificate(datetime.now(timezone.utc) + timedelta(days=1), "127.0.0.1")
    path = folder / "both.pem"
    path.write_bytes(both)
    return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(authority: Path) -> Iterator[Server]:
    with Server() as made:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority)
        made.socket = context.wrap_socket(made.socket, server_side=True)
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()


def output(server: Server, certificate: Path | str) -> Elasticsearch:
    text = f"""output {{ elasticsearch {{
        hosts => ["https://127.0.0.1:{server.server_address[1]}"] api_key => "id:key"
        ssl_certificate_authorities => ["{certificate}"]
        data_stream => "true" data_stream_dataset => "iptables.ssh"
        document_id => "%{{[@metadata][id]}}" silence_errors_in_log => ["version_conflict_engine_exception"]
        retry_initial_interval => 0.01
    }} }}"""
    (made,) = Pipeline(text).outputs.values()
    assert isinstance(made, Elasticsearch)
    made.register()
    return made


def event(name: str) -> Event:
    made = Event({"message": name})
    made.metadata["id"] = name
    return made


def test_the_sequence_of_requests_is_upstreams(server: Server, authority: Path) -> None:
    output(server, authority).receive([event("a")])
    asked = [(method, path.partition("?")[0]) for method, path, _ in server.requests]
    assert asked == [("HEAD", "/"), ("GET", "/"), ("GET", "/_license"), ("POST", "/_bulk")]
    key = base64.b64encode(b"id:key").decode()
    assert all(headers["Authorization"] == f"ApiKey {key}" for _, _, headers in server.requests)
    ((action, document),) = server.bulks
    assert action == {"create": {"_id": "a", "_index": "logs-iptables.ssh-default"}}
    assert document["message"] == "a" and document["data_stream"]["dataset"] == "iptables.ssh"
    assert "@metadata" not in document


def test_a_busy_server_is_asked_again(server: Server, authority: Path) -> None:
    answers: list[Answer | None] = [(429, {}), (503, {}), None]
    server.answer = lambda _: answers.pop(0)
    output(server, authority).receive([event("a")])
    assert len(server.bulks) == 3 and not answers


def outcome(status: int, kind: str) -> dict[str, Any]:
    return {"create": {"status": status, "error": {"type": kind, "reason": "r"}}}


def test_each_event_of_a_bulk_has_its_own_fate(
    server: Server, authority: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stored; there already (said nowhere); refused for good (a dead letter); too busy (tried again)."""
    fates = [
        {"create": {"status": 201}},
        outcome(409, "version_conflict_engine_exception"),
        outcome(400, "document_parsing_exception"),
        outcome(429, "es_rejected_execution_exception"),
    ]
    server.answer = lambda lines: (200, {"errors": True, "items": fates}) if len(lines) == 8 else None
    writer = output(server, authority)
    writer.dead_letters = DeadLetters(tmp_path / "dlq", 10_000, "drop_newer")
    writer.receive([event(name) for name in "abcd"])
    assert [line["create"]["_id"] for line in server.bulks[1][::2]] == ["d"]
    assert json.loads(writer.dead_letters.file.read_text())["event"]["message"] == "c"
    assert "409" not in caplog.text and "Could not index event to Elasticsearch" in caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_end_the_pipeline(server: Server, authority: Path, status: int) -> None:
    server.root = (status, {})
    with pytest.raises(ConfigurationError, match="credentials"):
        output(server, authority).receive([event("a")])


def test_what_is_no_elasticsearch_is_refused(server: Server, authority: Path) -> None:
    server.product = "Something"
    with pytest.raises(ConfigurationError, match="compatible version"):
        output(server, authority).receive([event("a")])


def test_a_certificate_of_another_authority_is_not_trusted(server: Server, tmp_path: Path) -> None:
    other = certificate(tmp_path)
    writer = output(server, other)
    threading.Timer(0.1, writer.stop).start()
    with pytest.raises(Stopped):
        writer.receive([event("a")])
    assert server.requests == []


def test_rubydebug_shows_keys_by_the_right() -> None:
    shown = rubydebug({"a": {"long": 1, "b": ["x"]}, "empty": {}})
    assert shown == (
        '{\n        "a" => {\n        "long" => 1,\n           "b" => [\n            [0] "x"\n        ]\n    },\n    "empty" => {}\n}'
    )


def get(url: str) -> tuple[int, Any]:
    from urllib.error import HTTPError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as taken:
        return int(taken.server_address[1])


def test_the_api_tells_version_and_what_went_through(tmp_path: Path) -> None:
    port = free_port()
    values = {"path.data": str(tmp_path), "api.http.port": str(port), "queue.type": "persisted"}
    worker = Worker(checked(values), "filter { }")
    api.serve(worker.settings, answers([worker]))
    status, about = get(f"http://127.0.0.1:{port}/?pretty")
    assert status == 200 and (about["version"], about["status"]) == ("9.5.2", "yellow")
    found = get(f"http://127.0.0.1:{port}/_node/stats/pipelines")[1]["pipelines"]["main"]
    assert found["queue"]["max_queue_size_in_bytes"] == 1 << 30
    assert found["events"] == {"in": 0, "filtered": 0, "out": 0} and found["queue"]["type"] == "persisted"
    assert get(f"http://127.0.0.1:{port}/nothing")[0] == 404


def test_the_api_tells_workers_when_filters_are_registered_and_running_when_all_is(tmp_path: Path) -> None:
    """As upstream: a pipeline that is not that far is in the statistics and in the health report, and is no node's."""
    port = free_port()
    worker = Worker(checked({"path.data": str(tmp_path), "api.http.port": str(port)}), "filter { }")
    api.serve(worker.settings, answers([worker]))

    def told() -> tuple[bool, bool, str]:
        nodes, statistics = (
            get(f"http://127.0.0.1:{port}/_node/{path}")[1]["pipelines"]
            for path in ("pipelines", "stats/pipelines")
        )
        report = get(f"http://127.0.0.1:{port}/_health_report")[1]["indicators"]["pipelines"]["indicators"]
        workers = statistics["main"]["pipeline"]["workers"] is not None
        return "workers" in nodes.get("main", {}), workers, report["main"]["details"]["status"]["state"]

    assert told() == (False, False, "LOADING")
    worker.register()
    assert told() == (True, True, "LOADING")
    worker.start()
    assert told() == (True, True, "RUNNING")


def started(
    folder: Path, text: str, more: str = "api.enabled: false", seconds: float = 0
) -> subprocess.Popen[bytes]:
    """The program itself, as a process that takes so long to start. `allow_superuser`, since tests may be run by root."""
    (folder / "logstash.yml").write_text(
        f"path.data: {folder}/data\nqueue.type: persisted\nallow_superuser: true\n{more}\n"
    )
    (folder / "one.conf").write_text(text)
    argv = [
        sys.executable,
        "-m",
        "logstash_double",
        "--path.settings",
        str(folder),
        "-f",
        str(folder / "one.conf"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(DOUBLE),
        "LOGSTASH_DOUBLE_GEOIP": str(logstash.DATABASES),
        "LOGSTASH_DOUBLE_STARTUP": str(seconds),
    }
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stored(server: Server) -> list[str]:
    return [line["message"] for bulk in list(server.bulks) for line in bulk[1::2]]


def wait(for_: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not for_():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_kill_9_loses_nothing_and_the_same_line_has_the_same_id(
    server: Server, authority: Path, tmp_path: Path
) -> None:
    log = tmp_path / "knock.log"
    lines = [f"2026-11-24T10:00:00.{number:06}+00:00 vps kernel: line" for number in range(300)]
    log.write_text("".join(f"{line}\n" for line in lines))
    text = logstash.text(log=log).replace("/var/lib/logstash/", f"{tmp_path}/")
    hosts = f'hosts => ["https://127.0.0.1:{server.server_address[1]}"] ssl_certificate_authorities => ["{authority}"]'
    text += f"""output {{ elasticsearch {{ {hosts} api_key => "id:key" data_stream => "true" retry_initial_interval => 0.01
        data_stream_dataset => "iptables.ssh" document_id => "%{{[@metadata][id]}}" }} }}"""
    server.answer = lambda _: (429, {}) if len(server.bulks) > 1 else None
    first = started(tmp_path, text)
    wait(lambda: len(server.bulks) > 1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    server.answer = lambda _: None
    second = started(tmp_path, text)
    wait(lambda: set(stored(server)) == set(lines))
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=10) == 0
    names: dict[str, str] = {}
    for bulk in server.bulks:
        for action, document in zip(bulk[::2], bulk[1::2], strict=True):
            assert names.setdefault(document["message"], action["create"]["_id"]) == action["create"]["_id"]
    assert len(set(names.values())) == len(lines)


def simple(folder: Path, filters: str = "", sincedb: str = "sincedb") -> str:
    reads = f'file {{ path => "{folder}/knock.log" sincedb_path => "{folder}/{sincedb}" }}'
    return f"input {{ {reads} }} filter {{ {filters} }} output {{ stdout {{ codec => rubydebug }} }}"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """The folder of an instance that runs, and has opened its queue."""
    process = started(tmp_path, simple(tmp_path))
    wait(lambda: list(tmp_path.glob("data/queue/main/page.*")) != [])
    yield tmp_path
    process.kill()
    process.wait()


def test_its_test_opens_the_queue_and_is_refused_while_another_instance_has_it(
    running: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--path.settings", str(running), "-t", "-f", str(running / "one.conf")]
    assert runner.main(argv) == 1
    assert "The given configuration is invalid. Reason: org.logstash.LockException" in caplog.text
    assert runner.main([*argv, "--path.data", str(running / "other")]) == 0
    assert capsys.readouterr().out == "Configuration OK\n"


@pytest.fixture
def checker(running: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Our program on the target, where that instance runs; it is its user's own disk that the program works on."""
    module = ModuleType("checker")
    exec((ROOT / "files/install_elk/logstash.py").read_text(), module.__dict__)
    for name, text in (
        ("runuser", f'shift 3\nstat -c "%a" {running}/disk/* >{running}/mode\nexec "$@"'),
        ("logstash", f'PYTHONPATH={DOUBLE} exec {sys.executable} -m logstash_double "$@"'),
    ):
        (running / name).write_text(f"#!/bin/sh\n{text}\n")
        (running / name).chmod(0o755)
    (running / "disk").mkdir()
    (running / "knockmap.env").write_text("KNOCKMAP_WRITER_KEY=id:key\n")
    (running / "pipelines.yml").write_text(f"- pipeline.id: main\n  path.config: {running}/*.conf\n")
    places = {"LOGSTASH": "logstash", "ETC": "", "SECRETS": "knockmap.env", "DISK": "disk"}
    for name, path in places.items():
        setattr(module, name, str(running / path))
    monkeypatch.setenv("PATH", f"{running}:{os.environ['PATH']}")
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.getpwuid(os.getuid()))
    return module


def test_our_check_of_a_pipeline_works_beside_the_one_that_runs_and_leaves_nothing(
    checker: ModuleType, running: Path
) -> None:
    checker.test()
    assert (running / "mode").read_text() == "700\n"
    assert list((running / "disk").iterdir()) == []
    (running / "two.conf").write_text("filter { nonsense { } }")
    with pytest.raises(SystemExit, match="nonsense"):
        checker.test()
    assert list((running / "disk").iterdir()) == []


def test_who_waits_for_it_waits_until_its_pipeline_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, said = watched(tmp_path, simple(tmp_path), monkeypatch)
    assert process.poll() is None and said[-1] == ("", "")
    process.kill()
    process.wait()
    assert any("LOADING" in deploy and "LOADING" in doctor for deploy, doctor in said)


@pytest.mark.parametrize(
    ("filters", "sincedb"), [('grok { match => { "m" => "%{NO_SUCH}" } }', "sincedb"), ("", "")]
)
def test_who_waits_for_one_that_fails_in_register_never_takes_it_for_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: str, sincedb: str
) -> None:
    """Of a filter, and of an input, before which the API tells the workers already."""
    process, said = watched(tmp_path, simple(tmp_path, filters, sincedb), monkeypatch)
    assert process.poll() == 1
    assert any("LOADING" in deploy for deploy, _ in said)
    assert not any(deploy == "" or doctor == "" for deploy, doctor in said)


def watched(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[subprocess.Popen[bytes], list[tuple[str, str]]]:
    """An instance until it is ready or ends, and what a deploy and doctor said of it meanwhile."""
    port = free_port()
    monkeypatch.setattr(units, "LOGSTASH", str(port))
    monkeypatch.setattr(pipeline, "PORT", port)
    process, said = started(folder, text, f"api.http.port: {port}", seconds=0.3), [("not yet", "not yet")]
    while process.poll() is None and said[-1] != ("", ""):
        said.append((units.logstash(), pipeline.idle()))
        time.sleep(0.01)
    return process, said


def test_an_answer_that_breaks_off_is_none_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(units, "LOGSTASH", str(port))
        monkeypatch.setattr(pipeline, "PORT", port)
        threading.Thread(target=break_off, args=(listener, 2), daemon=True).start()
        assert "no answer" in units.logstash() and "does not answer" in pipeline.idle()


def break_off(listener: socket.socket, times: int) -> None:
    for _ in range(times):
        with listener.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b'HTTP/1.0 200 OK\r\nContent-Length: 4000\r\n\r\n{"indica')


def test_a_log_that_cannot_be_read_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(tmp_path)
    reader.log.mkdir()  # root may read every file, but no folder
    assert reader.read() == [] == reader.read()
    assert caplog.text.count("failed to open file") == 1
