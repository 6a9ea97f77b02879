"""A collection of its own for test_engine_transport.py: `fab -r tests/container -c engine_tasks …`."""

from __future__ import annotations

from fabric import Connection

from fabfile.engine import fleet
from fabfile.engine.converge import converge
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import File, Package

fleet.install()


@host_task
def small(c: Connection, check: bool = False) -> Report:
    """One file."""
    return converge(c, {"engine": [File("/etc/engine-small", text="here\n")]}, check=check)


@host_task
def packages(c: Connection, check: bool = False) -> Report:
    """A package and a file after it."""
    plan = [Package("hello"), File("/etc/engine-after", text="here\n")]
    return converge(c, {"engine": plan}, check=check)
