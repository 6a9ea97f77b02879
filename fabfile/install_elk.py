"""Elasticsearch and Logstash on the box: installed, closed, secured, and every line of the log an event in the data stream.

With `elastic_hosts` or `elastic_cloud_id` the events go to a cluster elsewhere, and only Logstash is installed.
"""

from __future__ import annotations

from fabric import Connection  # type: ignore[import-untyped]

from fabfile import elastic_pipeline, elastic_source, elastic_store, kibana
from fabfile.elastic_pipeline import elsewhere
from fabfile.engine import fleet
from fabfile.engine.converge import converge
from fabfile.engine.errors import HostError, UsageError
from fabfile.engine.fleet import host_task
from fabfile.engine.report import Report
from fabfile.engine.resources import Resource
from fabfile.engine.transport import ask
from fabfile.settings import Settings


def resources(settings: Settings) -> list[Resource]:
    """In order of application: templates and accounts are there before the first document."""
    if elsewhere(settings):
        required, store = elastic_pipeline.requirements(settings), []
    else:
        required, store = elastic_store.requirements(settings), elastic_store.resources(settings)
    return [
        *required,
        *elastic_store.programs(),
        *elastic_source.resources(settings),
        *store,
        *elastic_pipeline.resources(settings),
    ]


@host_task
def install_elk(c: Connection, check: bool = False, diff: bool = False) -> Report:
    """Store who knocks in Elasticsearch, by way of Logstash."""
    chosen = fleet.settings(c)
    plan = {"install_elk": resources(chosen)}
    # An upgrade stops Kibana, too, and all three are to have one version.
    if not elsewhere(chosen) and has_kibana(c):
        plan["kibana"] = kibana.upgraded(chosen)
    return converge(c, plan, check=check, diff=diff)


@host_task
def rotate_secrets(c: Connection) -> Report:
    """Renew passwords, API keys and token of the Elastic stack while it runs.

    The former are refused then. Kibana's encryption keys stay: what it has stored is read by them alone.
    """
    fleet.refuse_dry(c, "rotate-secrets")
    chosen = fleet.settings(c)
    if elsewhere(chosen):
        raise UsageError(
            "rotate-secrets: the key is another cluster's; renew elastic_api_key_file and deploy"
        )
    order(c, elastic_store.SECURITY, "rotate")
    plan: dict[str, list[Resource]] = {"install_elk": elastic_pipeline.renewed(chosen)}
    if has_kibana(c):
        order(c, kibana.ACCESS, "rotate")
        plan["kibana"] = kibana.renewed(chosen)
    report = converge(c, plan)
    if report.ok:
        order(c, elastic_store.SECURITY, "retire")
    return report


@host_task(help={"lines": "How many of the log's last lines."})
def pipeline_debug(c: Connection, lines: int = 5) -> str:
    """Show what Logstash makes of the log's last lines, without storing it."""
    if not 1 <= lines <= 1000:
        raise UsageError(f"--lines {lines}: must be from 1 to 1000")
    return order(c, elastic_store.LOGSTASH, "debug", str(lines))


def has_kibana(c: Connection) -> bool:
    return bool(ask(c, ["/usr/bin/test", "-e", kibana.ACCESS])[0] == 0)


def order(c: Connection, program: str, *words: str) -> str:
    """Have a program on the target do something. Raises HostError with its words."""
    status, out, error = ask(c, [program, *words])
    if status in (126, 127):
        raise HostError(
            f"{c.original_host}: there is no Elastic stack of ours; `fab -H … deploy` with stack = elastic brings it"
        )
    if status:
        raise HostError(f"{c.original_host}: {(error or out).decode(errors='replace').strip()[-600:]}")
    return out.decode(errors="replace")
