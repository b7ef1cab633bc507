"""How answers look: one JSON document, or tables that fit a terminal of 80 columns. Nothing a stranger wrote commands it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worker.audit import ALL, EXCEPTIONS, SourceAudit, Window
from worker.forecast import Forecast
from worker.ledger import Pause, Record, SourceStatus
from worker.model import JsonObject, OutputState, timestamp

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)

_DONE = {OutputState.ARCHIVED, OutputState.EMPTY}


# --- words -----------------------------------------------------------------------------------------------------------


def print_json(document: object) -> None:
    """Print one JSON document."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    # Within strings only: what a stranger could command a terminal with is written as an escape of JSON.
    click.echo("".join(letter if letter.isprintable() or letter == "\n" else _json_escape(letter) for letter in text))


def _json_escape(letter: str) -> str:
    return json.dumps(letter)[1:-1].replace("\x7f", "\\u007f")


def plain(text: object) -> str:
    """Show text that strangers wrote, in one line: no markup of ours, no control characters for the terminal."""
    return escape("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text)))


def ago(at: datetime | None, now: datetime) -> str:
    """Say how long ago something was."""
    return "never" if at is None else f"{span(now - at)} ago"


def span(length: timedelta) -> str:
    """Say a span in its largest unit and the next smaller one: ``3d 4h``, ``12m 5s``, ``7d``."""
    seconds = int(abs(length.total_seconds()))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    first = next((number for number, (_, size) in enumerate(units) if seconds >= size), len(units) - 1)
    parts: list[str] = []
    for unit, size in units[first : first + 2]:
        count, seconds = divmod(seconds, size)
        if count or not parts:
            parts.append(f"{count}{unit}")
    return ("-" if length < timedelta(0) and parts != ["0s"] else "") + " ".join(parts)


def _table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        right = column in numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold", min_width=len(column))
    return table


# --- answers ---------------------------------------------------------------------------------------------------------


def print_checks(results: list[JsonObject], warnings: list[str]) -> None:
    """Print what `check` found: a row for each thing, then the warnings, each once for all the paths that it is about."""
    table = _table("what", "", "detail")
    for result in results:
        mark = "[green]ok[/]" if result["ok"] else "[red]FAILED[/]"
        table.add_row(str(result["name"]), mark, "" if result["detail"] == "ok" else plain(result["detail"]))
    out.print(table)
    about: dict[str, list[str]] = {}
    for warning in warnings:
        path, _, what = warning.partition(": ")
        about.setdefault(what, []).append(path)
    for what, paths in about.items():
        out.print(f"[yellow]warning[/] {plain(what)}: {plain(', '.join(paths))}")


def print_status(
    rows: Mapping[str, SourceStatus],
    now: datetime,
    *,
    everything: Pause | None,
    workers: int,
    beat_at: datetime | None,
    missing: list[str],
    outlook: Forecast,
) -> None:
    """Print a row per source, below it its last poll, then what needs a person.

    `everything` is the pause of all sources, told once; `missing` says which processes do not run, and what to do.
    """
    numbers = ("owed", "claimed", "archived", "lost", "held", "at risk")
    table = _table("source", *numbers, "next deadline", numbers=numbers)
    for name, row in rows.items():
        left = span(row.nearest_deadline - now) if row.nearest_deadline else ""
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
    out.print(table)
    for name, row in rows.items():
        own = row.paused_until and not (everything and (everything.until, everything.why) == (row.paused_until, row.paused_why))
        error = None if own and row.last_poll_error == row.paused_why else row.last_poll_error  # said once
        result = f"{row.last_poll_result}: {error}" if error else row.last_poll_result
        out.print(f"{name}: polled {ago(row.last_poll_at, now)}, {plain(result or 'not yet')}")
        if row.paused_until and own:
            out.print(f"  [yellow]paused[/] until {timestamp(row.paused_until)}: {plain(row.paused_why)}")
    out.print(f"{workers} worker(s) alive; beat ticked {ago(beat_at, now)}")
    for reason in missing:
        out.print(f"[red]{plain(reason)}[/]")
    if everything:
        when = (
            f"is paused until {timestamp(everything.until)}"
            if everything.until > now
            else "is paused, and due to be tried again"
        )
        out.print(f"[red]everything[/] {when}: {plain(everything.why)}")
    if outlook.open:
        out.print(f"[{'yellow' if outlook.missed else 'default'}]forecast[/]: {plain('; '.join(outlook.lines))}")
    if any(row.lost for row in rows.values()):
        out.print(
            "[red]Something is lost[/]: `lastcall outputs --state lost`, then `lastcall acknowledge` or `lastcall retry`."
        )
    if any(row.held for row in rows.values()):
        out.print("[yellow]Something is held[/] and needs you: `lastcall outputs --state held`.")


def print_outputs(records: list[Record], now: datetime) -> None:
    """Print a row per output."""
    table = _table("output", "state", "left", "file")
    for record in records:
        left = "" if record.state in _DONE else span(record.output.deadline - now)
        name = record.output.filename or (record.key or "").rpartition("/")[2]
        about = "\n".join(plain(line) for line in (name, record.last_error) if line)
        state = f"{record.state}*" if record.acknowledged else str(record.state)
        table.add_row(str(record.output.id), state, left, about)
    out.print(table)
    out.print(f"{len(records)} output(s)" + ("; * acknowledged" if any(record.acknowledged for record in records) else ""))


def by_urgency(record: Record) -> tuple[int, datetime]:
    """Sort what can still be late first, then what is lost and unexplained, and last what needs nobody; each by deadline."""
    needs_nobody = record.state in _DONE or record.acknowledged is not None
    return 2 if needs_nobody else int(record.state is OutputState.LOST), record.output.deadline


def print_output(document: JsonObject) -> None:
    """Print one output: what is known, its receipt, its history."""
    table = _table("", "")
    table.show_header = False
    for key, value in document.items():
        if key not in {"history", "receipt"} and value not in (None, ""):
            table.add_row(key, plain(value))
    for key in ("size", "sha256", "proof", "wrapping", "archived_at", "key") if document["receipt"] else ():
        value = document["receipt"][key]
        table.add_row(f"receipt {key}", plain(", ".join(value) if isinstance(value, list) else value))
    out.print(table)
    for line in document["history"]:
        out.print(f"{line['at']}  {plain(line['what'])}")


def print_audit(found: Mapping[str, SourceAudit], window: Window = ALL) -> None:
    """Print a row per source, then every exception."""
    numbers = ("listed", "archived", "pending", *EXCEPTIONS, "explained")
    table = _table("source", *numbers, numbers=numbers)
    for name, row in found.items():
        counts: dict[str, Any] = row.to_json()
        cells = [f"[red]{counts[key]}[/]" if key in EXCEPTIONS and counts[key] else str(counts[key]) for key in numbers]
        table.add_row(name, *cells)
    out.print(table)
    if bounds := window.to_json():
        out.print("only what was completed " + " ".join(f"{name} {at}" for name, at in bounds.items() if at))
    for name, row in found.items():
        if row.error:
            out.print(f"[red]{name}[/] could not be audited: {plain(row.error)}")
        for key in EXCEPTIONS:
            for finding in getattr(row, key):
                out.print(f"[red]{key}[/] {finding.output}: {plain(finding.why)}")
    bad = any(row.bad for row in found.values())
    out.print("[red]The audit is not empty.[/]" if bad else "[green]vendor − receipts − explained = nothing.[/]")


def print_history(document: JsonObject) -> None:
    """Print the record of audits and verifications, and where it is broken."""
    table = _table("record", "at", "proof", "by", "sources", "", numbers=("record",))
    table.columns[1].no_wrap = True
    for row in document["records"]:
        cells = (row["number"], row["at"], row["proof"], row["by"], ", ".join(row["sources"]))
        table.add_row(
            *(plain(cell or "") for cell in cells), "[green]ok[/]" if row["ok"] is True else f"[red]{_bad_news(row)}[/]"
        )
    out.print(table)
    for one in document["broken"]:
        out.print(f"[red]record {one['number']}[/]: {plain(one['why'])}")
    count = len(document["records"])
    out.print(f"{count} record(s), each as it was written." if document["ok"] else "[red]The record is broken.[/]")


def _bad_news(row: JsonObject) -> str:
    """Say what a record found, in counts; somebody may have written anything into it."""
    sources = row["sources"].values()
    counts = {key: sum(one[key] for one in sources if isinstance(one.get(key), int)) for key in EXCEPTIONS}
    words = [f"{count} {key}" for key, count in counts.items() if count]
    unproved = sum(1 for one in sources if one.get("error"))
    return ", ".join([*words, *([f"{unproved} without proof"] if unproved else [])]) or "bad news"
