"""The commands that show how things stand, and change nothing."""

from __future__ import annotations

import socket
import sys
from dataclasses import asdict
from datetime import datetime

import click

from worker import forecast, printing
from worker.cli.options import BAD_NEWS, config_option, json_option, known_output, known_sources, source_option, wrong_usage
from worker.cli.rooms import reading
from worker.errors import LedgerUnavailableError
from worker.forecast import Forecast
from worker.ledger import Ledger, SourceStatus
from worker.model import JsonObject, OutputState, timestamp
from worker.printing import print_json
from worker.settings import Settings


def _status_json(settings: Settings, status: SourceStatus, source: str, outlook: Forecast) -> JsonObject:
    row: JsonObject = {"vendor": settings.sources[source].vendor, "enabled": settings.sources[source].enabled, **asdict(status)}
    for key, value in row.items():
        if isinstance(value, datetime):
            row[key] = timestamp(value)
    row["forecast"] = outlook.sources[source].to_json() if source in outlook.sources else None
    return row


_COUNTS = ("owed", "claimed", "archived", "lost", "acknowledged", "held", "empty", "at_risk", "overdue")


@click.command()
@click.argument("process", required=False, type=click.Choice(["worker", "beat"]))
@json_option
@config_option
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


@click.command()
@json_option
@config_option
def status(settings: Settings, *, as_json: bool) -> None:
    """Show what is owed, archived, lost and held, per source.

    Exit code 1: something is lost and not acknowledged.
    """
    with reading(settings) as daemon:
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


@click.command()
@source_option("Only this source.")
@click.option("--state", type=click.Choice([str(state) for state in OutputState]), help="Only this state.")
@json_option
@config_option
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
    names = known_sources(settings, [source], enabled=False)
    wanted = OutputState(state) if state else None
    with reading(settings) as daemon:
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


@click.command()
@click.argument("output")
@json_option
@config_option
def show(settings: Settings, output: str, *, as_json: bool) -> None:
    """Show one output: history, receipt, error, what happens next.

    OUTPUT is SOURCE/JOB_ID/OUTPUT_ID, as `lastcall outputs` prints it.
    """
    identity = known_output(settings, output)
    with reading(settings) as daemon:
        record = daemon.ledger.record(identity)
        receipt = daemon.archive.receipt(identity)
    if record is None and receipt is None:
        wrong_usage(f"no output {output}; `lastcall outputs` lists them")
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
