"""The Logstash double refuses what Logstash refuses, each by itself, and what it does not know."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from logstash_double import ConfigurationError, NotDoubled, conditions, jvm, runner
from logstash_double.event import Event
from logstash_double.filters import bsd, iso8601
from logstash_double.language import Branch, parse
from logstash_double.options import substituted
from logstash_double.pipeline import Pipeline
from logstash_double.settings import arguments, checked, load, pipelines, read_yaml

from fabfile.engine.resources import render
from tests.doubles.logstash import geoip_databases
from tests.unit import logstash, mmdb

OUTPUT = """
output { elasticsearch {
    hosts => ["https://127.0.0.1:9200"]
    api_key => "id:key"
    data_stream => "true"
    data_stream_dataset => "iptables.ssh"
    MORE
} }
"""


def filtered(text: str, **fields: Any) -> Event | None:
    """What becomes of an event in these filters; None if it is lost."""
    made = Pipeline(f"filter {{ {text} }}")
    made.register()
    event = Event(dict(fields))
    return next(iter(made.filter([event])), None)


def holds(condition: str, **fields: Any) -> bool:
    (branch,) = parse(f"filter {{ if {condition} {{ }} }}")["filter"]
    assert isinstance(branch, Branch)
    test = branch.cases[0][0]
    assert test
    return conditions.holds(test, Event(dict(fields)))


def output(more: str = "", **replaced: str) -> str:
    text = OUTPUT.replace("MORE", more)
    for old, new in replaced.items():
        text = re.sub(rf"(?m)^ *{old} =>.*$", new, text)
    return text


def test_our_own_configuration_is_taken(tmp_path: Path) -> None:
    ours = render("install_elk/output.conf.j2", cloud_id="", hosts=("https://127.0.0.1:9200",), ca="")
    made = Pipeline(logstash.text() + ours.replace("${KNOCKMAP_WRITER_KEY}", "id:key"))
    made.register()
    assert len(made.outputs) == 1


NOT_THE_LANGUAGE = {
    "elsif": "filter { if [a] { } elsif [b] { } }",
    "a comma in a hash": 'filter { mutate { replace => { "a" => "1", "b" => "2" } } }',
    "no comma in a list": 'filter { mutate { strip => ["a" "b"] } }',
    "the same key twice": 'filter { mutate { replace => { "a" => "1" "a" => "2" } } }',
    "an open block": "filter { mutate { ",
    "an unknown section": "filters { }",
    "= for =>": 'filter { mutate { id = "a" } }',
    "a bare word of one letter": "filter { mutate { id => a } }",
    "one = in a condition": "filter { if [a] = 1 { } }",
    "a word on the right of a comparison": "filter { if [a] == foo { } }",
    "a number on the right of =~": "filter { if [a] =~ 22 { } }",
}


@pytest.mark.parametrize("text", NOT_THE_LANGUAGE.values(), ids=NOT_THE_LANGUAGE.keys())
def test_refuses_what_is_not_the_language(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(text)


def test_says_where_the_mistake_is() -> None:
    with pytest.raises(ConfigurationError, match=r"at line 2, column 15"):
        parse('filter {\n  mutate { id "a" } }')


FOUND_BY_THE_TEST = {
    "an unknown setting": ("filter { mutate { replaces => {} } }", "Unknown setting 'replaces' for mutate"),
    "a missing setting": ("filter { geoip { } }", "Missing a required setting for the geoip filter"),
    "an obsolete setting of the output": (output("ssl => true"), "obsolete"),
    "cacert": (output('cacert => "/etc/passwd"'), "obsolete"),
    "ssl_certificate_verification": (output("ssl_certificate_verification => false"), "obsolete"),
    "an obsolete setting of all filters": ('filter { mutate { type => "a" } }', "obsolete"),
    "an obsolete setting of all inputs": ('input { file { path => "/a" debug => true } }', "obsolete"),
    "a file that is not there": (
        output('ssl_certificate_authorities => ["/no/such"]'),
        "File does not exist",
    ),
    "a database that is not there": (
        'filter { geoip { source => "[a][ip]" database => "/no" } }',
        "not exist",
    ),
    "a word that is no choice": (
        'input { file { path => "/a" start_position => "start" } }',
        "Expected one of",
    ),
    "a word that is no number": (
        'input { file { path => "/a" stat_interval => "often" } }',
        "Expected number",
    ),
    "a word that is no boolean": ('filter { grok { break_on_match => "yes" } }', "Expected boolean"),
    "two values for one": ('filter { mutate { id => ["a", "b"] } }', "Expected string"),
    "half a hash": ('filter { mutate { replace => ["a"] } }', "even number"),
    "a variable that is not set": ('filter { mutate { id => "${NO_SUCH_VARIABLE}" } }', "NO_SUCH_VARIABLE"),
    "a date without a format": ('filter { date { match => ["a"] } }', "at least one date format"),
}


@pytest.mark.parametrize(("text", "said"), FOUND_BY_THE_TEST.values(), ids=FOUND_BY_THE_TEST.keys())
def test_its_test_finds(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Pipeline(text)


FOUND_BY_THE_START = {
    "an unknown pattern": ('filter { grok { match => { "m" => "%{NO_SUCH}" } } }', "%{NO_SUCH} not defined"),
    "a pattern that is no regular expression": ('filter { grok { match => { "m" => "(a" } } }', "/(a/"),
    "a condition that is none": ("filter { if [a] =~ /(a/ { } }", "/(a/"),
    "index beside a data stream": (
        output('index => "knocks"'),
        "Invalid data stream configuration: ['index']",
    ),
    "document_type beside it": (output('document_type => "a"'), "Invalid data stream configuration"),
    "manage_template beside it": (output("manage_template => true"), "Invalid data stream configuration"),
    "a dataset with a dash": (
        output(data_stream_dataset='data_stream_dataset => "a-b"'),
        "Invalid data_stream_dataset",
    ),
    "two ways to log in": (output('user => "elastic" password => "a"'), "Multiple authentication options"),
    "a key without TLS": (output(hosts='hosts => ["http://127.0.0.1:9200"]'), "requires SSL/TLS"),
    "a key that is none": (output(api_key='api_key => "key"'), "Invalid api_key format"),
    "a wrong type of convert": (
        'filter { mutate { convert => { "a" => "int" } } }',
        "Invalid conversion type 'int'",
    ),
    "gsub of two": ('filter { mutate { gsub => ["a", "b"] } }', "gsub requires 3"),
    "geoip of no address field": ('filter { geoip { source => "client" } }', "requires a `target`"),
    "an unknown field of geoip": (
        'filter { geoip { source => "[a][ip]" fields => ["town"] } }',
        "illegal field value town",
    ),
    "translate of nothing": ("filter { translate { } }", "No source field"),
    "a relative path": ('input { file { path => "log" sincedb_path => "/dev/null" } }', "must be absolute"),
    "a folder as sincedb": ('input { file { path => "/a" sincedb_path => "/tmp" } }', "must point to a file"),
    "exit_after_read of a tail": (
        'input { file { path => "/a" sincedb_path => "/dev/null" exit_after_read => true } }',
        'only works when the "mode" is set to "read"',
    ),
}


@pytest.mark.parametrize(("text", "said"), FOUND_BY_THE_START.values(), ids=FOUND_BY_THE_START.keys())
def test_only_its_start_finds(text: str, said: str) -> None:
    """As upstream: `-t` says that the configuration is fine, and the service does not come up."""
    made = Pipeline(text)
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        made.register()


UNKNOWN = {
    "a plugin": "filter { ruby { } }",
    "an input": "input { stdin { } }",
    "an output": "output { file { } }",
    "a setting that only Logstash has": 'filter { grok { target => "a" } }',
    "a date format": 'filter { date { match => ["a", "yyyy"] } }',
    "xor": "filter { if [a] xor [b] { } }",
    "gsub by a regular expression": 'filter { mutate { gsub => ["message", "a.b", "c"] } }',
    "a stream without saying so": 'output { elasticsearch { hosts => ["https://a"] } }',
    "a codec": "output { stdout { codec => msgpack } }",
    "a branch around an output": "output { if [a] { stdout { codec => rubydebug } } }",
}


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_says_what_it_does_not_know(text: str) -> None:
    with pytest.raises(NotDoubled, match="the Logstash double does not know"):
        made = Pipeline(text)
        made.register()
        made.filter([Event({"message": "a.b"})])


def test_a_folder_of_patterns_that_is_missing_is_passed_over_in_silence(tmp_path: Path) -> None:
    text = f'filter {{ grok {{ patterns_dir => ["{tmp_path}/none"] match => {{ "message" => "%{{WORD:a}}" }} }} }}'
    made = Pipeline(text)
    made.register()


def test_our_files_are_ascii_since_logstash_may_read_them_in_any_encoding() -> None:
    files = [*logstash.PATTERNS.iterdir(), *logstash.PATTERNS.parent.glob("*.conf.j2")]
    assert len(files) >= 4 and all(path.read_bytes().isascii() for path in files)


def test_a_setting_given_twice_is_merged_as_upstream() -> None:
    text = 'filter { mutate { replace => { "a" => "1" } replace => { "b" => "2" } strip => ["a"] strip => ["b"] } }'
    (plugin,) = parse(text)["filter"]
    assert plugin.settings == {"replace": {"a": "1", "b": "2"}, "strip": ["a", "b"]}  # type: ignore[union-attr]


def test_variables_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOCK", "a")
    assert substituted(["${KNOCK}${OTHER:b}", {"${KNOCK}": "${OTHER:}"}]) == ["ab", {"${KNOCK}": ""}]


@pytest.mark.parametrize(
    ("condition", "fields", "expected"),
    [
        ('[port] == "22"', {"port": 22}, False),
        ("[port] == 22", {"port": "22"}, False),
        ("[port] == 22", {"port": 22}, True),
        ("[port] != 22", {}, True),
        ("[port] > 22", {"port": 23}, True),
        ("22 in [port]", {"port": 22}, False),
        ("22 in [port]", {"port": [22]}, True),
        ("[port] in [22, 23]", {"port": "22"}, True),
        ('"fail" in [tags]', {"tags": "_failure"}, True),
        ('"fail" in [tags]', {"tags": ["_failure"]}, False),
        ('"fail" not in [tags]', {}, True),
        ("[a]", {"a": ""}, False),
        ("[a]", {"a": "false"}, False),
        ("[a]", {"a": 0}, True),
        ("![a]", {}, True),
        ("[a] =~ /^b/", {"a": "bc"}, True),
        ("[a] =~ /^b/", {"a": 1}, False),
        ("[a] !~ /^b/", {}, True),
        ("[a] or [b] and [c]", {"a": "x"}, True),
        ("([a] or [b]) and [c]", {"a": "x"}, False),
        ("!([a] or [b])", {}, True),
    ],
)
def test_conditions_hold_as_upstream(condition: str, fields: dict[str, Any], expected: bool) -> None:
    assert holds(condition, **fields) is expected


def test_a_comparison_with_a_field_that_is_not_there_loses_the_event() -> None:
    assert filtered("if [port] > 1024 { mutate { } }") is None
    assert filtered("if [port] and [port] > 1024 { mutate { } }") is not None


def grok(pattern: str, message: str, **fields: Any) -> Event:
    event = filtered(f'grok {{ match => {{ "message" => "{pattern}" }} }}', message=message, **fields)
    assert event
    return event


def test_grok_makes_a_number_of_the_first_of_several_captures_of_one_name() -> None:
    pattern = "a(?<n:x:int>[0-9])|b(?<n:x:int>[0-9])"
    assert grok(pattern, "a1").get("x") == 1
    assert grok(pattern, "b1").get("x") == "1"


def test_grok_makes_a_list_of_a_second_capture_and_keeps_a_number_in_silence() -> None:
    assert grok("%{WORD:x}", "new", x="old").get("x") == ["old", "new"]
    assert grok("%{WORD:x}", "new", x=1).get("x") == 1


def test_grok_knows_no_type_but_int_and_float() -> None:
    event = grok("%{INT:a:int} %{INT:b:float} %{INT:c:integer}", "1 2 3")
    assert [event.get(name) for name in "abc"] == [1, 2.0, "3"]


def test_grok_keeps_no_empty_capture_and_tags_what_does_not_match() -> None:
    assert grok("a(?<DATA:x>b*)", "a").get("x") is None
    assert grok("%{INT:x}", "none").get("tags") == ["_grokparsefailure"]


def test_blanks_at_the_start_of_a_pattern_in_a_file_are_lost(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("# none\nLED  x\nTRAILED y \n")
    text = (
        f'grok {{ patterns_dir => ["{tmp_path}"] match => {{ "message" => "\\A%{{LED:a}}%{{TRAILED:b}}" }} }}'
    )
    event = filtered(text, message="xy z")
    assert event and (event.get("a"), event.get("b")) == ("x", "y ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-24T03:50:22.310999+00:00", "2026-11-24T03:50:22.310+00:00"),
        ("2026-11-24T03:50:22Z", "2026-11-24T03:50:22.000+00:00"),
        ("2026-11-24T03:50:22.1+0530", "2026-11-23T22:20:22.100+00:00"),
    ],
)
def test_a_stamp_is_cut_to_milliseconds_in_utc(text: str, expected: str) -> None:
    found = iso8601(text)
    assert found and found.isoformat(timespec="milliseconds") == expected


@pytest.mark.parametrize(
    ("text", "today", "year"),
    [
        ("Dec 31 23:59:59", (2027, 1, 1), 2026),
        ("Nov 30 23:59:59", (2027, 1, 1), 2027),  # upstream puts it in the future
        ("Jan  1 00:00:01", (2026, 12, 31), 2027),
    ],
)
def test_a_stamp_without_a_year_gets_upstreams_guess(
    text: str, today: tuple[int, int, int], year: int
) -> None:
    format_ = "MMM  d HH:mm:ss" if "  " in text else "MMM dd HH:mm:ss"
    found = bsd(text, format_, datetime(*today, tzinfo=timezone.utc))
    assert found and found.year == year


def test_mutate_has_an_order_of_its_own() -> None:
    event = filtered(
        'mutate { copy => { "a" => "b" } lowercase => ["a"] replace => { "a" => "New" } }', a="old"
    )
    assert event and (event.get("a"), event.get("b")) == ("new", "new")


def test_add_field_makes_a_list_of_several_values_and_never_of_one() -> None:
    event = filtered('mutate { add_field => { "one" => ["a"] "two" => ["a", "%{x}"] } }', x="b")
    assert event and (event.get("one"), event.get("two")) == ("a", ["a", "b"])


def test_add_tag_adds_a_tag_that_is_there() -> None:
    event = filtered('mutate { add_tag => ["a"] }', tags=["a"])
    assert event and event.get("tags") == ["a", "a"]


def geo(tmp_path: Path, record: dict[str, Any], kind: str, more: str = "") -> Event:
    mmdb.write(tmp_path / "x.mmdb", {"2001:db8::/32": record}, kind=kind)
    text = f'geoip {{ source => "[source][ip]" database => "{tmp_path}/x.mmdb" {more} }}'
    event = filtered(text, source={"ip": "2001:db8::1"})
    assert event
    return event


PLACE = {"location": {"latitude": 1.0, "longitude": 2.0}, "city": {"names": {"en": "A"}}}


def test_geoip_rewrites_the_address_unless_the_fields_are_named(tmp_path: Path) -> None:
    assert geo(tmp_path, PLACE, "GeoIP2-City").get("[source][ip]") == "2001:db8:0:0:0:0:0:1"
    named = geo(tmp_path, PLACE, "GeoIP2-City", 'fields => ["city_name"]')
    assert named.get("[source]") == {"ip": "2001:db8::1", "geo": {"city_name": "A"}}


def test_geoip_finds_nothing_where_a_record_has_no_coordinates(tmp_path: Path) -> None:
    event = geo(tmp_path, {"city": {"names": {"en": "A"}}}, "GeoIP2-City")
    assert event.get("tags") == ["_geoip_lookup_failure"] and event.get("[source][geo]") is None


def test_geoip_reads_no_flat_records_whatever_their_type_says(tmp_path: Path) -> None:
    event = geo(tmp_path, {"city": "A", "latitude": 1.0, "longitude": 2.0}, "City")
    assert event.get("tags") == ["_geoip_lookup_failure"]


def test_a_database_of_an_unknown_type_starts_and_fails_at_the_first_event(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Unsupported database type city ipv4"):
        geo(tmp_path, PLACE, "city ipv4")


def test_the_databases_of_the_package_are_those_that_the_program_writes(tmp_path: Path) -> None:
    geoip_databases.write(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (logstash.DATABASES / path.name).read_bytes(), "run geoip_databases.py"


BAD_SETTINGS = {
    "an unknown setting": "pipeline.worker: 2",
    "http.port, which 9.0 removed": "http.port: 9600",
    "a wrong choice": "queue.type: disk",
    "a word that is no number": "pipeline.workers: many",
    "a word that is no boolean": "api.enabled: perhaps",
    "a size that is none": "queue.max_bytes: much",
    "pages larger than the queue": "queue.max_bytes: 1mb",
    "the same key twice": "queue.type: memory\nqueue.type: persisted",
    "the same key twice, once in a block": "queue.type: memory\nqueue:\n  type: persisted",
    "no YAML": "queue.type = memory",
    "a tab": "queue:\n\ttype: memory",
}


@pytest.mark.parametrize("text", BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_refuses_in_logstash_yml(text: str) -> None:
    with pytest.raises(ConfigurationError):
        checked(read_yaml(text))


def test_settings_may_be_flat_or_in_blocks() -> None:
    text = "# none\nqueue.type: persisted  # kept\napi:\n  http:\n    port: 9601\n  enabled: true\npath.logs: '/a b'\n"
    found = checked(read_yaml(text))
    assert [found[name] for name in ("queue.type", "api.http.port", "api.enabled", "path.logs")] == [
        "persisted", "9601", True, "/a b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "pipeline.id: main\n", "- pipeline.id: a\n- pipeline.id: a\n"]
)
def test_refuses_in_pipelines_yml(text: str, tmp_path: Path) -> None:
    (tmp_path / "pipelines.yml").write_text(text)
    with pytest.raises(ConfigurationError):
        pipelines(tmp_path / "pipelines.yml")


@pytest.mark.parametrize(
    "argv", [["--configtest"], ["agent"], ["-w", "2", "--nonsense"], ["--queue.type", "memory"]]
)
def test_refuses_flags_that_there_are_none(argv: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="Unrecognised option"):
        arguments(argv)


def test_a_flag_counts_more_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "logstash.yml").write_text("pipeline.workers: 1\nqueue.type: persisted\n")
    found = load(arguments(["--path.settings", str(tmp_path), "-w", "3"]))
    assert (found["pipeline.workers"], found["queue.type"]) == (3, "persisted")


@pytest.mark.parametrize("options", ["Xmx1g", "-Xmx1gb", "-Xmx512m", "-Xms2g"])
def test_refuses_what_java_refuses(options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-Xmx512m alone is less than the package's -Xms1g."""
    (tmp_path / "jvm.options").write_text("## Heap\n-Xms1g\n-Xmx1g\n")
    jvm.check(tmp_path)
    monkeypatch.setenv("LS_JAVA_OPTS", options)
    with pytest.raises(ConfigurationError, match="Could not create the Java Virtual Machine"):
        jvm.check(tmp_path)


def settings_folder(tmp_path: Path, *lines: str) -> list[str]:
    """The flags of a Logstash whose files are here."""
    text = "\n".join([f"path.data: {tmp_path}/data", "api.enabled: false", *lines])
    (tmp_path / "logstash.yml").write_text(text)
    return ["--path.settings", str(tmp_path)]


def test_refuses_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert runner.main([*settings_folder(tmp_path), "-t", "-e", "filter { }"]) == 1
    assert "Logstash cannot be run as superuser." in caplog.text


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)


@pytest.mark.usefixtures("no_root")
def test_its_test_says_ok_and_is_no_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = settings_folder(tmp_path)
    assert runner.main([*argv, "-t", "-e", 'filter { grok { match => { "m" => "%{NO_SUCH}" } } }']) == 0
    assert capsys.readouterr().out == "Configuration OK\n"
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("no_root")
def test_its_test_says_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert runner.main([*settings_folder(tmp_path), "-t", "-e", "filter { elsif }"]) == 1
    assert "The given configuration is invalid. Reason: Expected one of" in caplog.text


@pytest.mark.usefixtures("no_root")
def test_its_start_fails_where_a_pattern_is_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    argv = settings_folder(tmp_path)
    assert runner.main([*argv, "-e", 'filter { grok { match => { "m" => "%{NO_SUCH}" } } }']) == 1
    assert "pattern %{NO_SUCH} not defined" in caplog.text


@pytest.mark.usefixtures("no_root")
def test_only_one_has_a_folder_of_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    argv = settings_folder(tmp_path)
    with runner.lock(load(arguments(argv))):
        assert runner.main([*argv, "-e", "filter { }"]) == 1
    assert "another instance using the configured data directory" in caplog.text


@pytest.mark.usefixtures("no_root")
def test_files_of_a_folder_are_one_pipeline_in_order_of_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argv = settings_folder(tmp_path)
    (tmp_path / "pipelines.yml").write_text(
        f'- pipeline.id: main\n  path.config: "{tmp_path}/conf.d/*.conf"\n'
    )
    assert runner.main([*argv, "-t"]) == 1
    assert "No config files found" in caplog.text
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "2.conf").write_text("}")
    (tmp_path / "conf.d" / "1.conf").write_text("filter {")
    assert runner.main([*argv, "-t"]) == 0
