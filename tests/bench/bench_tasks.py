"""What the benchmark has `fab -c bench_tasks` do: the compared tasks in one pass, and nothing at all."""

from __future__ import annotations

from typing import Any

import fabric  # type: ignore[import-untyped]

from fabfile.engine import fleet
from fabfile.engine.converge import converge, while_connecting
from fabfile.engine.report import Report
from tests.bench.rivals import compared

fleet.install()


@fleet.host_task
def sensor(c: Any, check: bool = False, diff: bool = False) -> Report:
    """Converge iptables_log, syslog_route and collector, as `deploy` would."""
    chosen = fleet.settings(c)
    return converge(c, while_connecting(c, lambda: compared(chosen)), check=check, diff=diff)


@fabric.task  # type: ignore[untyped-decorator, unused-ignore]
def noop(c: Any) -> None:
    """Log in and run true."""
    c.run("true")
