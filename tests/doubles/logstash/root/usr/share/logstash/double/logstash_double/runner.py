"""The program `logstash`: reads settings, tests or runs the pipelines, until SIGTERM.

Exit codes as upstream's: 0 done, 1 the settings or the configuration cannot be. Where a pipeline of a running Logstash
fails, the others go on; without any it ends with 0, and systemd starts it anew.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from . import VERSION, ConfigurationError, api, jvm
from .elasticsearch import Elasticsearch, Stopped
from .event import Event
from .pipeline import Pipeline
from .queues import DeadLetters, MemoryQueue, PersistentQueue, locked
from .settings import Settings, arguments, checked, configuration, load, pipelines

LOG = logging.getLogger("logstash.runner")
# `systemctl start` is back long before Logstash is there; who does not wait for it is to notice. A third of these seconds passes
# before the API answers, one before any plugin is registered, one before the inputs are. Set by bin/logstash.
STARTUP = float(os.environ.get("LOGSTASH_DOUBLE_STARTUP", "0"))
# The worst is the last.
COLORS = {"RUNNING": "green", "UNKNOWN": "unknown", "LOADING": "yellow", "TERMINATED": "red"}


class Worker:
    """One pipeline: a thread that reads the inputs, a thread that filters and writes. Made, registered, started.

    `state` is what the health report says of it. `configured` as soon as upstream would say how many workers it has: between
    its filters' registration and its inputs'.
    """

    def __init__(self, settings: Settings, text: str) -> None:
        self.settings, self.name = settings, settings["pipeline.id"]
        self.state, self.configured = "LOADING", False
        self.pipeline = Pipeline(text)
        self.queue = make_queue(settings)
        self.stopping = threading.Event()
        self.counts = {"in": 0, "filtered": 0, "out": 0}
        self.failed = ""
        self.letters = self.make_dead_letters()
        self.threads = [threading.Thread(target=self.guard, args=(run,)) for run in (self.read, self.work)]

    def make_dead_letters(self) -> DeadLetters | None:
        if not self.settings["dead_letter_queue.enable"]:
            return None
        folder = self.settings.folder("path.dead_letter_queue") / self.name
        letters = DeadLetters(
            folder,
            self.settings["dead_letter_queue.max_bytes"],
            self.settings["dead_letter_queue.storage_policy"],
        )
        for output in self.elasticsearches():
            output.dead_letters = letters
        return letters

    def elasticsearches(self) -> list[Elasticsearch]:
        return [output for output in self.pipeline.outputs.values() if isinstance(output, Elasticsearch)]

    def register(self) -> None:
        """An Elasticsearch that is away is waited for later; raises ConfigurationError where it refuses the credentials."""
        self.pipeline.register_outputs()
        for output in self.elasticsearches():
            with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
                output.connect()
        self.pipeline.register_filters()
        self.configured = True
        time.sleep(STARTUP / 3)
        self.pipeline.register_inputs()

    def guard(self, run: Any) -> None:
        """A plugin that fails ends its pipeline."""
        try:
            run()
        except Stopped:
            pass
        except Exception as error:
            LOG.error("Pipeline error pipeline_id=%s exception=%s", self.name, error)
            self.failed, self.state = str(error), "TERMINATED"
            self.stop()

    def read(self) -> None:
        while not self.stopping.is_set():
            going_on = [source.step(self.put) for source in self.pipeline.inputs]
            if not any(going_on):
                break
            self.stopping.wait(min(source.settings["stat_interval"] for source in self.pipeline.inputs))
        for source in self.pipeline.inputs:
            source.keep()
        self.queue.close()

    def put(self, events: list[Event]) -> None:
        if events:
            self.counts["in"] += len(events)
            self.queue.put(events)

    def work(self) -> None:
        """Until the inputs are done and the queue is empty, or, with a persistent one, until we are to stop."""
        while True:
            entries = self.queue.take(
                self.settings["pipeline.batch.size"], self.settings["pipeline.batch.delay"] / 1000
            )
            if entries:
                events = self.pipeline.filter([event for _, event in entries])
                self.counts["filtered"] += len(entries)
                self.pipeline.write(events)
                self.counts["out"] += len(events)
                self.queue.acknowledge(entries)
            kept = isinstance(self.queue, PersistentQueue) and not self.settings["queue.drain"]
            if (self.queue.closed and not entries) or (self.stopping.is_set() and kept):
                return

    def start(self) -> None:
        LOG.info('Pipeline started {"pipeline.id"=>"%s"}', self.name)
        self.state = "RUNNING"
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """In-flight events that Elasticsearch does not take are waited for unless the shutdown may be unsafe or the queue keeps them."""
        self.stopping.set()
        if (
            self.settings["pipeline.unsafe_shutdown"]
            or isinstance(self.queue, PersistentQueue)
            or self.failed
        ):
            for output in self.elasticsearches():
                output.stop()
            self.queue.close()

    def statistics(self) -> dict[str, Any]:
        filters = [
            {"id": plugin.settings["id"] or f"{plugin.name}-{number}", "name": plugin.name} | plugin.counts
            for number, plugin in enumerate(self.pipeline.filters.values())
        ]
        kept = isinstance(self.queue, PersistentQueue)
        queue = {
            "type": self.settings["queue.type"],
            "events_count": len(self.queue.entries),
            "queue_size_in_bytes": self.queue.size(),
            "max_queue_size_in_bytes": self.settings["queue.max_bytes"] if kept else 0,
        }
        letters = (
            {"queue_size_in_bytes": self.letters.size(), "dropped_events": self.letters.dropped}
            if self.letters
            else {}
        )
        return {
            "events": self.counts,
            "plugins": {"filters": filters},
            "pipeline": {"workers": self.settings["pipeline.workers"] if self.configured else None},
            "queue": queue,
            "dead_letter_queue": letters,
        }

    def about(self) -> dict[str, Any]:
        return {
            "workers": self.settings["pipeline.workers"],
            "batch_size": self.settings["pipeline.batch.size"],
            "batch_delay": self.settings["pipeline.batch.delay"],
            "config_reload_automatic": self.settings["config.reload.automatic"],
            "dead_letter_queue_enabled": self.settings["dead_letter_queue.enable"],
        }


def make_queue(settings: Settings) -> MemoryQueue:
    """Opened: a persistent one is locked until it is released. Raises ConfigurationError."""
    if settings["queue.type"] == "memory":
        return MemoryQueue()
    folder = settings.folder("path.queue") / settings["pipeline.id"]
    return PersistentQueue(folder, settings["queue.page_capacity"], settings["queue.max_bytes"])


def texts(settings: Settings, folder: Path) -> list[tuple[Settings, str]]:
    """Each pipeline's settings and configuration: of -e, of -f, else of pipelines.yml."""
    if settings["config.string"]:
        return [(settings, settings["config.string"])]
    if settings["path.config"]:
        return [(settings, configuration(settings["path.config"]))]
    found = []
    for own in pipelines(folder / "pipelines.yml"):
        one = checked(
            {name: v for name, v in settings.values.items() if name not in own and v is not None} | own
        )
        found.append((one, one["config.string"] or configuration(one["path.config"])))
    return found


def test(settings: Settings, folder: Path) -> int:
    """-t: plugins are made, and nothing is registered; so unknown patterns and contradictions show at the start only.

    The folder of data is not locked, and yet the queue in it is opened.
    """
    try:
        for own, text in texts(settings, folder):
            Pipeline(text)
            make_queue(own).release()
    except ConfigurationError as error:
        LOG.fatal("The given configuration is invalid. Reason: %s", error)
        return 1
    print("Configuration OK")
    return 0


def lock(settings: Settings) -> Any:
    """Raises ConfigurationError where another instance has the folder of data."""
    folder = Path(settings["path.data"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return locked(folder)
    except BlockingIOError:
        raise ConfigurationError(
            "Logstash could not be started because there is already another instance using the configured data directory.  "
            'If you wish to run multiple instances, you must change the "path.data" setting.'
        ) from None
    except OSError:
        raise ConfigurationError(
            f'Path "{folder}" must be a writable directory. It is not writable.'
        ) from None


def make(settings: Settings, folder: Path, known: list[Worker]) -> None:
    """All pipelines that can be made, into `known`, of which the API tells."""
    for own, text in texts(settings, folder):
        try:
            known.append(Worker(own, text))
        except ConfigurationError as error:
            LOG.error(
                "Failed to execute action id=%s exception=LogStash::ConfigurationError: %s",
                own["pipeline.id"],
                error,
            )


def register(workers: list[Worker]) -> list[Worker]:
    """Those that can be started."""
    time.sleep(STARTUP / 3)
    for worker in workers:
        try:
            worker.register()
        except ConfigurationError as error:
            worker.state = "UNKNOWN"
            worker.queue.release()
            LOG.error("Pipeline error pipeline_id=%s exception=%s", worker.name, error)
            LOG.error(
                "Failed to execute action id=%s message=Could not execute action: PipelineAction::Create<%s>, action_result: false",
                worker.name,
                worker.name,
            )
    return [worker for worker in workers if worker.state == "LOADING"]


def run(settings: Settings, folder: Path) -> int:
    time.sleep(STARTUP / 3)
    held, known = lock(settings), list[Worker]()
    if settings["api.enabled"]:
        api.serve(settings, answers(known))
    make(settings, folder, known)
    workers = register(known)
    if not workers:
        LOG.fatal("Logstash stopped processing because of an error: (SystemExit) exit")
        return 1

    def stop(*_: Any) -> None:
        for worker in workers:
            worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    for worker in workers:
        worker.start()
    for worker in workers:
        for thread in worker.threads:
            thread.join()
        worker.queue.release()
    held.close()
    LOG.info("Logstash shut down.")
    return 0


def answers(workers: list[Worker]) -> api.Answers:
    """By path. What is told of a pipeline is told before it runs, and still when it has failed."""
    return {
        "/": lambda: {"status": health(workers)["status"]},
        "/_health_report": lambda: health(workers),
        "/_node/pipelines": lambda: {
            "pipelines": {worker.name: worker.about() for worker in workers if worker.configured}
        },
        "/_node/stats/pipelines": lambda: {
            "pipelines": {worker.name: worker.statistics() for worker in workers}
        },
    }


def health(workers: list[Worker]) -> dict[str, Any]:
    """The worst color of all is that of the whole."""
    states = {worker.name: worker.state for worker in list(workers)}
    pipelines = {
        name: {"status": COLORS[state], "details": {"status": {"state": state}}}
        for name, state in states.items()
    }
    color = COLORS[max(states.values(), key=list(COLORS).index, default="RUNNING")]
    return {"status": color, "indicators": {"pipelines": {"status": color, "indicators": pipelines}}}


def main(argv: list[str]) -> int:
    for level, name in ((logging.WARNING, "WARN"), (logging.CRITICAL, "FATAL")):
        logging.addLevelName(level, name)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="[%(asctime)s][%(levelname)-5s][%(name)s] %(message)s"
    )
    try:
        given = arguments(argv)
        if given.version:
            print(f"logstash {VERSION}")
            return 0
        jvm.check(given.folder)
        settings = load(given)
    except ConfigurationError as error:
        LOG.fatal("Your settings are invalid. Reason: %s", error)
        return 1
    if os.geteuid() == 0 and not settings["allow_superuser"]:
        LOG.fatal(
            "An unexpected error occurred! :error=>#<RuntimeError: Logstash cannot be run as superuser.>"
        )
        return 1
    try:
        return (
            test(settings, given.folder) if settings["config.test_and_exit"] else run(settings, given.folder)
        )
    except ConfigurationError as error:
        LOG.fatal("%s", error)
        return 1
