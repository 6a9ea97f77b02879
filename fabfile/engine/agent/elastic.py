"""What only the target knows of Elastic's stack on it: whether it fits there, and how much memory each part takes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .facts import listening
from .journal import Journal
from .machine import at, read_text, run
from .packages import dpkg, is_installed
from .wire import emit

BESIDE_MIB = 1500  # what three JVM-sized programs take outside of their heaps, and the system itself
LEAST_MAPS = 262_144  # below this, Elasticsearch runs out of maps for the files that it maps
ARCHITECTURES = ("x86_64", "aarch64")
UNITS = {"9200": "elasticsearch", "9300": "elasticsearch", "5601": "kibana", "9600": "logstash"}
UNPACKED = "/usr/share/elasticsearch"
ETC, DATA = "/etc/elasticsearch", "/var/lib/elasticsearch"


class Heaps(NamedTuple):
    """MiB of heap for each of the three."""

    elasticsearch: int
    logstash: int
    kibana: int


def heaps(memory: int, elastic_heap: int = 0, kibana_heap: int = 0) -> Heaps:
    """What fits a box with `memory` MiB, of which a provider's "4 GB" are at least 3.7 GiB, and so on."""
    if memory < 7000:
        by_memory = Heaps(1024, 512, 704)
    elif memory < 14_500:
        by_memory = Heaps(2048, 768, 1024)
    else:
        by_memory = Heaps(4096, 1024, 1400)
    return by_memory._replace(
        elasticsearch=elastic_heap or by_memory.elasticsearch, kibana=kibana_heap or by_memory.kibana
    )


def needed(wanted: Heaps, place: str) -> int:
    """MiB of memory that a box must have; `place` is "here", or "elsewhere" where Logstash is alone on it."""
    return sum(wanted) + BESIDE_MIB if place == "here" else wanted.logstash + BESIDE_MIB // 2


def memory() -> int:
    """MiB that this machine may use: a container can be given less than its host has."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", read_text("/proc/meminfo"), re.M)
    total = int(found[1]) >> 10 if found else 0
    limit = read_text("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(limit) >> 20) if limit.isdigit() else total


def fact_elastic_memory(elastic_heap: str, kibana_heap: str, place: str) -> str:
    wanted = heaps(memory(), int(elastic_heap), int(kibana_heap))
    need, have = needed(wanted, place), memory()
    if have >= need:
        return ""
    ways = {"elastic_heap": ("elasticsearch", 256), "kibana_heap": ("kibana", 512)}  # each to its least
    smaller = "".join(
        f", or set {setting} below its {getattr(wanted, part)}"
        for setting, (part, least) in ways.items()
        if needed(wanted._replace(**{part: least}), place) <= have
    )
    return (
        f"{have / 1024:.1f} GiB of memory, needs {need / 1024:.1f}: use `stack = embedded`{smaller}, or take a "
        "larger box"
    )


class Size(NamedTuple):
    """MiB of a package: its archive, and what it is unpacked."""

    archive: int
    unpacked: int


# Rounded up from those of 9.1.5 and 9.3.4, whose sizes were seen; Logstash's is an estimate.
SIZES = {"elasticsearch": Size(680, 1300), "kibana": Size(390, 1180), "logstash": Size(420, 700)}
QUEUE_MIB = 512 + 64  # Logstash's queue and its dead letters, when both are full (logstash.yml)
EVENTS_MIB = 512  # to begin with
# Beyond its high watermark, 90 % of the disk or all but 150 GB, Elasticsearch begins no index.
LEAST_FREE, MOST_FREE_MIB = 0.1, 150 << 10


def disk_needed(new: Sequence[str], newer: Sequence[str] = ()) -> dict[str, int]:
    """MiB that it takes at most, by folder, to install packages for the first time, and to upgrade others.

    One at a time is brought, unpacked and thrown away; for an upgrade all are brought before anything is stopped.
    dpkg unpacks a newer one beside the former one.
    """
    archives = [SIZES[name].archive for name in (*new, *newer)]
    unpacked = sum(SIZES[name].unpacked for name in new)
    return {
        "/var/cache": sum(archives) if newer else max(archives, default=0),
        "/usr": unpacked + max((SIZES[name].unpacked for name in newer), default=0),
        "/var/lib": EVENTS_MIB * ("elasticsearch" in new) + QUEUE_MIB * ("logstash" in new),
    }


def left_free(total: int) -> int:
    """MiB of a disk with `total` MiB that Elasticsearch wants to see free."""
    return min(int(total * LEAST_FREE), MOST_FREE_MIB)


def fact_elastic_disk(*packages: str) -> str:
    """For those of these (`name=version`) that are not there yet."""
    due = [package.partition("=")[0] for package in packages if not is_installed(package)]
    new = [name for name in due if name not in dpkg()]
    needed = disk_needed(new, [name for name in due if name in dpkg()])
    disks: dict[int, list[str]] = {}
    for folder in needed:
        disks.setdefault(os.stat(at(folder)).st_dev, []).append(folder)
    for folders in disks.values():
        total, free = disk_space(folders[0])
        spare = left_free(total) if "/var/lib" in folders and "elasticsearch" in new else 0
        need = sum(needed[folder] for folder in folders) + spare
        if need > free:
            why = (
                f", {spare / 1024:.1f} of them since Elasticsearch wants to see so much free" if spare else ""
            )
            return (
                f"{free / 1024:.1f} GiB free on the disk of {', '.join(folders)}, needs {need / 1024:.1f}{why}: "
                "make room (see `df -h`), or use `stack = embedded`"
            )
    return ""


def disk_space(folder: str) -> tuple[int, int]:
    """(all, free for others than root) of the disk that a folder is on, in MiB."""
    told = os.statvfs(at(folder))
    return told.f_blocks * told.f_frsize >> 20, told.f_bavail * told.f_frsize >> 20


def fact_elastic_machine() -> str:
    machine, kernel = os.uname().machine, os.uname().release
    if machine not in ARCHITECTURES:
        return f"this CPU is {machine}, and Elastic has packages for {' and '.join(ARCHITECTURES)} only: use `stack = embedded`"
    if tuple(map(int, re.findall(r"\d+", kernel)[:2])) < (3, 10):
        return f"kernel {kernel} ({container() or 'no container'}) is too old for Elastic's Java: use `stack = embedded`"
    return ""


def container() -> str:
    """Which kind of container this is, such as "docker", "lxc" or "openvz"; empty on a machine of its own."""
    said = run("systemd-detect-virt", "--container").stdout.strip()
    return "" if said == "none" else said


def fact_elastic_ports(*ports: str) -> str:
    """Who else holds a port that Elastic's programs need; empty if nobody does."""
    for port, row in listening():
        holders = re.findall(r'"([^"]+)",pid=(\d+)', row) if port in ports else []
        for name, pid in holders:
            if f"/{UNITS[port]}.service" not in read_text(f"/proc/{pid}/cgroup"):
                return (
                    f"port {port} is taken by {name} (process {pid}), and {UNITS[port].capitalize()} needs it; stop "
                    "and disable that first, or move it to another port"
                )
    return ""


def fact_elastic_versions(version: str, *names: str) -> str:
    """What is installed already and cannot become `version` by an upgrade of ours; empty if all can."""
    ours = {name for e in Journal().entries.values() for name in e["want"].get("names", ())}
    known = {name.partition("=")[0] for name in ours}
    for name in names:
        if name not in dpkg():
            continue
        there, purge = dpkg()[name][1], f"`dpkg --purge {name}; rm -r /etc/{name}`"
        if name not in known:
            return (
                f"{name} {there} is installed, and not by knockmap: ship to it (elastic_hosts), or purge it first "
                f"if nobody needs it ({purge})"
            )
        if numbers(there)[0] != numbers(version)[0]:
            return (
                f"{name} {there} is of another major version than elastic_version = {version}: purge it first "
                f"({purge})"
            )
        if numbers(there) > numbers(version):
            return (
                f"{name} {there} is installed and elastic_version = {version} is lower: Elastic's data cannot go "
                f"back, so set elastic_version = {'.'.join(map(str, numbers(there)))}"
            )
    return remains() if "elasticsearch" in names and "elasticsearch" not in dpkg() else ""


def remains() -> str:
    """What is left of a server that is not there any more: its package would not set up TLS and passwords beside that."""
    half = (
        Journal().entries.get("package:elasticsearch", {}).get("unfinished")
    )  # dpkg goes on with what it began
    found = [folder for folder in ((DATA,) if half else (ETC, DATA)) if is_filled(folder)]
    if not found:
        return ""
    ways = {ETC: f"dpkg --purge elasticsearch; rm -r {ETC}", DATA: f"mv {DATA} {DATA}.former"}
    return (
        f"{' and '.join(found)} {'hold' if len(found) > 1 else 'holds'} what is left of an Elasticsearch that is not "
        "there any more, and beside that its package would not set up TLS and passwords; move that away: "
        f"`{'; '.join(ways[folder] for folder in found)}`"
    )


def is_filled(folder: str) -> bool:
    return os.path.isdir(at(folder)) and bool(os.listdir(at(folder)))


def fact_kibana_alone(elasticsearch: str) -> str:
    """What keeps Kibana from another version without the others: it does not work with an older Elasticsearch."""
    name, _, version = elasticsearch.partition("=")
    if name not in dpkg() or is_installed(elasticsearch):
        return ""
    return (
        f"elasticsearch {dpkg()[name][1]} is installed and elastic_version = {version}: Elasticsearch, Logstash and "
        "Kibana move together, by `fab -H … deploy`"
    )


def numbers(version: str) -> tuple[int, ...]:
    """(9, 5, 2) of 9.5.2 and of logstash's 1:9.5.2-1."""
    return tuple(map(int, re.findall(r"\d+", version.partition(":")[2] or version)[:3]))


def fact_elastic_sources(ours: str, url: str) -> str:
    """Another entry of apt's for the same archive, of which apt would complain at every run."""
    folder = "/etc/apt/sources.list.d"
    names = sorted(os.listdir(at(folder))) if os.path.isdir(at(folder)) else []
    read = [f"{folder}/{name}" for name in names if name.endswith((".list", ".sources"))]
    for path in ("/etc/apt/sources.list", *read):
        lines = [line for line in read_text(path).splitlines() if not line.lstrip().startswith("#")]
        stanzas = re.split(r"\n\s*\n", "\n".join(lines))
        in_force = [
            stanza
            for stanza in stanzas
            if not re.search(r"^Enabled:\s*(no|false|without|off|disable|0)\s*$", stanza, re.M | re.I)
        ]
        if path != ours and any(url.rstrip("/") in stanza for stanza in in_force):
            return f"{path} names {url} too, and apt wants each archive once: remove that entry"
    return ""


def fact_elasticsearch_modules() -> str:
    """Settings of modules that need memory or call home. One whose module is not there would end the start."""
    settings = {
        "x-pack-ml": "xpack.ml.enabled: false",
        "ingest-geoip": "ingest.geoip.downloader.enabled: false",
    }
    modules = at(f"{UNPACKED}/modules")
    there = os.listdir(modules) if os.path.isdir(modules) else list(settings)  # to come
    return "\n".join(line for module, line in settings.items() if module in there) or "# (none of them here)"


def fact_elasticsearch_mmap() -> str:
    """A container's host can forbid the number of maps that Elasticsearch's package asks the kernel for."""
    found = read_text("/proc/sys/vm/max_map_count").strip()
    if not found.isdigit() or int(found) >= LEAST_MAPS:
        return "# vm.max_map_count suffices: files are mapped."
    where = container()
    line = "node.store.allow_mmap: false"
    if line not in read_text("/etc/elasticsearch/elasticsearch.yml"):
        emit(
            "notice",
            text=f"vm.max_map_count is {found}"
            + (f", and in this container ({where}) it is the host's to set" if where else "")
            + f", so Elasticsearch does not map its files ({line})",
        )
    return line


FACTS: dict[str, Callable[..., str]] = {
    "elasticsearch_heap": lambda: str(heaps(memory()).elasticsearch),
    "logstash_heap": lambda: str(heaps(memory()).logstash),
    "kibana_heap": lambda: str(heaps(memory()).kibana),
    "elasticsearch_ca": lambda: read_text("/etc/elasticsearch/certs/http_ca.crt"),
    "elasticsearch_modules": fact_elasticsearch_modules,
    "elasticsearch_mmap": fact_elasticsearch_mmap,
    "elastic_memory": fact_elastic_memory,
    "elastic_disk": fact_elastic_disk,
    "kibana_disk": fact_elastic_disk,  # Kibana's packages are asked for by its own task
    "kibana_alone": fact_kibana_alone,
    "elastic_machine": fact_elastic_machine,
    "elastic_ports": fact_elastic_ports,
    "elastic_versions": fact_elastic_versions,
    "elastic_sources": fact_elastic_sources,
}
