"""The house: one name for one topic everywhere, and documents that say what is."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fabfile
from fabfile.settings import names

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
IGNORED = {".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines())}


def files() -> Iterator[Path]:
    """Every file of the checkout that git would take; also where there is no git."""
    for folder, folders, here in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in IGNORED]
        yield from (Path(folder, name) for name in here if name not in IGNORED)


@pytest.mark.parametrize("task", fabfile.TASKS)
def test_a_task_is_a_module_a_folder_a_test_module_and_a_heading(task: str) -> None:
    assert (ROOT / "fabfile" / f"{task}.py").is_file()
    assert (ROOT / "files" / task).is_dir()
    assert (ROOT / "tests" / "container" / f"test_{task}.py").is_file()
    assert f"\n## {task}\n" in README
    assert task in fabfile.ns.task_names or task.replace("_", "-") in fabfile.ns.task_names


def test_every_folder_under_files_is_a_tasks() -> None:
    # doctor changes nothing, so it is no part of deploy; its program runs on the target all the same.
    assert {path.name for path in (ROOT / "files").iterdir() if path.is_dir()} == {*fabfile.TASKS, "doctor"}


def test_no_module_hides_one_of_the_standard_library_or_the_docker_sdk() -> None:
    modules = {path.stem for path in (ROOT / "fabfile").glob("*.py")}
    assert not modules & set(sys.stdlib_module_names)
    assert not (ROOT / "docker" / "__init__.py").exists()


def test_every_task_has_one_line_that_says_its_outcome() -> None:
    for task in fabfile.ns.tasks.values():
        first = (task.__doc__ or "").strip().splitlines()[0]
        assert first.endswith(".") and len(first) <= 90, task.name


def test_settings_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"`((?:ssh|knock|log|collector|geo|apache|elastic|logstash)_[a-z_]+)`", README))
    assert named <= {*names(), *fabfile.TASKS, "knockmap"} and len(named) >= 5


@pytest.mark.parametrize("name", ["results.md", "load.md"])
def test_the_numbers_in_the_readme_are_those_of_the_benchmark(name: str) -> None:
    results = (ROOT / "tests" / "bench" / name).read_text()
    shown = README.split(f"<!-- results: tests/bench/{name} -->\n")[1].split("<!-- end of results -->")[0]
    assert shown.strip() == results.strip()


def test_every_step_of_the_recipe_has_a_task_and_a_test() -> None:
    section = README.split("\n## The recipe\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| \d", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 22))
    for number, _, task, tests in rows:
        assert task.strip("`") in {*fabfile.TASKS, "doctor"}, number
        modules = re.findall(r"`(test_\w+\.py)`", tests)
        assert modules and all((ROOT / "tests" / "container" / name).is_file() for name in modules), number


def test_the_ci_runs_the_command_that_the_readme_names() -> None:
    assert "`./setup && .venv/bin/invoke test`" in README
    script = (ROOT / ".ci" / "run").read_text()
    assert "./setup" in script and ".venv/bin/invoke test" in script


def test_no_file_names_a_registrys_host_or_a_path_of_one_machine() -> None:
    hosts = (
        "deb" + ".debian.org",
        "py" + "pi.org",
        "files.python" + "hosted.org",
        "registry." + "npmjs.org",
        "repo1." + "maven.org",
        "archive." + "ubuntu.com",
    )
    found = []
    for path in files():
        data = path.read_bytes()
        found += [f"{path}: {word}" for word in (*hosts, "/wor" + "k/") if word.encode() in data]
    assert found == []
