"""When `invoke test` runs files once more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from invoke.context import MockContext
from invoke.exceptions import Exit
from invoke.runners import Result

import tasks

BOX = "tests/container/test_{}.py::test_x[trixie]"


@pytest.mark.parametrize(
    ("failed", "again"),
    [
        ([BOX.format("b"), BOX.format("a"), BOX.format("a") + "[2]"], ["test_a.py", "test_b.py"]),
        ([BOX.format("a") + str(number) for number in range(9)], ["test_a.py"]),
        ([BOX.format(name) for name in "abcd"], []),
        ([BOX.format("a"), "tests/unit/test_a.py::test_x"], []),
        (["tests/container/test_a.py"], []),  # the file itself could not be read
        ([], []),
    ],
)
def test_files_of_a_few_failed_tests_of_boxes_are_run_again(
    tmp_path: Path, failed: list[str], again: list[str]
) -> None:
    noted = tmp_path / "lastfailed"
    noted.write_text(json.dumps(dict.fromkeys(failed, True)))
    assert tasks.once_more(noted) == [f"tests/container/{name}" for name in again]


@pytest.mark.parametrize("code", [2, 3, 5])
def test_an_interrupted_run_is_a_no(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(tasks, "once_more", lambda noted: [BOX.format("a")])
    monkeypatch.setattr(tasks, "exit_code", lambda c, command, **_: code if "cache-clear" in command else 0)
    with pytest.raises(Exit, match="test: no"):
        tasks.test(MockContext(), fast=True)


def test_the_exit_code_is_the_programs() -> None:
    context = MockContext(run=Result(exited=3))
    assert tasks.exit_code(context, "pytest") == 3 and not tasks.run(context, "pytest")
