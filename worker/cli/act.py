"""The commands that change what the daemon does next."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from worker import audit as proof
from worker import discover as listing
from worker.cli.options import (
    BAD_NEWS,
    complete_source,
    config_option,
    json_option,
    known_output,
    known_sources,
    source_option,
    wrong_usage,
)
from worker.cli.rooms import opened, reading, wake
from worker.model import JsonObject, OutputState
from worker.printing import out, plain, print_json
from worker.settings import Settings


@click.command()
@click.argument("source", nargs=-1, shell_complete=complete_source)
@json_option
@config_option
def poll(settings: Settings, source: tuple[str, ...], *, as_json: bool) -> None:
    """List the vendors now, whatever the schedule says.

    Ends a pause after a refused log-in. All sources, or those named.
    Exit code 1: a listing failed.
    """
    names = known_sources(settings, source)
    results: dict[str, JsonObject] = {}
    with opened(settings) as daemon:
        for name in names:
            found = listing.discover(daemon, name, by_hand=True)
            found = found or listing.Discovery(name, result="busy", error="a worker lists it just now")
            results[name] = asdict(found)
            if not as_json:
                out.print(plain(found))
        wake(settings, daemon)
    if as_json:
        print_json(results)
    sys.exit(BAD_NEWS if any(result["result"] not in {"ok", "busy"} for result in results.values()) else 0)


@click.command()
@click.argument("source", shell_complete=complete_source)
@click.argument("job_id")
@json_option
@config_option
def watch(settings: Settings, source: str, job_id: str, *, as_json: bool) -> None:
    """Add a job that listing does not show.

    It is asked for until it is archived, lost or failed, or not found for as
    long as `retention`: at each poll at first, later more rarely.
    Survives a restart, and Redis.
    """
    known_sources(settings, [source])
    with reading(settings) as daemon:
        listing.watch(daemon, source, job_id)
    if as_json:
        print_json({"source": source, "job_id": job_id})
    else:
        out.print(f"{source}: job {plain(job_id)} is asked for from now on")


@click.command()
@click.argument("output", nargs=-1)
@click.option("--held", is_flag=True, help="All that is held.")
@click.option("--lost", is_flag=True, help="All that is lost and not acknowledged.")
@json_option
@config_option
def retry(settings: Settings, output: tuple[str, ...], *, held: bool, lost: bool, as_json: bool) -> None:
    """Put outputs back to owed, to be tried at once.

    \b
    Examples:
      lastcall retry acme-exports/28142/28142
      lastcall retry --held
    """
    if not output and not held and not lost:
        wrong_usage("name outputs, or --held, or --lost")
    identities = [known_output(settings, text) for text in output]
    results = []
    with reading(settings) as daemon:
        for state, wanted in ((OutputState.HELD, held), (OutputState.LOST, lost)):
            for name in settings.sources if wanted else ():
                identities += [record.output.id for record in daemon.ledger.records(name, state) if not record.acknowledged]
        unknown = [str(identity) for identity in identities if daemon.ledger.record(identity) is None]
        if unknown:
            wrong_usage(f"no output {', '.join(unknown)}; `lastcall outputs` lists them")
        for identity in identities:
            before = daemon.ledger.retry(identity)
            retried = before in {"held", "lost", "owed"}
            results.append({"id": str(identity), "before": before, "state": "owed" if retried else before})
            if not as_json:
                out.print(f"{identity}: {before} → owed" if retried else f"{identity}: {before}; nothing to retry")
        wake(settings, daemon)
    if as_json:
        print_json(results)


@click.command()
@click.argument("output", nargs=-1)
@click.option("--lost", is_flag=True, help="All that is lost and not acknowledged.")
@source_option("With --lost: only of this source.")
@click.option("--reason", required=True, help="Why this loss needs no more attention.")
@json_option
@config_option
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
        wrong_usage("--reason must say something")
    if not output and not lost:
        wrong_usage("name outputs, or --lost")
    sources = known_sources(settings, [source], enabled=source is not None)
    identities = [known_output(settings, text) for text in output]
    with reading(settings) as daemon:
        for identity in identities:
            record = daemon.ledger.record(identity)
            if record is None or record.state is not OutputState.LOST:
                wrong_usage(f"{identity} is {record.state if record else 'unknown'}; only a loss can be acknowledged")
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


@click.command()
@json_option
@config_option
def rebuild(settings: Settings, *, as_json: bool) -> None:
    """Make the ledger again from the bucket and the vendors alone.

    Workers may go on running. Needed only if the ledger looks wrong: an
    emptied Redis is noticed by itself.
    """
    with opened(settings) as daemon:
        found = proof.rebuild(daemon)
        wake(settings, daemon)
    if as_json:
        print_json({row.source: asdict(row) for row in found})
    else:
        for row in found:
            out.print(plain(row))
    sys.exit(BAD_NEWS if any(row.result not in {"ok", "busy"} for row in found) else 0)
