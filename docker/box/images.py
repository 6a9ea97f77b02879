"""The images of the boxes: official ones where a registry answers, else a Debian bootstrapped from apt sources.

Images are named by the hash of everything they are made from, so a change here makes a new one and nothing else does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from docker.client import DockerClient
from docker.errors import BuildError, DockerException, ImageNotFound
from docker.models.containers import Container

import docker

from . import state

SOURCE = state.ROOT / "docker" / "image"
OFFICIAL = {
    "noble": "ubuntu:noble",
    "jammy": "ubuntu:jammy",
    "trixie": "debian:trixie",
    "bookworm": "debian:bookworm",
}
VARIANTS = {"full": "python3", "minimal": "python3-minimal", "bare": "none"}
BOX_FILES = ("Dockerfile", "provision.sh", "entry.sh")
TOOLS_FILES = ("tools.Dockerfile", "relay.py")
# Without translated descriptions, which every apt-get would read: official images have none either.
MMDEBSTRAP = ("--quiet", "--variant=minbase", '--aptopt=Acquire::Languages "none"')
LABEL, ORIGIN = "knockmap.box", "knockmap.origin"
Say = Callable[[str], None]


class BoxError(Exception):
    """What failed with a box, why, and what to do, in one sentence."""


def client() -> DockerClient:
    """A Docker client whose engine answers. Raises BoxError."""
    try:
        found = docker.from_env(timeout=120)
        found.ping()
        return found
    except DockerException as error:
        raise BoxError(
            f"no Docker engine answers ({str(error)[:120]}); start one, or run ./setup as root on Debian or Ubuntu"
        ) from None


def inside(container: Container, argv: Sequence[str]) -> tuple[int, str]:
    """Exit status and output (both streams) of a command in a container."""
    done = container.exec_run(list(argv))
    assert isinstance(done.output, bytes) and done.exit_code is not None  # neither a stream nor detached
    return done.exit_code, done.output.decode(errors="replace")


def tag(files: Sequence[str], *parts: str) -> str:
    """A name for what is made from these files of docker/image/ with these parameters."""
    digest = hashlib.sha256("\0".join(parts).encode())
    for name in files:
        digest.update(name.encode() + b"\0" + (SOURCE / name).read_bytes())
    return digest.hexdigest()[:12]


def box_image(engine: DockerClient, release: str, variant: str, archive: str | None, say: Say) -> str:
    """The name of the image of a box; made now if it is not there. Raises BoxError."""
    if release not in OFFICIAL or variant not in VARIANTS:
        raise BoxError(
            f"a box is one of {', '.join(OFFICIAL)}, and {', '.join(VARIANTS)}; not {release}, {variant}"
        )
    base = base_image(engine, release, archive, say)
    name = f"knockmap-box:{release}-{variant}-{tag(BOX_FILES, base, variant, content(engine, base))}"
    if not exists(engine, name):
        say(f"building {name} ({VARIANTS[variant]})")
        build(engine, "Dockerfile", name, BASE=base, PYTHON=VARIANTS[variant])
    return name


def tools_image(engine: DockerClient, say: Say) -> str:
    """The name of the image of what works beside a box; made now if it is not there. Raises BoxError."""
    name = f"knockmap-tools:{tag(TOOLS_FILES)}"
    if not exists(engine, name):
        base = base_image(engine, "trixie", None, say)
        say(f"building {name}")
        build(engine, "tools.Dockerfile", name, BASE=base)
    return name


def origin(engine: DockerClient, image: str) -> str:
    """In words, what the image of a box was made from."""
    return str(engine.images.get(image).labels.get(ORIGIN, "an image of unknown origin"))


def content(engine: DockerClient, name: str) -> str:
    """The hash of an image that is there."""
    return str(engine.images.get(name).id)


def exists(engine: DockerClient, name: str) -> bool:
    try:
        engine.images.get(name)
        return True
    except ImageNotFound:
        return False


def build(engine: DockerClient, dockerfile: str, name: str, **arguments: str) -> None:
    try:
        engine.images.build(
            path=str(SOURCE),
            dockerfile=dockerfile,
            tag=name,
            buildargs=arguments,
            rm=True,
            labels={LABEL: "image", ORIGIN: words_for(engine, arguments["BASE"])},
        )
    except BuildError as error:
        log = "".join(str(line.get("stream", "")) for line in error.build_log if isinstance(line, dict))
        raise BoxError(f"the image {name} could not be built; its last lines:\n{log[-1500:]}") from None


def words_for(engine: DockerClient, base: str) -> str:
    """What a base image is: an official one, or one that `bootstrap` made and labelled."""
    if base in OFFICIAL.values():
        return f"the official image {base}"
    return origin(engine, base)


def base_image(engine: DockerClient, release: str, archive: str | None, say: Say) -> str:
    """An official image, or a bootstrapped one. What is there already is taken before anybody is asked."""
    official = OFFICIAL[release]
    made_by = "\0".join([*MMDEBSTRAP, archive or "apt"])
    name = f"knockmap-base:{release}-{hashlib.sha256(made_by.encode()).hexdigest()[:8]}"
    if archive is None and exists(engine, official):
        return official
    if exists(engine, name):
        return name
    if archive is None and (pulled := pull(engine, official, say)):
        return pulled
    if archive is None and official.startswith("ubuntu"):
        raise BoxError(
            f"no image registry answers, so {official} cannot be pulled; take --release trixie, or give "
            "--bootstrap-from with the URL of an Ubuntu archive"
        )
    bootstrap(engine, release, archive, name, say)
    return name


def pull(engine: DockerClient, official: str, say: Say) -> str | None:
    """Pull an official image. That no registry answers, at once or in 15 s, is remembered for an hour."""
    if exists(engine, official):
        return official
    mark = state.FOLDER / "no-registry"
    if mark.exists() and time.time() - mark.stat().st_mtime < 3600:
        return None
    try:
        docker.from_env(timeout=15).images.get_registry_data(official)
        say(f"pulling {official}")
        repository, version = official.split(":")
        engine.images.pull(repository, version)
        return official
    except (DockerException, OSError):  # requests' time-outs are OSErrors
        mark.touch()
        return None


def debian_archive() -> str:
    """The Debian archive that this machine itself installs from. Raises BoxError."""
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"],
        capture_output=True,
        text=True,
        check=False,
    )
    sites = [line for line in shown.stdout.splitlines() if line.endswith("/debian")]
    if not sites:
        raise BoxError(
            "no image registry answers, and this machine has no Debian apt sources to bootstrap from; give "
            "--bootstrap-from with the URL of a Debian archive"
        )
    return sites[0]


def bootstrap(engine: DockerClient, release: str, archive: str | None, name: str, say: Say) -> None:
    """Make a minimal system with mmdebstrap, debootstrap's quick sibling, and import it. Raises BoxError."""
    if not shutil.which("mmdebstrap"):
        raise BoxError(
            f"{release} must be bootstrapped, and mmdebstrap is not installed: apt install mmdebstrap"
        )
    source = archive or debian_archive()
    words = f"{release} bootstrapped from " + (archive or "the apt archive of this machine")
    say(f"making {words}" if archive else f"no image registry answers: making {words}")
    # Ubuntu keeps python3-maxminddb apart from what it supports itself.
    components = "main,universe" if OFFICIAL[release].startswith("ubuntu") else "main"
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "base.tar"
        options = [*MMDEBSTRAP, f"--components={components}"]
        done = subprocess.run(
            ["mmdebstrap", *options, release, str(tar), source], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BoxError(f"mmdebstrap {release} from {source} failed:\n{done.stderr[-1500:]}")
        repository, version = name.split(":")
        engine.api.import_image_from_file(
            str(tar), repository, version, changes=[f"LABEL {ORIGIN}={json.dumps(words)}"]
        )
