"""What of the building needs Debian's tools (javac, jlink, gpg): run in a container of an image made for that alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from box import images, state
from docker.errors import BuildError, ContainerError

HERE = Path(__file__).parent
SOURCE = HERE / "builder"
Mounts = dict[Path, str]


def image() -> str:
    """The name of the builder's image; made now if it is not there: from Debian 13, as its boxes are. Raises BoxError."""
    engine = images.client()
    with state.lock("images.lock"):
        base = images.base_image(engine, "trixie", None, lambda _: None)
        name = f"knockmap-doubles:{digest(base)}"
        if images.exists(engine, name):
            return name
        try:
            labels = {images.LABEL: "image"}
            engine.images.build(path=str(SOURCE), tag=name, buildargs={"BASE": base}, rm=True, labels=labels)
        except BuildError as error:
            log = "".join(str(line.get("stream", "")) for line in error.build_log if isinstance(line, dict))
            raise images.BoxError(f"{name} could not be built; its last lines:\n{log[-1500:]}") from None
    return name


def digest(base: str) -> str:
    return hashlib.sha256(base.encode() + (SOURCE / "Dockerfile").read_bytes()).hexdigest()[:12]


def run(script: str, mounts: Mounts) -> None:
    """Run a script of builder/ with these folders at these places, as the user that we are. Raises BoxError."""
    volumes = {str(path): {"bind": at, "mode": "rw"} for path, at in mounts.items()}
    volumes[str(SOURCE)] = {"bind": "/builder", "mode": "ro"}
    try:
        images.client().containers.run(
            image(),
            ["sh", f"/builder/{script}"],
            volumes=volumes,
            user=f"{os.getuid()}:{os.getgid()}",
            network_mode="none",
            environment={"HOME": "/tmp"},
            remove=True,
        )
    except ContainerError as error:
        text = (
            (error.stderr or b"").decode(errors="replace") if isinstance(error.stderr, bytes) else str(error)
        )
        raise images.BoxError(f"builder/{script} failed:\n{text[-1500:]}") from None


def architecture() -> str:
    """What Debian calls the machine that Docker runs on: amd64 or arm64."""
    return str(images.client().images.get(image()).attrs["Architecture"])


def jdk(to: Path) -> Path:
    """The Java runtime of the image, as a tar."""
    if not to.exists():
        container = images.client().containers.create(image(), ["true"])
        try:
            stream, _ = container.get_archive("/jdk")
            part = to.with_suffix(".part")
            with part.open("wb") as file:
                file.writelines(stream)
            part.replace(to)
        finally:
            container.remove()
    return to


def modules(server: Path, version: str, to: Path) -> Path:
    """The doubles of modules, compiled against the jars of this server, each with its descriptor."""
    sources = HERE / "elasticsearch" / "modules"
    with tempfile.TemporaryDirectory(dir=to.parent) as name:
        work = Path(name)
        shutil.copytree(sources, work / "modules")
        (work / "lib").mkdir()
        unpack_jars(server, work / "lib")
        for source in sources.iterdir():
            (work / "out" / source.name).mkdir(parents=True)
            text = (source / "plugin-descriptor.properties").read_text().replace("${version}", version)
            (work / "out" / source.name / "plugin-descriptor.properties").write_text(text)
        run("compile.sh", {work: "/build"})
        shutil.copytree(work / "out", to, dirs_exist_ok=True)
    return to


def unpack_jars(server: Path, to: Path) -> None:
    """The jars that stand directly in lib/ of the zip."""
    with zipfile.ZipFile(server) as archive:
        for item in archive.infolist():
            parts = item.filename.split("/")
            if len(parts) == 3 and parts[1] == "lib" and item.filename.endswith(".jar"):
                (to / parts[2]).write_bytes(archive.read(item))


def wheels(packed: list[Path], to: Path) -> None:
    """Unpack wheels over each other: what is compiled for one Python has its name."""
    for path in packed:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(to)
