"""From a command line to hosts: `@host_task` makes a task remote, the executor runs it on all hosts at once.

A task body is short; the flags that all tasks share are added here, and the body names those that it needs:

    @host_task
    def deploy(c, check=False, diff=False):
        '''Turn a fresh VPS into a box that shows who knocks.'''
        return converge(c, plan(settings(c)), check=check, diff=diff)

It returns a Report, a text or an Answer to print, or nothing. One bad host does not stop the others.
Exit codes: 0 done, 1 a host or a resource failed, 2 misuse.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TextIO

import fabric  # type: ignore[import-untyped]
import fabric.executor  # type: ignore[import-untyped]
import fabric.main  # type: ignore[import-untyped]
import fabric.tasks  # type: ignore[import-untyped]
from invoke.exceptions import AuthFailure, Exit, ParseError, ThreadException, UnexpectedExit, UnknownFileType
from invoke.vendor.yaml import YAMLError

from fabfile.engine.connection import VerifiedConnection
from fabfile.engine.errors import HostError, UsageError
from fabfile.engine.report import Answer, LiveLine, Report, Screen, colourful, failure_document, printable
from fabfile.settings import PREFIX, SettingError, Settings, load

HELP = {
    "check": "Only look and say what would change; nothing is written.",
    "diff": "As --check, and show what would change inside of files.",
    "fail-on-change": "Exit with 1 if something changed or, with --check, would change.",
    "verbose": "Show also what is as it shall be.",
    "json": "One JSON document per host instead of lines.",
    "limit": "How many hosts are worked on at once (default 8).",
    "accept-new": "Accept the key of a host that is not known yet.",
}
# Flags of tasks that change things, and of all tasks.
CHANGING: dict[str, Any] = {"fail_on_change": False, "verbose": False, "json": False}
COMMON: dict[str, Any] = {"limit": 8, "accept_new": False}


class HostTask(fabric.tasks.Task):  # type: ignore[misc] # fabric has no types
    """A task that runs on hosts and never on the operator's machine."""

    help: dict[str, Any]

    def __init__(self, body: Callable[..., Any], **kwargs: Any) -> None:
        kwargs.setdefault("auto_shortflags", False)  # -c, -d, -f and -l are Fabric's own
        self.own = tuple(inspect.signature(body).parameters)
        extra = {**COMMON, **(CHANGING if "check" in self.own else {})}
        self.extra = {name: value for name, value in extra.items() if name not in self.own}
        named = {*self.own, *self.extra}
        help = {key: text for key, text in HELP.items() if key.replace("-", "_") in named}
        super().__init__(body, help={**help, **(kwargs.pop("help", None) or {})}, **kwargs)

    def argspec(self, body: Callable[..., Any]) -> inspect.Signature:
        """The body's parameters (without its context) and the shared flags."""
        signature = super().argspec(body)
        flags = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in self.extra.items()
        ]
        return inspect.Signature([*signature.parameters.values(), *flags])

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Any]:
        """As Invoke's, which uses up the help texts: the second time there are none."""
        help = dict(self.help)
        arguments: list[Any] = super().get_arguments(ignore_unknown_help)
        self.help = help
        return arguments

    def __call__(self, c: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(c, *args, **{k: v for k, v in kwargs.items() if k in self.own})


def host_task(*args: Any, **kwargs: Any) -> Any:
    """Fabric's @task for tasks that run on hosts; takes the same options."""
    return fabric.task(*args, **{"klass": HostTask, **kwargs})


def refuse_dry(c: Any, what: str) -> None:
    """For what changes something and cannot be tried. Raises UsageError with Fabric's --dry."""
    if c.config.run.dry:
        raise UsageError(f"{what}: cannot be tried with --dry; nothing was done")


def settings(c: Any) -> Settings:
    """The settings for this run, from fabric.yaml and the environment. Raises SettingError."""
    if isinstance(c, VerifiedConnection) and c.settings:
        return c.settings
    return _settings(c.config)


def _settings(config: Any) -> Settings:
    section = config.get("knockmap")
    if section is not None and not hasattr(section, "items"):
        raise SettingError(
            f"knockmap: {section!r} (from fabric.yaml): must be settings with their values, such as `stack: embedded`"
        )
    named = tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith(PREFIX)))
    return _loaded(json.dumps(dict(section) if section else {}), named)


@lru_cache
def _loaded(section: str, environ: tuple[tuple[str, str], ...]) -> Settings:
    return load(json.loads(section), dict(environ))


# --- the executor -----------------------------------------------------------------------------------------------


class VerifiedCall(fabric.tasks.ConnectionCall):  # type: ignore[misc]
    """Fabric's call of any task on a host, over a connection that knows who answers."""

    def make_context(self, config: Any) -> VerifiedConnection:
        return VerifiedConnection(**self.init_kwargs, config=config, settings=_settings(config))


@dataclass
class Outcome:
    """How it ended on one host; `error` is a sentence, or empty."""

    host: str
    report: Report | None = None
    error: str = ""
    answer: Answer | None = None

    @property
    def failed(self) -> bool:
        return bool(self.error) or any(one is not None and not one.ok for one in (self.report, self.answer))

    @property
    def last_line(self) -> str:
        error = self.error.removeprefix(f"{self.host}: ")
        parts = [self.report.summary if self.report else "", self.answer.summary if self.answer else ""]
        parts.append(f"failed: {error}" if error else "")
        return "; ".join(part for part in parts if part)


class Executor(fabric.executor.Executor):  # type: ignore[misc]
    """Runs host tasks on their hosts in parallel; everything else as Fabric does, with verified host keys."""

    def parameterize(self, call: Any, connection_init_kwargs: dict[str, Any]) -> Any:
        return call.clone(into=VerifiedCall, with_={"init_kwargs": connection_init_kwargs})

    def execute(self, *tasks: Any) -> dict[Any, Any]:
        try:
            calls = self.normalize(tasks)
            if not any(isinstance(call.task, HostTask) for call in calls):
                return dict(super().execute(*tasks))
            if others := [call.task.name for call in calls if not isinstance(call.task, HostTask)]:
                raise UsageError(
                    f"{', '.join(others)}: run this by itself, not together with tasks for hosts"
                )
            if self.core.remainder:
                raise UsageError("give either tasks or a command after --, not both")
            self.run_on_hosts(calls)
            return {}
        except (UsageError, SettingError) as error:
            raise Exit(str(error), code=2) from None
        except HostError as error:
            raise Exit(str(error), code=1) from None

    def run_on_hosts(self, calls: list[Any]) -> None:
        """Raises UsageError before anything connects, Exit(1) when a host failed."""
        chosen = _settings(self.config)
        hosts = self.hosts(chosen)
        flags = [call.kwargs for call in calls]
        if any(flag.get("accept_new") for flag in flags):
            chosen = replace(chosen, ssh_accept_new=True)
        limit = min(int(flag.get("limit", 8)) for flag in flags)
        if limit < 1:
            raise UsageError(f"--limit {limit}: must be 1 or more")
        with contextlib.redirect_stdout(Unbroken(sys.stdout)):
            run = Run(self, calls, chosen, many=len(hosts) > 1)
            outcomes = run.all(hosts, limit)
        if run.misuse:
            raise UsageError(run.misuse)
        changed = any(o.report and o.report.changed for o in outcomes)
        alarm = changed and any(flag.get("fail_on_change") for flag in flags)
        if alarm or any(outcome.failed for outcome in outcomes):
            raise Exit(code=1)

    def hosts(self, chosen: Settings) -> list[str]:
        """Those of -H, else those of the settings."""
        named = self.core[0].args.hosts.value
        hosts = [host.strip() for host in named.split(",")] if named else list(chosen.hosts)
        hosts = list(dict.fromkeys(host for host in hosts if host))
        if not hosts:
            raise UsageError(
                "name a host: fab -H user@host …, or KNOCKMAP_HOSTS=a,b, or in fabric.yaml `knockmap:` with `hosts: [a, b]`"
            )
        return hosts

    def config_for(self, call: Any) -> Any:
        self.config.load_collection(self.collection.configuration(call.called_as))
        self.config.load_shell_env()
        return self.config


class Unbroken(io.TextIOBase):
    """The operator's stdout. Who stops reading it (`| head`) stops no work on a host, which might be a move of sshd."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def write(self, text: str) -> int:
        with self.to_nobody_if_broken():
            self.out.write(text)
        return len(text)

    def flush(self) -> None:
        with self.to_nobody_if_broken():
            self.out.flush()

    def isatty(self) -> bool:
        return self.out.isatty()

    def fileno(self) -> int:
        return self.out.fileno()

    @contextlib.contextmanager
    def to_nobody_if_broken(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.out.fileno())
            os.close(null)


class Run:
    """The given calls on all hosts: a host goes through them in order and stops at its first failure."""

    def __init__(self, executor: Executor, calls: list[Any], chosen: Settings, many: bool) -> None:
        self.calls, self.chosen, self.many = calls, chosen, many
        self.config = executor.config_for(calls[-1])
        self.live = LiveLine(sys.stdout)
        self.connections: list[VerifiedConnection] = []
        self.misuse = ""
        self.json = any(call.kwargs.get("json") for call in calls)
        self.verbose = any(call.kwargs.get("verbose") for call in calls)

    def all(self, hosts: list[str], limit: int) -> list[Outcome]:
        contexts = [self.context(host) for host in hosts]
        try:
            outcomes = self.parallel(contexts, limit) if self.many else [self.one(contexts[0])]
        except KeyboardInterrupt:
            self.live.clear()
            raise Exit(
                "interrupted: each target finishes the resource at hand and stops; run again to go on", 1
            ) from None
        finally:
            for c in self.connections:
                c.close()
        if self.many and not self.json and not self.misuse:
            self.print_last_lines(outcomes)
        return outcomes

    def print_last_lines(self, outcomes: list[Outcome]) -> None:
        """One line for each host that has something to count or to complain about, failures last."""
        width = max(len(outcome.host) for outcome in outcomes)
        for outcome in sorted(outcomes, key=lambda outcome: outcome.failed):
            if outcome.last_line:
                print(f"{outcome.host:<{width}}  {printable(outcome.last_line)}")

    def context(self, host: str) -> VerifiedConnection:
        try:
            c = VerifiedConnection(host, config=self.config.clone(), settings=self.chosen)
        except ValueError:
            raise UsageError(f"-H {host}: must be host, user@host or user@host:port") from None
        if not 1 <= c.port <= 65535:
            raise UsageError(f"-H {host}: there is no port {c.port}; ports go from 1 to 65535")
        out = io.StringIO() if self.many else sys.stdout
        screen = Screen(host, out, self.live, self.verbose, colourful(sys.stdout), self.json)
        c._set(screen=screen, tell=screen.notice, many=self.many)
        self.connections.append(c)
        return c

    def parallel(self, contexts: list[VerifiedConnection], limit: int) -> list[Outcome]:
        pool = concurrent.futures.ThreadPoolExecutor(limit)
        futures = {pool.submit(self.one, c): c for c in contexts}
        try:
            for future in concurrent.futures.as_completed(futures):
                self.print_group(futures[future], future.result())
        finally:
            for c in contexts if sys.exc_info()[0] else ():
                c.close()
            pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]

    def print_group(self, c: VerifiedConnection, outcome: Outcome) -> None:
        body = c.screen.out.getvalue()
        self.live.clear()
        if body and not self.json:
            print(c.screen.paint(f"── {outcome.host} " + "─" * max(4, 60 - len(outcome.host)), "1"))
        sys.stdout.write(body)
        sys.stdout.flush()

    def one(self, c: VerifiedConnection) -> Outcome:
        """All calls on one host; every expected failure ends as a sentence."""
        outcome = Outcome(c.screen.host)
        self.live.show(outcome.host, "connecting")
        try:
            for call in self.calls:
                self.take(outcome, c, call.task(c, *call.args, **self.kwargs(call)))
                if outcome.failed:
                    break
        except (UsageError, SettingError) as error:
            self.misuse = outcome.error = str(error)
        except (HostError, UnexpectedExit, AuthFailure, ThreadException, Exit) as error:
            outcome.error = str(error).strip() or f"ended with {type(error).__name__}"
        except Exception as error:  # a bug on one host must not take the others along
            traceback.print_exc(file=sys.stderr)
            outcome.error = f"{type(error).__name__}: {error}; this is a bug of knockmap"
        self.close(outcome, c)
        return outcome

    def kwargs(self, call: Any) -> dict[str, Any]:
        """The call's arguments; --diff and Fabric's --dry mean --check, too."""
        only_look = self.config.run.dry or call.kwargs.get("diff")
        dry = {"check": True} if only_look and "check" in call.task.own else {}
        return {**call.kwargs, **dry}

    def take(self, outcome: Outcome, c: VerifiedConnection, value: Any) -> None:
        if isinstance(value, Report):
            outcome.report = outcome.report + value if outcome.report else value
        elif value is not None:
            if isinstance(value, Answer):
                outcome.answer, value = value, value.text
            else:  # an Answer has colours, and is printable already
                value = printable(str(value))
            with_newline = str(value).rstrip("\n") + "\n"
            self.live.clear()
            c.screen.out.write(with_newline)

    def close(self, outcome: Outcome, c: VerifiedConnection) -> None:
        """The end of one host's output."""
        self.live.drop(outcome.host)
        if self.json:
            if outcome.error:
                c.screen.out.write(failure_document(outcome.host, outcome.error, c.screen) + "\n")
            elif outcome.report:
                c.screen.out.write(json.dumps(outcome.report.document(), ensure_ascii=False) + "\n")
        elif not self.many and not self.misuse:
            if outcome.report:
                print(outcome.report.summary)
            if outcome.error:
                print(printable(outcome.error), file=sys.stderr)


def install(program: Any = fabric.main.program, words: Mapping[str, str] | None = None) -> None:
    """Make `fab` use this executor, and exit with 2 on a command line that it cannot read.

    `words` names tasks whose next word is not another task but the value of an option, such as
    {"undo": "--task"}: Invoke itself has no optional positional arguments, and would run `undo` of all and then that.
    """
    program.executor_class = Executor
    parse, update = type(program).parse_tasks, type(program).update_config

    def parse_tasks() -> None:
        dashed = with_dashes(program.core.unparsed, program.collection.task_names)
        program.core.unparsed[:] = with_options(dashed, words or {})
        try:
            parse(program)
        except ParseError as error:
            raise Exit(f"{error} (`fab --list` shows all tasks)", code=2) from None
        except ValueError as error:
            text = str(error).rpartition(": ")[2]
            raise Exit(f"{text}: is no number, and an option wants one (--limit or --rows)", code=2) from None

    def update_config() -> None:
        with readable_config():
            update(program)

    program.parse_tasks, program.update_config = parse_tasks, update_config
    # fabric.yaml is read right after the fabfile: this is the first moment at which we can be there.
    fabric.Config.load_project = load_project


def load_project(config: Any, merge: bool = True) -> None:
    if os.environ.get("BOX_ALONE"):  # demo and tests, whose boxes are nothing to an operator's fabric.yaml
        return
    with readable_config():
        super(fabric.Config, config).load_project(merge=merge)


@contextlib.contextmanager
def readable_config() -> Iterator[None]:
    """Misuse (exit 2), in a sentence, for a configuration file that is not there or cannot be read."""
    try:
        yield
    except OSError as error:
        raise Exit(
            f"{error.filename}: {error.strerror}; which ssh_config or fabric.yaml is meant?", code=2
        ) from None
    except (YAMLError, UnknownFileType) as error:
        raise Exit(f"a configuration file cannot be read: {error}", code=2) from None


def with_dashes(argv: Sequence[str], tasks: Iterable[str]) -> list[str]:
    """The command line with `iptables_log` written as `iptables-log`, as Invoke names tasks."""
    known = set(tasks)
    return [dashed if (dashed := word.replace("_", "-")) in known else word for word in argv]


def with_options(argv: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """The command line with `undo x` written as `undo --task x`."""
    written: list[str] = []
    for word in argv:
        if written and written[-1] in words and not word.startswith("-"):
            written.append(words[written[-1]])
        written.append(word)
    return written
