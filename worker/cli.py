"""The operator's commands. Answers go to stdout (a table, or one JSON document with ``--json``), progress and logs to stderr.

Exit codes: 0 done, 1 the answer is bad news, 2 wrong usage or configuration. How answers look is in `printing`.
"""

from __future__ import annotations

import functools
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem, get_completion_class

from worker import audit as proof
from worker import discover as listing
from worker import forecast, logs, printing, proving
from worker import init as first
from worker import settings as configuration
from worker.archive import Entry
from worker.daemon import Daemon, open_daemon
from worker.errors import ConfigurationError, LastcallError, LedgerUnavailableError
from worker.forecast import Forecast
from worker.ledger import Ledger, SourceStatus
from worker.model import JsonObject, OutputId, OutputState, timestamp
from worker.printing import err, out, plain, print_json
from worker.settings import Settings

BAD_NEWS, WRONG_USAGE = 1, 2

_SECTIONS = {
    "Begin": ("init", "check", "demo", "completion"),
    "Look": ("status", "outputs", "show", "health"),
    "Act": ("poll", "watch", "retry", "acknowledge", "rebuild"),
    "Prove": ("audit", "verify"),
    "Run (Procfile)": ("worker", "beat", "web", "flower"),
}

_EPILOG = """
\b
Configuration: --config PATH, else $LASTCALL_CONFIG, else
config/lastcall.toml. `lastcall init` writes a first one;
config/example.toml has every key with its default.

\b
Environment:
  LASTCALL_CONFIG     the configuration file
  LASTCALL_REDIS_URL  wins over redis_url of the file
  AWS_…               the bucket's credentials, where the file has none
  and whatever the file names as { env = "NAME" }

\b
Exit codes:
  0  done
  1  the answer is bad news (a failed check, a loss nobody acknowledged,
     an audit that is not empty, Redis or the bucket out of reach)
  2  wrong usage or configuration

\b
Examples:
  lastcall check                            is everything set up?
  lastcall status                           is anything in danger?
  lastcall outputs --state held             what waits for me, and why?
  lastcall show SOURCE/JOB_ID/OUTPUT_ID     the story of one output
  lastcall audit --last 30d --json          proof, for a script

An OUTPUT is SOURCE/JOB_ID/OUTPUT_ID, as `lastcall outputs` prints it.
"""


class _Group(click.Group):
    """Turns our errors into messages and exit codes, for every command; lists commands by what one wants to do."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigurationError as exc:
            for problem in exc.problems:
                click.echo(problem, err=True)
            ctx.exit(WRONG_USAGE)
        except LastcallError as exc:
            click.echo(f"lastcall: {exc}", err=True)
            ctx.exit(BAD_NEWS)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in sections."""
        width = max(map(len, self.commands))
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(64)) for name in names]
                formatter.write_dl(rows)


@click.group(
    cls=_Group,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file.")
@click.version_option(package_name="lastcall")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Archive vendors' export files into S3 before they expire."""
    ctx.obj = config
    if ctx.invoked_subcommand not in {"worker", "beat"}:  # Celery sets up logging there
        logs.configure(logging.INFO if ctx.invoked_subcommand in {"web", "flower"} else logging.WARNING)


# --- what commands share ---------------------------------------------------------------------------------------------

_config_file = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file.", metavar="PATH"
)


def _config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Take ``--config`` behind the command as well, and hand on the loaded settings."""

    @_config_file
    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, *arguments: Any, config: Path | None, **options: Any) -> Any:
        return command(configuration.load(config or ctx.obj), *arguments, **options)

    return wrapped


def _complete_source(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a source; a configuration that cannot be read completes nothing."""
    try:
        settings = configuration.load(ctx.params.get("config") or ctx.find_root().params.get("config"))
    except ConfigurationError:
        return []
    return [CompletionItem(name, help=one.vendor) for name, one in settings.sources.items() if name.startswith(incomplete)]


_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def _source_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--source", metavar="NAME", help=what, shell_complete=_complete_source)


@contextmanager
def _interruptible(daemon: Daemon) -> Iterator[None]:
    """Let Ctrl-C end what may take hours, and threads that read on, as a stop would: at once. A second one kills."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        daemon.keeper.request_stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _opened(settings: Settings) -> Iterator[Daemon]:
    """Open the rooms for one command; whatever it holds is kept alive while it works."""
    daemon = open_daemon(settings)
    daemon.ledger.ping()
    daemon.keeper.start(alive=False)
    try:
        with _interruptible(daemon):
            yield daemon
    finally:
        daemon.keeper.end()


@contextmanager
def _reading(settings: Settings) -> Iterator[Daemon]:
    """Open the rooms without a heartbeat: nothing will be held."""
    daemon = open_daemon(settings)
    daemon.ledger.ping()
    yield daemon


def _sources(settings: Settings, names: Iterable[str | None], *, enabled: bool = True) -> list[str]:
    """Give `names`, or all sources; the enabled ones where they are to be called. An unknown one is wrong usage."""
    wanted = [name for name in names if name is not None]
    for name in wanted:
        if name not in settings.sources:
            _usage(f"no source {name!r}; there are: {', '.join(settings.sources) or 'none'}")
        if enabled and not settings.sources[name].enabled:
            _usage(f"source {name!r} is not enabled; set enabled = true in [sources.{name}]")
    return wanted or [name for name, source in settings.sources.items() if source.enabled or not enabled]


def _usage(message: str) -> NoReturn:
    raise click.UsageError(message)


def _output(settings: Settings, text: str) -> OutputId:
    try:
        output = OutputId.parse(text)
    except ValueError as exc:
        _usage(str(exc))
    _sources(settings, [output.source])
    return output


def _wake(settings: Settings, daemon: Daemon) -> None:
    """Wake the workers for what was just written down, instead of waiting for the next tick."""
    from worker import app

    app.configure(settings)
    app.wake(daemon)


class _Moment(click.ParamType[datetime]):
    """A date or a time; without a zone it is UTC."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-03-26 or 2026-03-26T12:00:00Z", param, ctx)
        return at.replace(tzinfo=at.tzinfo or UTC)


class _Span(click.ParamType[timedelta]):
    """A duration, as in the configuration."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        try:
            return configuration.duration(value)
        except ValueError as exc:
            self.fail(f"{value!r}: {exc}", param, ctx)


# --- begin -----------------------------------------------------------------------------------------------------------


@main.command()
@_config_file
@click.option("--vendor", type=click.Choice(configuration.VENDORS), help="The first source's vendor.")
@click.option("--name", help="The first source's name: a-z, 0-9 and -. It becomes part of every key.")
@click.option("--base-url", metavar="URL", help="Its base URL, where the vendor has no common one.")
@click.option("--bucket", help="The bucket.")
@click.option("--prefix", default="archive", show_default=True, help="What every key begins with; may be empty.")
@click.option("--region", default="", help="The bucket's region.")
@click.option("--endpoint-url", metavar="URL", default="", help="Another S3-compatible service than AWS.")
@click.option("--redis-url", metavar="URL", default="redis://127.0.0.1:6379/0", show_default=True, help="Redis.")
@click.option(
    "--secrets",
    metavar="env|FOLDER",
    default="env",
    show_default=True,
    help="Where secrets are: in environment variables, or in files of a folder.",
)
@click.pass_context
def init(ctx: click.Context, /, config: Path | None, **answers: str | None) -> None:
    """Write a first configuration.

    Asks for what no option says; without a terminal, --vendor and --bucket
    are required. The file has mode 0600, holds no secret but says where each
    is found, and is never overwritten.

    \b
    Example:
      lastcall init --vendor api2convert --bucket my-exports
    """
    path = configuration.find(config or ctx.obj)
    if path.exists():
        raise ConfigurationError([f"{path}: stands already, and is not overwritten; name another file with --config"])
    if sys.stdin.isatty():
        _ask(ctx, answers)
    elif missing := [f"--{name}" for name in ("vendor", "bucket") if not answers[name]]:
        _usage(f"there is no terminal to ask at: give {' and '.join(missing)}")
    answers["name"] = answers["name"] or first.default_name(answers["vendor"] or "")
    answers["base_url"] = answers["base_url"] or ""
    secrets = first.write(first.Answers(**{key: value or "" for key, value in answers.items()}), path)
    out.print(f"{plain(path)}: written, mode 0600")
    if secrets:
        out.print("Now give the daemon and your shell:")
    for secret in secrets:
        out.print(f"  environment variable {plain(secret.env)}" if secret.env else f"  file {plain(secret.file)} (chmod 600)")
    option = "" if path == configuration.find() else f"--config {path} "
    out.print(f"Then: lastcall {plain(option)}check")


def _ask(ctx: click.Context, answers: dict[str, str | None]) -> None:
    """Ask for what no option said."""

    def given(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source is not click.core.ParameterSource.DEFAULT

    def ask(name: str, question: str, default: str | None = None, choice: Any = None) -> None:
        if not given(name):
            answers[name] = click.prompt(question, default=default, type=choice, show_choices=True)

    ask("vendor", "Vendor", choice=click.Choice(configuration.VENDORS))
    vendor = answers["vendor"] or ""
    ask("name", "Name of the source (part of every key)", first.default_name(vendor))
    if configuration.needs_base_url(vendor):
        ask("base_url", f"Base URL, such as {first.BASE_URL_OF[vendor]}")
    ask("bucket", "Bucket")
    ask("prefix", "Prefix of every key", "archive")
    ask("endpoint_url", "S3 endpoint, empty for AWS", "")
    ask("region", "Region of the bucket, empty for the default", "")
    ask("redis_url", "Redis", "redis://127.0.0.1:6379/0")
    ask("secrets", "Secrets: env, or a folder with one file each", "env")


@main.command()
@_json_option
@_config_option
def check(settings: Settings, *, as_json: bool) -> None:
    """Check configuration, Redis, the bucket, and each source.

    Logs in everywhere and reads one page; writes one small object under
    _state/check/ to see that the bucket refuses to overwrite it.
    """
    problems = settings.secret_problems()
    if problems:
        raise ConfigurationError(problems)
    ledger = open_daemon(settings).ledger
    no_redis = _why_not(ledger.ping)
    daemon = open_daemon(settings, alone=no_redis is not None)  # sources can be asked all the same
    checks: dict[str, Callable[[], object]] = {"bucket": daemon.archive.check}
    for name in daemon.sources:
        checks[f"sources.{name}"] = functools.partial(_check_source, daemon, name)
    results: list[JsonObject] = [{"name": "redis", "ok": no_redis is None, "detail": no_redis or "ok"}]
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        for name, future in [(name, pool.submit(run)) for name, run in checks.items()]:
            try:
                detail, ok = str(future.result() or "ok"), True
            except LastcallError as exc:
                detail, ok = str(exc), False
            results.append({"name": name, "ok": ok, "detail": detail})
    disabled = [f"sources.{name}: not enabled, not checked" for name, source in settings.sources.items() if not source.enabled]
    warnings = [*disabled, *settings.polling_warnings(), *settings.secret_warnings()]
    bad = [result for result in results if not result["ok"]]
    if as_json:
        print_json({"ok": not bad, "config": str(settings.path), "checks": results, "warnings": warnings})
    else:
        printing.print_checks(results, warnings)
    sys.exit(BAD_NEWS if bad else 0)


def _why_not(ask: Callable[[], object]) -> str | None:
    try:
        ask()
    except LedgerUnavailableError as exc:
        return str(exc)
    return None


def _check_source(daemon: Daemon, name: str) -> str:
    """Log in and read one page."""
    source = daemon.settings.sources[name]
    job = next(iter(daemon.sources[name].jobs(datetime.now(UTC) - source.retention)), None)
    return f"{source.vendor}: logged in, " + ("its list has jobs" if job else "its list is empty")


@main.command()
@click.option("--keep", is_flag=True, help="Leave it running until Ctrl-C; print the URLs.")
@click.option("--logs", is_flag=True, help="Keep the folder with the logs.")
@click.option("--small", is_flag=True, help="A handful of outputs, in seconds.")
def demo(*, keep: bool, logs: bool, small: bool) -> None:
    """Run it all against simulated vendors with faults, and prove it."""
    from worker.demo import show

    sys.exit(show.run(keep=keep, logs=logs, small=small))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion for a shell.

    Completes commands, options, states, and the sources of the configuration.

    \b
    bash, in ~/.bashrc:    eval "$(lastcall completion bash)"
    zsh, in ~/.zshrc:      eval "$(lastcall completion zsh)"
    fish:  lastcall completion fish > ~/.config/fish/completions/lastcall.fish
    """
    made = get_completion_class(shell)
    if made is None:  # a shell that click has dropped
        _usage(f"no completion for {shell}")
    click.echo(made(main, {}, "lastcall", "_LASTCALL_COMPLETE").source())


# --- look ------------------------------------------------------------------------------------------------------------


def _status_json(settings: Settings, status: SourceStatus, source: str, outlook: Forecast) -> JsonObject:
    row: JsonObject = {"vendor": settings.sources[source].vendor, "enabled": settings.sources[source].enabled, **asdict(status)}
    for key, value in row.items():
        if isinstance(value, datetime):
            row[key] = timestamp(value)
    row["forecast"] = outlook.sources[source].to_json() if source in outlook.sources else None
    return row


_COUNTS = ("owed", "claimed", "archived", "lost", "acknowledged", "held", "empty", "at_risk", "overdue")


@main.command()
@click.argument("process", required=False, type=click.Choice(["worker", "beat"]))
@_json_option
@_config_option
def health(settings: Settings, process: str | None, *, as_json: bool) -> None:
    """Say whether the daemon runs, for the probes of containers.

    The whole of it, as /healthz does; or a worker of this host; or a beat. Of
    a single process nothing bad is said while Redis is away: a worker may have
    transfers in hand, and to start it anew would throw them away.
    """
    ledger = Ledger(settings.redis(), lease=settings.worker.lease, worker="health")
    try:
        missing = ledger.missing_processes()
        here = [name for name in ledger.workers() if name.rsplit("-", 2)[0] == socket.gethostname()]
    except LedgerUnavailableError as exc:
        if process is None:
            raise
        answer: JsonObject = {"ok": True, "reason": f"nothing is known: {exc}"}
    else:
        if process == "worker":
            missing = [] if here else ["no worker of this host is alive; start `lastcall worker`"]
        elif process == "beat":
            missing = [reason for reason in missing if "beat" in reason]
        answer = {"ok": False, "reason": "; ".join(missing)} if missing else {"ok": True}
    if as_json:
        print_json(answer)
    else:
        click.echo(answer.get("reason", "ok"))
    if not answer["ok"]:
        raise SystemExit(BAD_NEWS)


@main.command()
@_json_option
@_config_option
def status(settings: Settings, *, as_json: bool) -> None:
    """Show what is owed, archived, lost and held, per source.

    Exit code 1: something is lost and not acknowledged.
    """
    with _reading(settings) as daemon:
        now = daemon.ledger.now()
        rows = {name: daemon.ledger.status(name, settings.worker.at_risk) for name in settings.sources}
        beat_at, workers = daemon.ledger.beat_at(), len(daemon.ledger.workers())
        everything, missing = daemon.ledger.paused(None), daemon.ledger.missing_processes()
        outlook = forecast.read(daemon.ledger, settings, rows)
    totals: JsonObject = {key: sum(getattr(row, key) for row in rows.values()) for key in _COUNTS}
    nearest = min((row.nearest_deadline for row in rows.values() if row.nearest_deadline), default=None)
    totals["nearest_deadline"] = timestamp(nearest) if nearest else None
    totals["forecast"] = outlook.to_json()
    if as_json:
        print_json(
            {
                "sources": {name: _status_json(settings, row, name, outlook) for name, row in rows.items()},
                "totals": totals,
                "workers": workers,
                "beat_at": timestamp(beat_at) if beat_at else None,
            }
        )
    else:
        printing.print_status(
            rows, now, everything=everything, workers=workers, beat_at=beat_at, missing=missing, outlook=outlook
        )
    sys.exit(BAD_NEWS if totals["lost"] else 0)


@main.command()
@_source_option("Only this source.")
@click.option("--state", type=click.Choice([str(state) for state in OutputState]), help="Only this state.")
@_json_option
@_config_option
def outputs(settings: Settings, *, source: str | None, state: str | None, as_json: bool) -> None:
    """List the outputs, most urgent first.

    \b
    owed      ready at the vendor, not in the bucket yet
    claimed   a worker is collecting it
    archived  its receipt is in the bucket
    empty     the vendor produced nothing
    lost      the vendor says that the bytes are gone
    held      it needs you; its error says why
    """
    names = _sources(settings, [source], enabled=False)
    wanted = OutputState(state) if state else None
    with _reading(settings) as daemon:
        now = daemon.ledger.now()
        records = [record for name in names for record in daemon.ledger.records(name, wanted)]
    records.sort(key=printing.by_urgency)
    if as_json:
        print_json([record.to_json() for record in records])
    else:
        printing.print_outputs(records, now)


_NEXT = {
    OutputState.OWED: "a worker takes it {when}",
    OutputState.CLAIMED: "the worker {worker} is collecting it",
    OutputState.ARCHIVED: "nothing; it is safe",
    OutputState.EMPTY: "nothing; the vendor produced no file",
    OutputState.LOST: "`lastcall acknowledge {id} --reason …` explains it; `lastcall retry {id}` asks the vendor again",
    OutputState.HELD: "it waits for you: see the error, then `lastcall retry {id}`",
}
_EXPLAINED = "nothing; the loss is explained. `lastcall retry {id}` asks the vendor again all the same"


@main.command()
@click.argument("output")
@_json_option
@_config_option
def show(settings: Settings, output: str, *, as_json: bool) -> None:
    """Show one output: history, receipt, error, what happens next.

    OUTPUT is SOURCE/JOB_ID/OUTPUT_ID, as `lastcall outputs` prints it.
    """
    identity = _output(settings, output)
    with _reading(settings) as daemon:
        record = daemon.ledger.record(identity)
        receipt = daemon.archive.receipt(identity)
    if record is None and receipt is None:
        _usage(f"no output {output}; `lastcall outputs` lists them")
    state = OutputState.ARCHIVED if receipt else record.state if record else OutputState.OWED
    explained = record is not None and record.acknowledged is not None and state is OutputState.LOST
    happens = (_EXPLAINED if explained else _NEXT[state]).format(
        id=identity,
        worker=record.worker if record else "",
        when=f"at {timestamp(record.not_before)}" if record and record.not_before else "when a slot is free",
    )
    document: JsonObject = {
        **(record.to_json() if record else {"id": str(identity)}),
        "state": str(state),
        "history": [{"at": timestamp(at), "what": what} for at, what in record.history] if record else [],
        "receipt": receipt.to_json() if receipt else None,
        "next": happens,
    }
    print_json(document) if as_json else printing.print_output(document)


# --- act -------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("source", nargs=-1, shell_complete=_complete_source)
@_json_option
@_config_option
def poll(settings: Settings, source: tuple[str, ...], *, as_json: bool) -> None:
    """List the vendors now, whatever the schedule says.

    Ends a pause after a refused log-in. All sources, or those named.
    Exit code 1: a listing failed.
    """
    names = _sources(settings, source)
    results: dict[str, JsonObject] = {}
    with _opened(settings) as daemon:
        for name in names:
            found = listing.discover(daemon, name, by_hand=True)
            found = found or listing.Discovery(name, result="busy", error="a worker lists it just now")
            results[name] = asdict(found)
            if not as_json:
                out.print(plain(found))
        _wake(settings, daemon)
    if as_json:
        print_json(results)
    sys.exit(BAD_NEWS if any(result["result"] not in {"ok", "busy"} for result in results.values()) else 0)


@main.command()
@click.argument("source", shell_complete=_complete_source)
@click.argument("job_id")
@_json_option
@_config_option
def watch(settings: Settings, source: str, job_id: str, *, as_json: bool) -> None:
    """Add a job that listing does not show.

    It is asked for until it is archived, lost or failed, or not found for as
    long as `retention`: at each poll at first, later more rarely.
    Survives a restart, and Redis.
    """
    _sources(settings, [source])
    with _reading(settings) as daemon:
        listing.watch(daemon, source, job_id)
    if as_json:
        print_json({"source": source, "job_id": job_id})
    else:
        out.print(f"{source}: job {plain(job_id)} is asked for from now on")


@main.command()
@click.argument("output", nargs=-1)
@click.option("--held", is_flag=True, help="All that is held.")
@click.option("--lost", is_flag=True, help="All that is lost and not acknowledged.")
@_json_option
@_config_option
def retry(settings: Settings, output: tuple[str, ...], *, held: bool, lost: bool, as_json: bool) -> None:
    """Put outputs back to owed, to be tried at once.

    \b
    Examples:
      lastcall retry acme-exports/28142/28142
      lastcall retry --held
    """
    if not output and not held and not lost:
        _usage("name outputs, or --held, or --lost")
    identities = [_output(settings, text) for text in output]
    results = []
    with _reading(settings) as daemon:
        for state, wanted in ((OutputState.HELD, held), (OutputState.LOST, lost)):
            for name in settings.sources if wanted else ():
                identities += [record.output.id for record in daemon.ledger.records(name, state) if not record.acknowledged]
        unknown = [str(identity) for identity in identities if daemon.ledger.record(identity) is None]
        if unknown:
            _usage(f"no output {', '.join(unknown)}; `lastcall outputs` lists them")
        for identity in identities:
            before = daemon.ledger.retry(identity)
            retried = before in {"held", "lost", "owed"}
            results.append({"id": str(identity), "before": before, "state": "owed" if retried else before})
            if not as_json:
                out.print(f"{identity}: {before} → owed" if retried else f"{identity}: {before}; nothing to retry")
        _wake(settings, daemon)
    if as_json:
        print_json(results)


@main.command()
@click.argument("output", nargs=-1)
@click.option("--lost", is_flag=True, help="All that is lost and not acknowledged.")
@_source_option("With --lost: only of this source.")
@click.option("--reason", required=True, help="Why this loss needs no more attention.")
@_json_option
@_config_option
def acknowledge(
    settings: Settings, output: tuple[str, ...], *, lost: bool, source: str | None, reason: str, as_json: bool
) -> None:
    """Explain losses, so that they are no longer bad news.

    The reason is written to the bucket; the loss stays listed by `outputs`,
    `show` and `audit --json`.

    \b
    Example:
      lastcall acknowledge acme-exports/28142/28142 --reason "made again"
    """
    if not reason.strip():
        _usage("--reason must say something")
    if not output and not lost:
        _usage("name outputs, or --lost")
    sources = _sources(settings, [source], enabled=source is not None)
    identities = [_output(settings, text) for text in output]
    with _reading(settings) as daemon:
        for identity in identities:
            record = daemon.ledger.record(identity)
            if record is None or record.state is not OutputState.LOST:
                _usage(f"{identity} is {record.state if record else 'unknown'}; only a loss can be acknowledged")
        for name in sources if lost else ():
            identities += [
                record.output.id for record in daemon.ledger.records(name, OutputState.LOST) if not record.acknowledged
            ]
        for identity in identities:
            listing.acknowledge(daemon, identity, reason)
            if not as_json:
                out.print(f"{identity}: acknowledged")
    if as_json:
        print_json([{"id": str(identity), "acknowledged": reason} for identity in identities])


@main.command()
@_json_option
@_config_option
def rebuild(settings: Settings, *, as_json: bool) -> None:
    """Make the ledger again from the bucket and the vendors alone.

    Workers may go on running. Needed only if the ledger looks wrong: an
    emptied Redis is noticed by itself.
    """
    with _opened(settings) as daemon:
        found = proof.rebuild(daemon)
        _wake(settings, daemon)
    if as_json:
        print_json({row.source: asdict(row) for row in found})
    else:
        for row in found:
            out.print(plain(row))
    sys.exit(BAD_NEWS if any(row.result not in {"ok", "busy"} for row in found) else 0)


# --- prove -----------------------------------------------------------------------------------------------------------


@main.command()
@_source_option("Only this source.")
@click.option("--since", type=_Moment(), help="Only outputs completed from then on: 2026-03-26, 2026-03-26T12:00:00Z.")
@click.option("--until", type=_Moment(), help="Only outputs completed before then.")
@click.option("--last", type=_Span(), help="Only outputs completed within that time: 30d, 12h.")
@click.option("--history", is_flag=True, help="Instead: list what audits and verifications found, and check that record.")
@_json_option
@_config_option
def audit(
    settings: Settings,
    *,
    source: str | None,
    since: datetime | None,
    until: datetime | None,
    last: timedelta | None,
    history: bool,
    as_json: bool,
) -> None:
    """Prove that nothing is missing: vendor − receipts − explained.

    Lists each vendor once, reads each receipt, and compares each object with
    its receipt. The result is appended to the record under _state/audit/.
    Exit code 1: anything missing, damaged, held, lost and not acknowledged,
    or not to be audited; with --history: the record was tampered with.

    \b
    Examples:
      lastcall audit
      lastcall audit --source acme-exports --last 30d
      lastcall audit --since 2026-03-01 --until 2026-04-01 --json
    """
    names = _sources(settings, [source])
    if last and (since or until):
        _usage("--last stands alone; use --since and --until for other windows")
    if history:
        _history(settings, as_json=as_json)
    found: dict[str, proof.SourceAudit] = {}
    with _opened(settings) as daemon:
        window = proof.Window(since=daemon.ledger.now() - last if last else since, until=until)
        for name in names:
            with err.status(f"auditing {name}"):
                found[name] = proof.audit(daemon, name, window)
        entry = proving.record_audit(daemon, found, window, by="hand")
    bad = any(row.bad for row in found.values())
    if as_json:
        rows = {name: row.to_json() for name, row in found.items()}
        print_json({"ok": not bad, "window": window.to_json(), "sources": rows, "record": entry.number})
    else:
        printing.print_audit(found, window)
    sys.exit(BAD_NEWS if bad else 0)


def _history(settings: Settings, *, as_json: bool) -> NoReturn:
    """List the record of audits, and say where it is broken. It needs the bucket alone; the ledger may know its end."""
    daemon = open_daemon(settings)
    entries = daemon.archive.proofs.entries()
    broken = [{"number": number, "why": why} for number, why in proving.broken(daemon, entries)]
    document: JsonObject = {"ok": not broken, "records": [_history_row(entry) for entry in entries], "broken": broken}
    print_json(document) if as_json else printing.print_history(document)
    sys.exit(BAD_NEWS if broken else 0)


def _history_row(entry: Entry) -> JsonObject:
    """Give what one record says, in short; somebody may have written anything into it."""
    document = entry.document or {}
    sources = document.get("sources")
    return {
        "number": entry.number,
        "at": timestamp(entry.at) if entry.at else None,
        "sha256": entry.sha256,
        **{key: document.get(key) for key in ("proof", "by", "window", "ok")},
        "sources": {
            name: {key: value for key, value in row.items() if key != "exceptions"}
            for name, row in (sources.items() if isinstance(sources, dict) else ())
            if isinstance(row, dict)
        },
    }


@main.command()
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only so many, chosen at random.")
@_source_option("Only this source.")
@_json_option
@_config_option
def verify(settings: Settings, *, sample: int | None, source: str | None, as_json: bool) -> None:
    """Read objects back and hash them against their receipts.

    Asks the bucket alone, so it works while Redis and the vendors are away.
    Costs reading the objects. Exit code 1: anything damaged.
    """
    names = _sources(settings, [source], enabled=False)
    daemon = open_daemon(settings)
    with err.status("reading back"), _interruptible(daemon):
        done = proof.verify(daemon, names, sample)
    proving.record_verification(daemon, done, by="hand")
    if as_json:
        print_json(done.to_json())
    else:
        for finding in done.damaged:
            out.print(f"[red]damaged[/] {finding.output}: {plain(finding.why)}")
        out.print(f"{done.checked} object(s) read back, {len(done.damaged)} damaged")
    sys.exit(BAD_NEWS if done.damaged else 0)


# --- run -------------------------------------------------------------------------------------------------------------


@main.command()
@_config_option
def worker(settings: Settings) -> None:
    """Run a worker: it lists, collects, and proves.

    Any number on any number of hosts. SIGTERM: what it holds is finished or
    given back, within 30 s.
    """
    from worker import app

    app.run_worker(settings)


@main.command()
@_config_option
def beat(settings: Settings) -> None:
    """Run beat, the clock. Any number of them does no harm."""
    from worker import app

    app.run_beat(settings)


@main.command()
@_config_option
def web(settings: Settings) -> None:
    """Run the board, /metrics and /healthz."""
    from worker import web as board

    board.serve(settings)


@main.command()
@_config_option
def flower(settings: Settings) -> None:
    """Run Flower, the view of workers and tasks."""
    from worker import flower as view

    view.run(settings)
