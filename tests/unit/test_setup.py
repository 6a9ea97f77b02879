"""./setup says in one sentence what is missing and how to get it; a checkout of its own, on a machine that lacks things."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What the script itself calls. Nothing else of this machine is in its PATH.
TOOLS = ("cat", "cksum", "dirname", "grep", "id", "sh", "sleep")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    for name in ("setup", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def setup(checkout: Path, *options: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [checkout / "setup", *options],
        env={"PATH": str(checkout / "bin"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stdout, done.stderr


def test_without_python_it_says_which_one_and_how_to_get_it(checkout: Path) -> None:
    status, _, said = setup(checkout)
    assert status == 1 and len(said.splitlines()) == 1
    assert "no Python 3.10 or later" in said and "apt install python3 python3-venv" in said


def test_an_older_python_is_passed_over(checkout: Path) -> None:
    script(checkout / "bin" / "python3", "exit 1")
    script(checkout / "bin" / "python3.12", 'case "$*" in *venv*) exit 1; esac; exit 0')
    status, _, said = setup(checkout)
    assert status == 1 and len(said.splitlines()) == 1
    assert "bin/python3.12 cannot make virtual environments" in said and "apt install python3-venv" in said


def test_packages_that_cannot_be_had_are_said_and_no_venv_is_taken_for_whole(checkout: Path) -> None:
    pip = "mkdir -p .venv/bin; printf '#!/bin/sh\\nexit 1\\n' >.venv/bin/python; {}/chmod +x .venv/bin/python"
    (checkout / "bin" / "mkdir").symlink_to(str(shutil.which("mkdir")))
    chmod = Path(str(shutil.which("chmod"))).parent
    script(checkout / "bin" / "python3", f'case "$*" in *--clear*) {pip.format(chmod)};; esac; exit 0')
    status, _, said = setup(checkout)
    assert (
        status == 1 and "requirements.lock could not be installed" in said and "no network? a proxy?" in said
    )
    assert not (checkout / ".venv" / "made_of").exists()


def test_an_unknown_option_is_refused_with_the_one_there_is(checkout: Path) -> None:
    status, _, said = setup(checkout, "--docker=no")
    assert (status, said) == (2, "setup: there is no option --docker=no; there is --no-docker.\n")


def made(checkout: Path) -> None:
    """What an earlier run leaves: a .venv that fits."""
    script(checkout / ".venv" / "bin" / "python", "echo Python 3.12.0")
    script(checkout / ".venv" / "bin" / "fab", "exit 0")
    for name, path, more in (
        ("made_of", "requirements.lock", f" Python 3.12.0 {checkout}"),
        ("installed", "pyproject.toml", ""),
    ):
        with (checkout / path).open() as file:
            found = subprocess.run(["cksum"], stdin=file, capture_output=True, text=True, check=True).stdout
        (checkout / ".venv" / name).write_text(found.strip() + more + "\n")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"DOCKER_HOST": "tcp://127.0.0.1:9"}, "no Docker engine answers at DOCKER_HOST=tcp://127.0.0.1:9"),
        ({}, "install Docker, start it, or join the group docker"),
    ],
)
def test_what_the_boxes_need_is_said_and_the_rest_is_ready(
    checkout: Path, environment: dict[str, str], sentence: str
) -> None:
    made(checkout)
    script(checkout / "bin" / "docker", "exit 1")
    (checkout / "bin" / "id").unlink()
    script(checkout / "bin" / "id", "echo 1000")
    status, out, said = setup(checkout, **environment)
    assert status == 0 and out.startswith("Ready. Next:") and ".venv/bin/invoke demo" in out
    assert sentence in said and "install Maven" in said and "Chromium" in said


def test_with_all_of_it_there_it_is_quiet(checkout: Path) -> None:
    made(checkout)
    status, out, said = setup(checkout, "--no-docker")
    assert (status, said) == (0, "") and "fab -H vps deploy --check" in out and "invoke" not in out
    for tool in ("docker", "mmdebstrap", "chromium", "mvn"):
        script(checkout / "bin" / tool, "exit 0")
    assert setup(checkout)[::2] == (0, "")
