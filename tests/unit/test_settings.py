"""Settings: environment over file over default, and a wrong one is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabfile.settings import SettingError, Settings, load, names


def test_defaults_stand_without_file_and_environment() -> None:
    assert load({}, {}) == Settings()


def test_environment_beats_file_and_file_beats_default() -> None:
    assert load({"ssh_port": 2022}, {}).ssh_port == 2022
    assert load({"ssh_port": 2022}, {"KNOCKMAP_SSH_PORT": "2200"}).ssh_port == 2200


def test_lists_come_from_yaml_and_from_comma_separated_text() -> None:
    assert load({"hosts": ["a", "b"]}, {}).hosts == ("a", "b")
    assert load({}, {"KNOCKMAP_HOSTS": "a, root@b:22"}).hosts == ("a", "root@b:22")


def test_booleans_are_words() -> None:
    assert load({}, {"KNOCKMAP_SSH_STRICT": "yes"}).ssh_strict is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ssh_port", "22"),
        ("ssh_port", "65536"),
        ("ssh_port", "0"),
        ("ssh_port", "two"),
        ("ssh_port", "443"),
        ("ssh_port", "8722"),
        ("ssh_port", "9200"),
        ("stack", "elk"),
        ("knock_policy", "block"),
        ("knock_limit", "0"),
        ("ssh_strict", "perhaps"),
        ("geo_databases", "/nonexistent/x.mmdb"),
        ("hosts", "a b"),
        ("ssh_prot", "2222"),
    ],
)
def test_refuses_by_name_what_cannot_be(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=name):
        load({}, {f"KNOCKMAP_{name.upper()}": value})
    with pytest.raises(SettingError, match=name):
        load({name: value}, {})


def test_own_databases_are_taken_when_they_exist(tmp_path: Path) -> None:
    path = tmp_path / "city.mmdb"
    path.touch()
    assert load({"geo_databases": [str(path)]}, {}).geo_databases == (str(path),)


def test_own_databases_of_one_name_are_refused(tmp_path: Path) -> None:
    """On the target they are in one folder, so one would take the other's place."""
    paths = [tmp_path / folder / "city.mmdb" for folder in ("old", "new")]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(SettingError, match=r"geo_databases = .*another file name"):
        load({"geo_databases": list(map(str, paths))}, {})


def test_every_setting_has_a_comment_that_says_why() -> None:
    source = Path(load.__code__.co_filename).read_text()
    for name in names():
        above = source.split(f"\n    {name}: ")[0].rsplit("\n", 2)[1:]
        assert any(line.strip().startswith("#") or "knock_limit" in line for line in above), name
