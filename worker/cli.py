"""The operator's commands. Answers go to stdout (a table, or one JSON document with ``--json``), progress and logs to stderr.

Exit codes: 0 done, 1 the answer is bad news, 2 wrong usage or configuration.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worker import audit as proof
from worker import discover as listing
from worker import forecast, logs, proving
from worker import settings as configuration
from worker.archive import Entry
from worker.daemon import Daemon, open_daemon
from worker.errors import ConfigurationError, LastcallError
from worker.forecast import Forecast
from worker.ledger import Record, SourceStatus
from worker.model import JsonObject, OutputId, OutputState, timestamp
from worker.settings import Settings

BAD_NEWS, WRONG_USAGE = 1, 2

_out = Console(highlight=False, soft_wrap=False)
_err = Console(stderr=True, highlight=False)


class _Group(click.Group):
    """Turns our errors into messages and exit codes, for every command."""

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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file.")
@click.version_option(package_name="lastcall")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Archive vendors' export files into S3 before they expire.

    The configuration is --config, else $LASTCALL_CONFIG, else
    config/lastcall.toml.
    """
    ctx.obj = config
    if ctx.invoked_subcommand not in {"worker", "beat"}:  # Celery sets up logging there
        logs.configure(logging.INFO if ctx.invoked_subcommand in {"web", "flower"} else logging.WARNING)


def _config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Take ``--config`` behind the command as well, and hand on the loaded settings."""

    @click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration file.")
    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, *arguments: Any, config: Path | None, **options: Any) -> Any:
        return command(configuration.load(config or ctx.obj), *arguments, **options)

    return wrapped


_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def _print_json(document: object) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False)
    # Within strings only: what a stranger could command a terminal with is written as an escape of JSON.
    click.echo("".join(letter if letter.isprintable() or letter == "\n" else _json_escape(letter) for letter in text))


def _json_escape(letter: str) -> str:
    return json.dumps(letter)[1:-1].replace("\x7f", "\\u007f")


def _table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        right = column in numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold", min_width=len(column))
    return table


def _plain(text: object) -> str:
    """Show text that strangers wrote: no markup of ours, no control characters for the terminal."""
    return escape(
        "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
    )


@contextmanager
def _opened(settings: Settings) -> Any:
    """Open the rooms for one command; whatever it holds is kept alive while it works."""
    daemon = open_daemon(settings)
    daemon.ledger.ping()
    daemon.keeper.start(alive=False)
    try:
        yield daemon
    finally:
        daemon.keeper.end()


def _known_sources(settings: Settings, names: Iterable[str]) -> list[str]:
    """Give `names`, or all enabled sources. An unknown one is wrong usage."""
    wanted = list(names)
    for name in wanted:
        if name not in settings.sources:
            _usage(f"no source {name!r}; there are: {', '.join(settings.sources) or 'none'}")
        if not settings.sources[name].enabled:
            _usage(f"source {name!r} is not enabled")
    return wanted or [name for name, source in settings.sources.items() if source.enabled]


def _usage(message: str) -> NoReturn:
    raise click.UsageError(message)


def _output(settings: Settings, text: str) -> OutputId:
    try:
        output = OutputId.parse(text)
    except ValueError as exc:
        _usage(str(exc))
    _known_sources(settings, [output.source])
    return output


def _ago(at: datetime | None, now: datetime) -> str:
    return "never" if at is None else f"{_span(now - at)} ago"


def _span(span: timedelta) -> str:
    """Say a span in its largest unit and the next smaller one: ``3d 4h``, ``12m 5s``, ``7d``."""
    seconds = int(abs(span.total_seconds()))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    first = next((number for number, (_, size) in enumerate(units) if seconds >= size), len(units) - 1)
    parts: list[str] = []
    for unit, size in units[first : first + 2]:
        count, seconds = divmod(seconds, size)
        if count or not parts:
            parts.append(f"{count}{unit}")
    return ("-" if span < timedelta(0) and parts != ["0s"] else "") + " ".join(parts)


# --- processes -------------------------------------------------------------------------------------------------------


@main.command()
@_config_option
def worker(settings: Settings) -> None:
    """Run a worker (Procfile)."""
    from worker import app

    app.run_worker(settings)


@main.command()
@_config_option
def beat(settings: Settings) -> None:
    """Run beat, the clock (Procfile)."""
    from worker import app

    app.run_beat(settings)


@main.command()
@_config_option
def flower(settings: Settings) -> None:
    """Run Flower, the view of workers and tasks (Procfile)."""
    from worker import flower as view

    view.run(settings)


@main.command()
@_config_option
def web(settings: Settings) -> None:
    """Run the board, /metrics and /healthz (Procfile)."""
    from worker import web as board

    board.serve(settings)


# --- check -----------------------------------------------------------------------------------------------------------


@main.command()
@_json_option
@_config_option
def check(settings: Settings, *, as_json: bool) -> None:
    """Check configuration, Redis, the bucket, and each source."""
    problems = settings.secret_problems()
    if problems:
        raise ConfigurationError(problems)
    daemon = open_daemon(settings)
    checks: dict[str, Callable[[], object]] = {"redis": daemon.ledger.ping, "bucket": daemon.archive.check}
    for name in daemon.sources:
        checks[f"sources.{name}"] = functools.partial(_check_source, daemon, name)
    results = []
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        for name, future in [(name, pool.submit(run)) for name, run in checks.items()]:
            try:
                detail, ok = str(future.result() or "ok"), True
            except LastcallError as exc:
                detail, ok = str(exc), False
            results.append({"name": name, "ok": ok, "detail": detail})
    disabled = [f"sources.{name}: not enabled, not checked" for name, source in settings.sources.items() if not source.enabled]
    warnings = disabled + settings.secret_warnings()
    bad = [result for result in results if not result["ok"]]
    if as_json:
        _print_json({"ok": not bad, "config": str(settings.path), "checks": results, "warnings": warnings})
    else:
        table = _table("what", "", "detail")
        for result in results:
            mark = "[green]ok[/]" if result["ok"] else "[red]FAILED[/]"
            table.add_row(str(result["name"]), mark, "" if result["detail"] == "ok" else _plain(result["detail"]))
        _out.print(table)
        for warning in disabled + _grouped(settings.secret_warnings()):
            _out.print(f"[yellow]warning[/] {_plain(warning)}")
    sys.exit(BAD_NEWS if bad else 0)


def _grouped(warnings: list[str]) -> list[str]:
    """Say each warning once, for all the paths that it is about."""
    about: dict[str, list[str]] = {}
    for warning in warnings:
        path, _, what = warning.partition(": ")
        about.setdefault(what, []).append(path)
    return [f"{what}: {', '.join(paths)}" for what, paths in about.items()]


def _check_source(daemon: Daemon, name: str) -> str:
    """Log in and read one page."""
    source = daemon.settings.sources[name]
    first = next(iter(daemon.sources[name].jobs(daemon.ledger.now() - source.retention)), None)
    return f"{source.vendor}: logged in, " + ("its list has jobs" if first else "its list is empty")


# --- reading ---------------------------------------------------------------------------------------------------------


def _status_json(settings: Settings, status: SourceStatus, source: str, outlook: Forecast) -> JsonObject:
    row: JsonObject = {"vendor": settings.sources[source].vendor, "enabled": settings.sources[source].enabled, **asdict(status)}
    for key, value in row.items():
        if isinstance(value, datetime):
            row[key] = timestamp(value)
    row["forecast"] = outlook.sources[source].to_json() if source in outlook.sources else None
    return row


_COUNTS = ("owed", "claimed", "archived", "lost", "acknowledged", "held", "empty", "at_risk", "overdue")


@main.command()
@_json_option
@_config_option
def status(settings: Settings, *, as_json: bool) -> None:
    """Show what is owed, archived, lost and held, per source."""
    with _reading(settings) as daemon:
        now = daemon.ledger.now()
        rows = {name: daemon.ledger.status(name, settings.worker.at_risk) for name in settings.sources}
        beat_at, workers = daemon.ledger.beat_at(), daemon.ledger.workers()
        outlook = forecast.read(daemon.ledger, settings, rows)
    totals: JsonObject = {key: sum(getattr(row, key) for row in rows.values()) for key in _COUNTS}
    nearest = min((row.nearest_deadline for row in rows.values() if row.nearest_deadline), default=None)
    totals["nearest_deadline"] = timestamp(nearest) if nearest else None
    totals["forecast"] = outlook.to_json()
    if as_json:
        _print_json(
            {
                "sources": {name: _status_json(settings, row, name, outlook) for name, row in rows.items()},
                "totals": totals,
                "workers": len(workers),
                "beat_at": timestamp(beat_at) if beat_at else None,
            }
        )
    else:
        table = _table(
            "source", *(numbers := ("owed", "claimed", "archived", "lost", "held", "at risk")), "next deadline", numbers=numbers
        )
        for name, row in rows.items():
            left = _span(row.nearest_deadline - now) if row.nearest_deadline else ""
            table.add_row(
                name,
                str(row.owed),
                str(row.claimed),
                str(row.archived),
                f"[red]{row.lost}[/]" if row.lost else "0",
                f"[yellow]{row.held}[/]" if row.held else "0",
                f"[yellow]{row.at_risk}[/]" if row.at_risk else "0",
                f"[red]{left}[/]" if left.startswith("-") else left,
            )
        _out.print(table)
        for name, row in rows.items():
            result = f"{row.last_poll_result}: {row.last_poll_error}" if row.last_poll_error else row.last_poll_result
            _out.print(f"{name}: polled {_ago(row.last_poll_at, now)}, {_plain(result or 'not yet')}")
            if row.paused_until:
                _out.print(f"  [yellow]paused[/] until {timestamp(row.paused_until)}: {_plain(row.paused_why)}")
        _out.print(f"{len(workers)} worker(s) alive; beat ticked {_ago(beat_at, now)}")
        if outlook.open:
            _out.print(f"[{'yellow' if outlook.missed else 'default'}]forecast[/]: {_plain('; '.join(outlook.lines))}")
        if totals["lost"]:
            _out.print(
                "[red]Something is lost[/]: `lastcall outputs --state lost`, then `lastcall acknowledge` or `lastcall retry`."
            )
        if totals["held"]:
            _out.print("[yellow]Something is held[/] and needs you: `lastcall outputs --state held`.")
    sys.exit(BAD_NEWS if totals["lost"] else 0)


@contextmanager
def _reading(settings: Settings) -> Any:
    """Open the rooms without a heartbeat: nothing will be held."""
    daemon = open_daemon(settings)
    daemon.ledger.ping()
    yield daemon


@main.command()
@click.option("--source", help="Only this source.")
@click.option("--state", help="Only this state: " + ", ".join(OutputState) + ".")
@_json_option
@_config_option
def outputs(settings: Settings, *, source: str | None, state: str | None, as_json: bool) -> None:
    """List the outputs, most urgent first."""
    if state is not None and state not in set(OutputState):
        _usage(f"no state {state!r}; there are: {', '.join(OutputState)}")
    if source is not None and source not in settings.sources:
        _usage(f"no source {source!r}; there are: {', '.join(settings.sources) or 'none'}")
    with _reading(settings) as daemon:
        now = daemon.ledger.now()
        records: list[Record] = [
            record
            for name in ([source] if source else settings.sources)
            for record in daemon.ledger.records(name, OutputState(state) if state else None)
        ]
    done = {OutputState.ARCHIVED, OutputState.EMPTY}
    records.sort(key=lambda record: (record.state in done, record.output.deadline))
    if as_json:
        _print_json([record.to_json() for record in records])
        return
    table = _table("output", "state", "left", "file")
    for record in records:
        left = "" if record.state in done else _span(record.output.deadline - now)
        about = record.output.filename or (record.key or "").rpartition("/")[2]
        if record.last_error:
            about = f"{about}\n{record.last_error}" if about else record.last_error
        state_text = f"{record.state}*" if record.acknowledged else str(record.state)
        table.add_row(str(record.output.id), state_text, left, _plain(about))
    _out.print(table)
    _out.print(f"{len(records)} output(s)" + ("; * acknowledged" if any(record.acknowledged for record in records) else ""))


_NEXT = {
    OutputState.OWED: "a worker takes it {when}",
    OutputState.CLAIMED: "the worker {worker} is collecting it",
    OutputState.ARCHIVED: "nothing; it is safe",
    OutputState.EMPTY: "nothing; the vendor produced no file",
    OutputState.LOST: "`lastcall acknowledge {id} --reason …` explains it; `lastcall retry {id}` asks the vendor again",
    OutputState.HELD: "it waits for you: see the error, then `lastcall retry {id}`",
}


@main.command()
@click.argument("output")
@_json_option
@_config_option
def show(settings: Settings, output: str, *, as_json: bool) -> None:
    """Show one output: history, receipt, error, what happens next."""
    identity = _output(settings, output)
    with _reading(settings) as daemon:
        record = daemon.ledger.record(identity)
        receipt = daemon.archive.receipt(identity)
    if record is None and receipt is None:
        _usage(f"no output {output}; `lastcall outputs` lists them")
    state = OutputState.ARCHIVED if receipt else record.state if record else OutputState.OWED
    happens = _NEXT[state].format(
        id=identity,
        worker=record.worker if record else "",
        when=f"at {timestamp(record.not_before)}" if record and record.not_before else "when a slot is free",
    )
    history = [{"at": timestamp(at), "what": what} for at, what in record.history] if record else []
    document: JsonObject = {
        **(record.to_json() if record else {"id": str(identity)}),
        "state": str(state),
        "history": history,
        "receipt": receipt.to_json() if receipt else None,
        "next": happens,
    }
    if as_json:
        _print_json(document)
        return
    table = _table("", "")
    table.show_header = False
    for key, value in document.items():
        if key not in {"history", "receipt"} and value not in (None, ""):
            table.add_row(key, _plain(value))
    for key in ("size", "sha256", "proof", "wrapping", "archived_at", "key") if receipt else ():
        value = document["receipt"][key]
        table.add_row(f"receipt {key}", _plain(", ".join(value) if isinstance(value, list) else value))
    _out.print(table)
    for line in history:
        _out.print(f"{line['at']}  {_plain(line['what'])}")


# --- acting ----------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("source", nargs=-1)
@_json_option
@_config_option
def poll(settings: Settings, source: tuple[str, ...], *, as_json: bool) -> None:
    """Poll now, whatever the schedule says."""
    names = _known_sources(settings, source)
    results: dict[str, JsonObject] = {}
    with _opened(settings) as daemon:
        for name in names:
            found = listing.discover(daemon, name, by_hand=True)
            found = found or listing.Discovery(name, result="busy", error="a worker lists it just now")
            results[name] = asdict(found)
            if not as_json:
                _out.print(_plain(found))
        _wake(settings, daemon)
    if as_json:
        _print_json(results)
    sys.exit(BAD_NEWS if any(result["result"] not in {"ok", "busy"} for result in results.values()) else 0)


def _wake(settings: Settings, daemon: Daemon) -> None:
    """Wake the workers for what was just written down, instead of waiting for the next tick."""
    from worker import app

    app.configure(settings)
    app.wake(daemon)


@main.command()
@click.argument("source")
@click.argument("job_id")
@_config_option
def watch(settings: Settings, source: str, job_id: str) -> None:
    """Add a job that listing does not show."""
    _known_sources(settings, [source])
    with _reading(settings) as daemon:
        listing.watch(daemon, source, job_id)
    _out.print(f"{source}: job {job_id} is asked for at each poll from now on")


@main.command()
@click.argument("output", nargs=-1)
@click.option("--held", is_flag=True, help="All that is held.")
@click.option("--lost", is_flag=True, help="All that is lost and not acknowledged.")
@_config_option
def retry(settings: Settings, output: tuple[str, ...], *, held: bool, lost: bool) -> None:
    """Put outputs back to owed."""
    if not output and not held and not lost:
        _usage("name outputs, or --held, or --lost")
    identities = [_output(settings, text) for text in output]
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
            _out.print(f"{identity}: {before} → owed" if retried else f"{identity}: {before}; nothing to retry")
        _wake(settings, daemon)


@main.command()
@click.argument("output", nargs=-1)
@click.option("--lost", is_flag=True, help="All that is lost and not acknowledged.")
@click.option("--source", help="With --lost: only of this source.")
@click.option("--reason", required=True, help="Why this loss needs no more attention.")
@_config_option
def acknowledge(settings: Settings, output: tuple[str, ...], *, lost: bool, source: str | None, reason: str) -> None:
    """Explain losses, so that they are no longer bad news."""
    if not reason.strip():
        _usage("--reason must say something")
    if not output and not lost:
        _usage("name outputs, or --lost")
    sources = _known_sources(settings, [source]) if source else settings.sources
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
            _out.print(f"{identity}: acknowledged")


# --- proof -----------------------------------------------------------------------------------------------------------


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


@main.command()
@click.option("--source", help="Only this source.")
@click.option("--since", type=_Moment(), help="Only outputs completed from then on.")
@click.option("--until", type=_Moment(), help="Only outputs completed before then.")
@click.option("--last", type=_Span(), help="Only outputs completed within that time: 30d, 12h.")
@click.option("--history", is_flag=True, help="List what earlier audits and verifications found; check that none was changed.")
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
    """Prove that nothing is missing: vendor − receipts − explained."""
    names = _known_sources(settings, [source] if source else [])
    if last and (since or until):
        _usage("--last stands alone; use --since and --until for other windows")
    if history:
        _history(settings, as_json=as_json)
    found: dict[str, proof.SourceAudit] = {}
    with _opened(settings) as daemon:
        window = proof.Window(since=daemon.ledger.now() - last if last else since, until=until)
        for name in names:
            with _err.status(f"auditing {name}"):
                found[name] = proof.audit(daemon, name, window)
        entry = proving.record_audit(daemon, found, window, by="hand")
    bad = any(row.bad for row in found.values())
    if as_json:
        rows = {name: row.to_json() for name, row in found.items()}
        _print_json({"ok": not bad, "window": window.to_json(), "sources": rows, "record": entry.number})
    else:
        print_audit(found, window)
    sys.exit(BAD_NEWS if bad else 0)


def _history(settings: Settings, *, as_json: bool) -> NoReturn:
    """List the record of audits, and say where it is broken. It needs the bucket alone; the ledger may know its end."""
    daemon = open_daemon(settings)
    entries = daemon.archive.proofs.entries()
    broken = proving.broken(daemon, entries)
    rows = [_history_row(entry) for entry in entries]
    if as_json:
        _print_json({"ok": not broken, "records": rows, "broken": [{"number": number, "why": why} for number, why in broken]})
    else:
        table = _table("record", "at", "proof", "by", "sources", "", numbers=("record",))
        for row in rows:
            mark = "[green]ok[/]" if row["ok"] else "[red]bad news[/]"
            table.add_row(
                *(_plain(row[key] or "") for key in ("number", "at", "proof", "by")), _plain(", ".join(row["sources"])), mark
            )
        _out.print(table)
        for number, why in broken:
            _out.print(f"[red]record {number}[/]: {_plain(why)}")
        _out.print("[red]The record is broken.[/]" if broken else f"{len(rows)} record(s), each as it was written.")
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


def print_audit(found: Mapping[str, proof.SourceAudit], window: proof.Window = proof.ALL, console: Console = _out) -> None:
    """Print the audit table: a row per source, then every exception."""
    numbers = ("listed", "archived", "pending", *proof.EXCEPTIONS, "explained")
    table = _table("source", *numbers, numbers=numbers)
    for name, row in found.items():
        cells = [
            f"[red]{value}[/]" if key in proof.EXCEPTIONS and value else str(value)
            for key in numbers
            for value in [getattr(row, key) if isinstance(getattr(row, key), int) else len(getattr(row, key))]
        ]
        table.add_row(name, *cells)
    console.print(table)
    if bounds := window.to_json():
        console.print("only what was completed " + " ".join(f"{name} {at}" for name, at in bounds.items() if at))
    for name, row in found.items():
        if row.error:
            console.print(f"[red]{name}[/] could not be audited: {_plain(row.error)}")
        for key in proof.EXCEPTIONS:
            for finding in getattr(row, key):
                console.print(f"[red]{key}[/] {finding.output}: {_plain(finding.why)}")
    bad = any(row.bad for row in found.values())
    console.print("[red]The audit is not empty.[/]" if bad else "[green]vendor − receipts − explained = nothing.[/]")


@main.command()
@click.option("--sample", type=click.IntRange(min=1), help="Only so many, chosen at random.")
@click.option("--source", help="Only this source.")
@_json_option
@_config_option
def verify(settings: Settings, *, sample: int | None, source: str | None, as_json: bool) -> None:
    """Read objects back and hash them against their receipts."""
    daemon = open_daemon(settings)
    if source is not None and source not in settings.sources:
        _usage(f"no source {source!r}; there are: {', '.join(settings.sources) or 'none'}")
    with _err.status("reading back"):
        done = proof.verify(daemon, [source] if source else settings.sources, sample)
    proving.record_verification(daemon, done, by="hand")
    if as_json:
        _print_json(done.to_json())
    else:
        for finding in done.damaged:
            _out.print(f"[red]damaged[/] {finding.output}: {_plain(finding.why)}")
        _out.print(f"{done.checked} object(s) read back, {len(done.damaged)} damaged")
    sys.exit(BAD_NEWS if done.damaged else 0)


@main.command()
@_json_option
@_config_option
def rebuild(settings: Settings, *, as_json: bool) -> None:
    """Make the ledger again from the bucket and the vendors alone."""
    with _opened(settings) as daemon:
        found = proof.rebuild(daemon)
        _wake(settings, daemon)
    if as_json:
        _print_json({row.source: asdict(row) for row in found})
    else:
        for row in found:
            _out.print(_plain(row))
    sys.exit(BAD_NEWS if any(row.result not in {"ok", "busy"} for row in found) else 0)


@main.command()
@click.option("--keep", is_flag=True, help="Leave it running until Ctrl-C; print the URLs.")
@click.option("--logs", is_flag=True, help="Keep the folder with the logs.")
@click.option("--small", is_flag=True, help="A handful of outputs, in seconds.")
def demo(*, keep: bool, logs: bool, small: bool) -> None:
    """Run it all against simulated vendors, with faults, and prove it."""
    from worker.demo import show

    sys.exit(show.run(keep=keep, logs=logs, small=small))
