"""What all three tools must have brought about before their times may be compared: `pytest --hosts docker://…`."""

from __future__ import annotations

from typing import Any

import pytest

from fabfile.engine.resources import Directory, File, Package, Resource, Service
from fabfile.settings import Settings
from tests.bench.rivals import applicable, compared, content, rights

SETTINGS = Settings(stack="embedded", geo_source="none")
# The first one is what knockmap's engine makes for its own journal.
RESOURCES = applicable(
    [Directory("/var/lib/knockmap")] + [r for resources in compared(SETTINGS).values() for r in resources]
)


def kind(wanted: type[Resource]) -> list[Any]:
    return [pytest.param(r, id=r.id) for r in RESOURCES if isinstance(r, wanted)]


@pytest.mark.parametrize("package", [name for p in RESOURCES if isinstance(p, Package) for name in p.names])
def test_package(host: Any, package: str) -> None:
    assert host.package(package).is_installed


@pytest.mark.parametrize("resource", kind(File) + kind(Directory))
def test_path(host: Any, resource: File | Directory) -> None:
    found, right = host.file(resource.path), rights(resource)
    assert (found.user, found.group, f"{found.mode:04o}") == tuple(right.values())
    assert found.is_directory == isinstance(resource, Directory)
    if isinstance(resource, File) and (text := content(resource)) is not None:
        assert found.content_string == text


@pytest.mark.parametrize("resource", kind(Service))
def test_service(host: Any, resource: Service) -> None:
    service = host.service(resource.unit)
    assert resource.running is None or service.is_running == resource.running
    assert resource.enabled is None or service.is_enabled == resource.enabled


@pytest.mark.parametrize("program", ["iptables", "ip6tables"])
def test_the_chain_is_entered_first(host: Any, program: str) -> None:
    lines = host.check_output(f"{program} -S").splitlines()
    inputs = [line for line in lines if line.startswith("-A INPUT")]
    assert inputs[0].endswith("-j KNOCKMAP") and len(inputs) == 1
    assert any("LOG" in line for line in lines if line.startswith("-A KNOCKMAP"))
