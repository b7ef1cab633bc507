"""The commands that prove what is kept, from the vendors and the bucket."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from typing import NoReturn

import click

from worker import audit as proof
from worker import printing, proving
from worker.archive import Entry
from worker.cli.options import BAD_NEWS, Moment, Span, config_option, json_option, known_sources, source_option, wrong_usage
from worker.cli.rooms import interruptible, opened
from worker.daemon import open_daemon
from worker.model import JsonObject, timestamp
from worker.printing import err, out, plain, print_json
from worker.settings import Settings


@click.command()
@source_option("Only this source.")
@click.option("--since", type=Moment(), help="Only outputs completed from then on: 2026-03-26, 2026-03-26T12:00:00Z.")
@click.option("--until", type=Moment(), help="Only outputs completed before then.")
@click.option("--last", type=Span(), help="Only outputs completed within that time: 30d, 12h.")
@click.option("--history", is_flag=True, help="Instead: list what audits and verifications found, and check that record.")
@json_option
@config_option
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
    names = known_sources(settings, [source])
    if last and (since or until):
        wrong_usage("--last stands alone; use --since and --until for other windows")
    if history:
        _history(settings, as_json=as_json)
    found: dict[str, proof.SourceAudit] = {}
    with opened(settings) as daemon:
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


@click.command()
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only so many, chosen at random.")
@source_option("Only this source.")
@json_option
@config_option
def verify(settings: Settings, *, sample: int | None, source: str | None, as_json: bool) -> None:
    """Read objects back and hash them against their receipts.

    Asks the bucket alone, so it works while Redis and the vendors are away.
    Costs reading the objects. Exit code 1: anything damaged.
    """
    names = known_sources(settings, [source], enabled=False)
    daemon = open_daemon(settings)
    with err.status("reading back"), interruptible(daemon):
        done = proof.verify(daemon, names, sample)
    proving.record_verification(daemon, done, by="hand")
    if as_json:
        print_json(done.to_json())
    else:
        for finding in done.damaged:
            out.print(f"[red]damaged[/] {finding.output}: {plain(finding.why)}")
        out.print(f"{done.checked} object(s) read back, {len(done.damaged)} damaged")
    sys.exit(BAD_NEWS if done.damaged else 0)
